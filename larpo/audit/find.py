"""Where a run to audit is found: a folder, a pack, a revision or an experiment; and whether it is this user's own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from larpo.audit.open import AuditedRun
from larpo.audit.pack.unpack import KEPT, open_pack
from larpo.errors import UserError, nearest
from larpo.workspace.clone import link_named
from larpo.workspace.dvc import at_work, cache_folder, dvc, own_cache, share_cache
from larpo.workspace.git import experiments, find_commit, git, isolated_git, top_of

AUDITS = Path(".larpo/audit")


def is_own(project: Path, run: str | None) -> bool:
    """Whether `run`, as `open_run` takes it, is this user's: the project's folder, unless it is another user's or an
    unpacked run; a commit of the user's own branches, or an experiment. What was fetched is a stranger's until a branch
    of one's own holds it."""
    if run is None or Path(run).exists():
        here = project.resolve()
        unpacked = any((place / KEPT).exists() for place in (here, *here.parents))
        return (run is None or Path(run).resolve() == here) and not unpacked and here.stat().st_uid == os.getuid()
    if not is_own(project, None):
        return False
    commit = commit_named(project, run)
    holders = git(project, "for-each-ref", "--contains", commit, "--format=%(refname)", "refs/heads", "refs/exps")
    return bool(holders) or git(project, "merge-base", commit, "HEAD", check=False) == commit


@contextmanager
def open_run(project: Path, run: str | None) -> Iterator[AuditedRun]:
    """A run by its folder, a pack's file, a Git revision of `project` or an experiment's name; None: `project` itself.

    A pack is opened in a temporary folder. A revision is checked out, with its data from the project's cache, in a
    clone that is removed afterwards.
    """
    own = is_own(project, run)
    if own and (run is None or Path(run).exists()) and (busy := at_work(project)):
        raise UserError(f"{project}: the run is under way ({busy}); audit it when that has ended")
    with tempfile.TemporaryDirectory(prefix="larpo-audit-") as scratch:
        home = None if own else Path(scratch)
        if run is None or (Path(run) / "dvc.yaml").is_file():
            yield AuditedRun(project if run is None else run, home=home)
        elif Path(run).is_file():
            with open_pack(Path(run)) as folder:
                yield AuditedRun(folder, home=home)
        else:
            with _checked_out(project, run, home) as folder:
                yield AuditedRun(folder, home=home, cache=cache_folder(project))


@contextmanager
def _checked_out(project: Path, run: str, home: Path | None) -> Iterator[Path]:
    """The project's folder at a revision, in a clone; `home` as AuditedRun takes it."""
    commit = commit_named(project, run)
    (project / AUDITS).mkdir(parents=True, exist_ok=True)
    (project / AUDITS.parent / ".gitignore").write_text("*\n", "utf-8")
    clone = Path(tempfile.mkdtemp(prefix=f"{commit[:12]}-", dir=project / AUDITS))  # two audits of one are two
    try:
        folder = clone_at(project, commit, clone, own=home is None)
        if home is None:
            share_cache(project, folder)
        else:
            (folder / ".dvc/config").write_text("", "utf-8")  # no setting of a stranger's
            own_cache(folder, cache_folder(project))
        try:
            dvc(folder, "checkout", "--force")
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise UserError(f"{run}: its data is not in the cache ({reason}); fetch it with `dvc fetch`") from None
        if home is None:  # a stranger's parameters name nothing of this user's
            link_named(project, folder)
        yield folder
    finally:
        shutil.rmtree(clone, ignore_errors=True)


def clone_at(project: Path, commit: str, clone: Path, own: bool = True) -> Path:
    """A clone of the repository that `project` lies in, at one of its commits; returns the project's folder in it.

    `own` false: the commit is a stranger's. No settings of the user's, such as filters, meet its files, and no link.
    """
    top = top_of(project)
    assert top is not None  # it has commits
    call = git if own else isolated_git
    # --shared: objects are read where they are, also those of a commit that is under no branch (an experiment's).
    call(project, "clone", "--shared", "--quiet", "--no-checkout", str(top), str(clone))
    call(clone, "checkout", "--quiet", "--detach", commit)
    return clone / project.resolve().relative_to(top.resolve())


def commit_named(project: Path, run: str) -> str:
    """Commit of a revision or of an experiment's name."""
    known = experiments(project)
    commit = find_commit(project, known.get(run, run))
    if not commit:
        raise UserError(
            f"{run}: no folder with a dvc.yaml, no Git revision and no experiment"
            + (nearest(run, list(known)) if known else "; `dvc exp show` lists experiments")
        )
    return commit
