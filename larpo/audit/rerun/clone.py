"""A clean place to run a node again: the commit's code, the run's parameters, and copies of what the node read.

Nothing of the machine that made the run comes along: no DVC cache, no run-cache, no scratch of half-done work. What is
copied is compared with dvc.lock after the copy, so the node reads exactly what was hashed.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from larpo.audit.find import clone_at
from larpo.audit.open import PARAMS, AuditedRun
from larpo.hashing import dvc_hash, file_hash
from larpo.workspace.clone import named_paths
from larpo.workspace.dvc import kind_of
from larpo.workspace.dvc_lock import LOCK, Entry, LockedNode, read_yaml
from larpo.workspace.git import find_commit, git, isolated_git

FICLONE = 0x40049409  # Linux: a copy that shares its blocks until one of the two is written
DEPTH = "1/2/3"  # a path `../../x` of params.yaml stays within the temporary folder


class Unfit(Exception):
    """The question cannot be asked here: something is not at hand."""


class Changed(Exception):
    """Something of the run is not what dvc.lock says; the message names it."""


@contextlib.contextmanager
def temporary(workspace: Path) -> Iterator[Path]:
    """A folder in `workspace` for as long as the block runs. Those of processes that were killed are removed first: a
    folder in use is locked, and the lock goes with its process."""
    workspace.mkdir(parents=True, exist_ok=True)
    with _locked(workspace):
        for old in workspace.iterdir():
            with contextlib.suppress(BlockingIOError, NotADirectoryError), _locked(old, fcntl.LOCK_NB):
                shutil.rmtree(old, ignore_errors=True)
        mine = Path(tempfile.mkdtemp(prefix="run-", dir=workspace))
        lock = os.open(mine, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def _locked(folder: Path, flags: int = 0) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(handle)


def copy(source: Path, target: Path) -> None:
    """A copy of a file that can be written without touching the original; no hard link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as a, open(target, "wb") as b:
        try:
            fcntl.ioctl(b.fileno(), FICLONE, a.fileno())
        except OSError:
            shutil.copyfileobj(a, b, 1 << 22)


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


class Clone:
    """The run's repository at one commit, with the run's params.yaml and dvc.lock laid over.

    Raises
    ------
    Unfit
        The run lies in no Git repository, or the commit is not in it.
    """

    def __init__(self, run: AuditedRun, commit: str, home: Path):
        self.run, self.commit = run, commit
        if run.repository is None:
            raise Unfit(f"{run.folder} lies in no Git repository")
        if find_commit(run.repository, commit) is None:
            raise Unfit(f"commit {commit[:12]} of its manifest is not in the repository")
        self.top = home / DEPTH / commit[:12]
        self.top.parent.mkdir(parents=True, exist_ok=True)
        self.folder = clone_at(run.repository, commit, self.top, run.own)
        self._lay_over()
        self._link()
        self.code = AuditedRun(self.folder, home=None if run.own else Path(tempfile.mkdtemp(dir=home)))

    def _lay_over(self) -> None:
        for name in (PARAMS, LOCK):
            copy(self.run.folder / name, self.folder / name)

    def command(self, node: LockedNode) -> str:
        """What the commit's dvc.yaml runs, with the run's parameters."""
        if node.name not in self.code.declared:
            raise Unfit(f"dvc.yaml of commit {self.commit[:12]} has no such node")
        command = self.code.declared[node.name].cmd
        return command if isinstance(command, str) else " && ".join(command)

    def stage(self, node: LockedNode) -> list[str]:
        """Put everything in place that the node reads; returns what was not in the commit but in the run's folder.

        Raises
        ------
        Unfit
            An input or a piece of code is not there.
        Changed
            An input, or code, is not what dvc.lock records.
        """
        call = git if self.run.own else isolated_git
        call(self.top, "checkout", "--quiet", "--force", "HEAD", "--", ".")
        call(self.top, "clean", "-ffdxq", "-e", "__pycache__")
        self._lay_over()
        self._link()
        given, added = set(self.run.sources), []
        for path, entry in node.deps.items():
            if path not in given:
                self._take(path, entry)
            elif self.code.md5(path) != entry.md5:
                added.append(path)
                self._take(path, entry)
        if kind_of(node.name) == "report":
            # The page tells what the manifests say, those too that lie in no folder it depends on.
            for other in self.run.nodes:
                if other is not node and other.manifest and (self.run.folder / other.manifest).is_file():
                    self._take(other.manifest, other.outs[other.manifest])
        return added

    def _take(self, path: str, entry: Entry) -> None:
        """Copy one dependency from the run's folder and compare the copy with dvc.lock."""
        source, target = self.run.folder / path, self.folder / path
        if not source.exists():
            raise Unfit(f"{path} is not here; fetch it with `dvc pull`")
        # Nothing is ever written through a link or a path that leads out of the clone, into the originals.
        if not (target.is_symlink() or _inside(target, self.folder)) or not _inside(target.parent, self.folder):
            raise Changed(f"{path}: lies outside the run and is not what dvc.lock records")
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        if source.is_dir():
            names = self.run.files(path)
            for name in names:
                copy(source / name, target / name)
            md5 = dvc_hash({name: file_hash(target / name) for name in names})
        else:
            copy(source, target)
            md5 = file_hash(target)
        if md5 != entry.md5:
            raise Changed(f"{path}: md5 {md5}, dvc.lock records {entry.md5}")

    def _link(self) -> None:
        """Link data, models and own code that parameters name and neither Git nor a node provides."""
        home = self.top.parents[len(Path(DEPTH).parts)]
        for path in [*self.run.given, *named_paths(read_yaml(self.run.folder / PARAMS), self.run.folder)]:
            name = os.path.relpath(path, self.run.folder)
            here = Path(os.path.normpath(self.folder / name))
            ours = any(out == name or out.startswith(f"{name}/") for out in self.run.producer)
            if not ours and here.is_relative_to(home) and not os.path.lexists(here):
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(path)
