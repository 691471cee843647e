"""A run with other parameters: a clone of the project that shares its cache and ends as a DVC experiment.

Nobody's params.yaml is edited. The clone stands at the project's commit with its uncommitted changes, lies
in .larpo/runs/NAME and is removed once the experiment is in the project; after a failure it stays, so that
the next attempt of the same run resumes in it, unless the run was refused before anything was made.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from larpo.errors import UserError
from larpo.hashing import digest, file_hash
from larpo.workspace.dvc import dvc, read_graph, share_cache
from larpo.workspace.dvc_lock import LOCK, read_yaml
from larpo.workspace.files import write_text
from larpo.workspace.git import experiments, find_commit, git, stashed, top_of
from larpo.workspace.mend import mend
from larpo.workspace.overrides import PARAMS
from larpo.workspace.repro import BadInput, Repro

RUNS, REPORTS = Path(".larpo/runs"), Path(".larpo/reports")
MARKER = Path(".dvc/tmp/larpo-run.json")
# Written at the end of every study: another study's clone is none the older for it.
WRITTEN = ("studies/results", "docs/findings.md")


def named_paths(tree: Any, root: Path) -> Iterator[Path]:
    """Files and folders below or outside `root` that parameters name: a local dataset, a corpus, a model.

    A name without `/` is a file's or a checkpoint's: `reward` is not the folder that happens to be called so.
    """
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from named_paths(value, root)
    elif isinstance(tree, str) and tree:
        with suppress(OSError):  # a text too long for a name
            path = Path(os.path.normpath(root / tree))  # `..` must not lead out of a clone
            if path.exists() if "/" in tree else path.is_file() or (path / "config.json").is_file():
                yield path


def link_named(project: Path, clone: Path) -> None:
    """Link what the clone's parameters name in `project` and Git does not hold: datasets and models of one's own."""
    for path in named_paths(read_yaml(clone / PARAMS), project):
        if path.is_relative_to(project):
            here = clone / path.relative_to(project)
            if not here.exists():
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(path)


def _content(path: Path) -> str:
    """Identity of an untracked file; a link is where it leads, for that may be a folder."""
    return f"link to {os.readlink(path)}" if path.is_symlink() else file_hash(path)


class Workspace:
    """The clone for one run. `folder` is the DVC project in it."""

    def __init__(self, project: str | Path, name: str):
        self.project, self.name = Path(project).resolve(), name
        top = top_of(self.project)
        if top is None or find_commit(self.project, "HEAD") is None:
            raise UserError(
                f"{self.project}: changed parameters make a DVC experiment, which starts from a Git commit; "
                "commit first"
            )
        self.top = top
        self.clone = self.project / RUNS / name
        self.folder = self.clone / self.project.relative_to(self.top)
        self.resumed = False

    def open(self, params: str) -> bool:
        """Make the clone with `params` as its params.yaml; True where an earlier attempt's is taken up."""
        changes = stashed(self.top)
        listed = git(self.top, "ls-files", "-z", "--others", "--exclude-standard")
        untracked = [path for path in listed.split("\0") if path]
        marker = self.folder / MARKER
        excluded = [f":(top,exclude){path}" for path in WRITTEN]
        identity = json.dumps(
            {
                "params": params,
                "commit": git(self.top, "rev-parse", "HEAD"),
                "changes": digest(ascii(git(self.top, "diff", "--binary", "HEAD", "--", ":(top)", *excluded))),
                "untracked": {p: _content(self.top / p) for p in untracked if not p.startswith(WRITTEN)},
            }
        )
        if marker.is_file() and marker.read_text("utf-8") == identity:
            self.resumed = True
            return True
        shutil.rmtree(self.clone, ignore_errors=True)
        try:
            self._make(params, changes, untracked)
        except BaseException:
            shutil.rmtree(self.clone, ignore_errors=True)
            raise
        write_text(marker, identity)
        return False

    def _make(self, params: str, changes: str, untracked: list[str]) -> None:
        self.clone.parent.mkdir(parents=True, exist_ok=True)
        (self.project / RUNS.parent / ".gitignore").write_text("*\n", "utf-8")
        git(self.top, "clone", "--local", "--quiet", str(self.top), str(self.clone))
        for key in ("user.name", "user.email"):
            if value := git(self.top, "config", "--get", key, check=False):
                git(self.clone, "config", key, value)
        if changes:
            git(self.clone, "stash", "apply", "--quiet", changes)
        for path in untracked:
            target = self.clone / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.top / path, target, follow_symlinks=False)
        local = self.project / ".dvc/config.local"
        if local.is_file():
            shutil.copy2(local, self.folder / ".dvc/config.local")
        share_cache(self.project, self.folder)
        added = [p.relative_to(self.folder).as_posix() for p in self._data_files()]
        if added:
            dvc(self.folder, "checkout", *added)
        (self.folder / PARAMS).write_text(params, "utf-8")
        link_named(self.project, self.folder)
        self._forget_other_stages()

    def _forget_other_stages(self) -> None:
        """Take out of dvc.lock what other parameters ran and these do not have: DVC reads and writes all of it at each
        node."""
        from dvc.utils.serialize import modify_yaml

        mend(self.folder)
        if (lock := self.folder / LOCK).is_file():
            mine = read_graph(self.folder)
            with modify_yaml(lock) as held:
                held["stages"] = {name: stage for name, stage in held["stages"].items() if name in mine}

    def _data_files(self) -> list[Path]:
        """Data that was added by `dvc add`: no node makes it, so it is checked out here."""
        tracked = git(self.folder, "ls-files", "-z", "--", "*.dvc").split("\0")
        return [self.folder / path for path in tracked if path]

    def save(self, nodes: list[str]) -> str:
        """Record `nodes` (all up to date) as experiment `name` of the project; returns the commit.

        Their runs have written dvc.lock, which is what is saved. DVC is handed the last of them alone: without one it
        would take every output as it lies for up to date, and for each it reads and writes the whole of dvc.lock.
        """
        dvc(self.folder, "exp", "save", "--force", "--name", self.name, nodes[-1])
        ref = experiments(self.clone)[self.name]
        git(self.top, "fetch", "--quiet", str(self.clone), f"+{ref}:{ref}")
        return git(self.top, "rev-parse", ref)

    def give_up(self, runner: Repro | None = None) -> str:
        """After a failure: removes the clone where all was refused that `runner` did and it made nothing; else how the
        failure's line goes on, with what is kept and where."""
        made = [node for node in runner.made if node != "inputs"] if runner else []  # which looks, and makes nothing
        refused = runner is None or all(isinstance(failure, BadInput) for failure in runner.failures)
        if refused and not made and not self.resumed:
            shutil.rmtree(self.clone)
            return ""
        return f"; kept in {self.clone}" + (f": {', '.join(made)}" if made else "")

    def close(self) -> Path | None:
        """Remove the clone; its report stays in .larpo/reports/NAME, the folder returned if there is one."""
        report, kept = self.folder / "report", self.project / REPORTS / self.name
        if report.is_dir():
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(report, kept)
        shutil.rmtree(self.clone)
        return kept if kept.is_dir() else None


def free_name(project: str | Path, name: str) -> str:
    """`name` as Git and DVC allow it; numbered where an experiment of the project already has it."""
    base = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())[:64].rstrip("-") or "run"
    taken = experiments(project)
    return next(n for n in [base, *(f"{base}-{i}" for i in range(2, len(taken) + 3))] if n not in taken)
