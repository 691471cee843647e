"""A run with other parameters: a clone of the project that shares its cache and ends as a DVC experiment.

Nobody's params.yaml is edited. The clone stands at the project's commit with its uncommitted changes, lies
in .larpo/runs/NAME and is removed once the experiment is in the project; after a failure it stays, so that
the next attempt of the same run resumes in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from larpo.config.params import parse_params
from larpo.errors import UserError
from larpo.hashing import digest, file_hash
from larpo.load import check_params

PARAMS = "params.yaml"
RUNS, REPORTS = Path(".larpo/runs"), Path(".larpo/reports")
MARKER = Path(".dvc/tmp/larpo-run.json")
# Written at the end of every study: another study's clone is none the older for it.
WRITTEN = ("studies/results", "docs/findings.md")


def changed_params(
    folder: str | Path, iterations: int | None = None, objective: str | None = None, overrides: list[str] | None = None
) -> str | None:
    """The text of params.yaml with the changes applied and checked; None where they change nothing.

    `iterations` keeps the first N, or adds further ones with the last one's settings, and has their policies
    evaluated. `overrides` are `key=value` as for `dvc exp run -S`; a key that the file leaves at its default
    may be set without Hydra's `+`.

    Raises
    ------
    UserError
        An unknown key or a value that larpo.load refuses; nothing has been written.
    """
    from dvc.utils.hydra import apply_overrides
    from dvc.utils.serialize import load_yaml

    path = Path(folder) / PARAMS
    if not path.is_file():
        raise UserError(f"{path}: not found; run from the project's folder, where {PARAMS} lies")
    before = load_yaml(path)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / PARAMS
        shutil.copyfile(path, copy)
        if iterations is not None:
            _set_iterations(copy, iterations)
        wanted = [*([f"train.objective={objective}"] if objective else []), *_plain(overrides or [])]
        if wanted:
            try:
                apply_overrides(copy, ["++" + x if x[0] not in "+~" else x for x in wanted])
            except Exception as error:  # noqa: BLE001 (Hydra and OmegaConf raise many types for a wrong override)
                cause = error.__cause__ or error
                raise UserError(f"override of {PARAMS}: {str(cause).strip().splitlines()[0]}") from None
        after = load_yaml(copy)
        check_params(parse_params(after, PARAMS), PARAMS)
        return None if after == before else copy.read_text("utf-8")


def _plain(overrides: list[str]) -> list[str]:
    """Refuse what is no single `key=value` (or `~key`)."""
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.errors import OverrideParseException

    for text in overrides:
        try:
            (parsed,) = to_hydra_overrides([text])
        except OverrideParseException:
            message = f"override {text!r}: expected key=value, such as train.learning_rate=1e-5"
            raise UserError(message) from None
        if parsed.is_sweep_override():
            raise UserError(f"override {text!r}: expected one value; a list is written [a,b]")
    return overrides


def _set_iterations(path: Path, wanted: int) -> None:
    from dvc.utils.serialize import modify_yaml

    if wanted < 1:
        raise UserError(f"iterations: expected 1 or more, found {wanted}")
    with modify_yaml(path) as raw:
        declared = raw.get("iterations") if isinstance(raw, dict) else None
        if not isinstance(declared, dict) or not declared:
            parse_params(raw, PARAMS)  # names what is wrong
            raise UserError(f"{PARAMS}: iterations: expected a mapping of iterations, found {declared!r}")
        names = sorted(declared, key=int)
        last = names[-1]
        evaluated = raw.get("evaluate", {}).get("policies", [])
        for name in names[wanted:]:
            del declared[name]
        dropped = {str(name) for name in names[wanted:]}
        kept = [p for p in evaluated if str(p) not in dropped]
        for _ in range(wanted - len(names)):
            following = type(last)(int(last) + 1)
            declared[following] = {**declared[last], "previous": str(last)}
            last = following
            kept.append(str(following))
        if kept != list(evaluated):
            raw["evaluate"]["policies"] = kept


def git(folder: Path, *arguments: str, check: bool = True, **variables: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip() if done.returncode == 0 else ""


def stashed(top: Path) -> str:
    """The commit that holds the uncommitted changes of tracked files (`git stash create`); "" where there are none.

    Git locks the index for that and fails where another command holds the lock: runs that open side by side, the
    user's own. Each call works on a copy of the index. It also fails, with 1 and no word, where a file was written
    again with the content that it had, unless the index was refreshed before.
    """
    with tempfile.TemporaryDirectory() as scratch:
        index = shutil.copyfile(top / git(top, "rev-parse", "--git-path", "index"), Path(scratch) / "index")
        own = {"GIT_INDEX_FILE": str(index)}
        git(top, "update-index", "-q", "--refresh", check=False, **own)  # fails where some file has changed
        return git(top, "stash", "create", **own)


def dvc(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    # -P: a module of the folder's (it may be a stranger's run) must not stand in for one of ours.
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def named_paths(tree: Any, root: Path) -> Iterator[Path]:
    """Files and folders below or outside `root` that parameters name: a local dataset, a corpus, a model."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from named_paths(value, root)
    elif isinstance(tree, str) and "/" in tree:
        with suppress(OSError):  # a text too long for a name
            path = Path(os.path.normpath(root / tree))  # `..` must not lead out of a clone
            if path.exists():
                yield path


def _content(path: Path) -> str:
    """Identity of an untracked file; a link is where it leads, for that may be a folder."""
    return f"link to {os.readlink(path)}" if path.is_symlink() else file_hash(path)


class Workspace:
    """The clone for one run. `folder` is the DVC project in it."""

    def __init__(self, project: str | Path, name: str):
        self.project, self.name = Path(project).resolve(), name
        top = git(self.project, "rev-parse", "--show-toplevel", check=False)
        if not top or not git(self.project, "rev-parse", "--verify", "-q", "HEAD", check=False):
            raise UserError(
                f"{self.project}: changed parameters make a DVC experiment, which starts from a Git commit; "
                "commit first"
            )
        self.top = Path(top).resolve()
        self.clone = self.project / RUNS / name
        self.folder = self.clone / self.project.relative_to(self.top)

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
                "changes": digest(git(self.top, "diff", "--binary", "HEAD", "--", ":(top)", *excluded)),
                "untracked": {p: _content(self.top / p) for p in untracked if not p.startswith(WRITTEN)},
            }
        )
        if marker.is_file() and marker.read_text("utf-8") == identity:
            return True
        shutil.rmtree(self.clone, ignore_errors=True)
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
        dvc(self.folder, "config", "--local", "cache.dir", dvc(self.project, "cache", "dir"))
        added = [p.relative_to(self.folder).as_posix() for p in self._data_files()]
        if added:
            dvc(self.folder, "checkout", *added)
        (self.folder / PARAMS).write_text(params, "utf-8")
        self._link(params)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(identity, "utf-8")
        return False

    def _link(self, params: str) -> None:
        """Link what parameters name in the project but Git does not hold: datasets and models of one's own in data/."""
        from dvc.utils.serialize import parse_yaml

        for path in named_paths(parse_yaml(params, PARAMS), self.project):
            if path.is_relative_to(self.project):
                here = self.folder / path.relative_to(self.project)
                if not here.exists():
                    here.parent.mkdir(parents=True, exist_ok=True)
                    here.symlink_to(path)

    def _data_files(self) -> list[Path]:
        """Data that was added by `dvc add`: no node makes it, so it is checked out here."""
        tracked = git(self.folder, "ls-files", "-z", "--", "*.dvc").split("\0")
        return [self.folder / path for path in tracked if path]

    def save(self, nodes: list[str]) -> str:
        """Record `nodes` (all up to date) as experiment `name` of the project; returns the commit.

        Only they are named, because DVC would take every other output as it lies for up to date.
        """
        dvc(self.folder, "exp", "save", "--force", "--name", self.name, *nodes)
        refs = git(self.clone, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        (ref,) = [r for r in refs if r.endswith(f"/{self.name}") and not r.startswith("refs/exps/exec/")]
        git(self.top, "fetch", "--quiet", str(self.clone), f"+{ref}:{ref}")
        return git(self.top, "rev-parse", ref)

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
    project = Path(project)
    base = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())[:64].rstrip("-") or "run"
    refs = git(project, "for-each-ref", "--format=%(refname)", "refs/exps", check=False).splitlines()
    taken = {ref.rsplit("/", 1)[-1] for ref in refs}
    return next(n for n in [base, *(f"{base}-{i}" for i in range(2, len(taken) + 3))] if n not in taken)
