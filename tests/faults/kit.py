"""What the fault tests share: who still runs in a folder, killing, the bytes that must come out."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Project


def processes(folder: Path) -> list[psutil.Process]:
    """Every process that works in `folder` or below it, this one and zombies that wait for their parent aside."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            where = Path(process.cwd())
            mine = where == folder or folder in where.parents
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def assert_nothing_runs(folder: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while left := processes(folder):
        assert time.monotonic() < deadline, [(p.pid, " ".join(p.cmdline())) for p in left]
        time.sleep(0.05)


def assert_ended(those: list[psutil.Process], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while left := [p for p in those if is_alive(p)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def products(folder: Path) -> dict[str, bytes]:
    """Every file that the nodes published, by its path; without manifests and the page that shows them: they hold
    times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for top in ("data", "report")
        for path in sorted((folder / top).rglob("*"))
        if path.is_file() and not path.name.endswith("manifest.json") and path.name not in ("index.html", ".gitignore")
    }


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected)
    assert [path for path in found if found[path] != expected[path]] == []


def scratch_left(folder: Path) -> list[str]:
    """What nodes left in scratch; the files that are locked while one runs stay, they are empty but for a number."""
    return [p.relative_to(folder).as_posix() for p in (folder / "scratch").glob("*/*")]


def forget(project: Project) -> None:
    """As if nothing had ever run: no lock, no cache, no outputs."""
    for path in ("dvc.lock", ".dvc/cache", ".dvc/tmp", "data/policy", "report", "scratch"):
        shutil.rmtree(project.folder / path, ignore_errors=True)
    (project.folder / "dvc.lock").unlink(missing_ok=True)
    for path in (project.folder / "data").glob("*"):
        if path.name not in ("samples", "README.md"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Running:
    """A command in the project's folder whose output is read as it comes; `stages` are those that DVC began to run."""

    def __init__(self, project: Project, *command: str, **variables: str):
        self.project, self.lines, self.stages = project, [], []
        self.changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=project.folder,
            env=project.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip())
                if line.startswith("Running stage '"):
                    self.stages.append(line.split("'")[1])
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, what, seconds: float = 120) -> bool:
        """Until `what()` holds (True) or the command has ended (False)."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not what():
                if not self._reader.is_alive() or self.process.poll() is not None:
                    return bool(what())
                assert time.monotonic() < deadline, "\n".join(self.lines[-20:])
                self.changed.wait(0.05)
        return True

    def finish(self, seconds: float = 300) -> tuple[int, str]:
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status, "\n".join(self.lines)

    def kill(self, how: str) -> str:
        """SIGKILL to the whole tree, to DVC alone or to the node alone; returns what was hit."""
        everyone = self.tree()
        nodes = [p for p in everyone if is_node(p)]
        hit = {"tree": everyone, "dvc": everyone[:1], "node": nodes or everyone}[how]
        for process in hit:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return how if hit is not everyone else "tree"

    def tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def is_node(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.startswith("tasks.") for part in process.cmdline())
    return False


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of its own in the place of `folder`, which keeps what it holds; the test is skipped where none can
    be mounted."""
    kept = folder.with_name(f".{folder.name}.kept")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(kept)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        if mounted.returncode:
            pytest.skip(f"no tmpfs can be mounted here ({mounted.stderr.decode().strip()})")
        shutil.copytree(kept, folder, dirs_exist_ok=True, symlinks=True)
        yield folder
        shutil.copytree(folder, kept, dirs_exist_ok=True, symlinks=True, copy_function=shutil.copy)
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)


def fill(folder: Path, leave: int) -> Path:
    """Fill a small disk but for `leave` bytes; unlinking what is returned makes space again."""
    filler = folder / "filler"
    filler.write_bytes(bytes(max(shutil.disk_usage(folder).free - leave, 0)))
    return filler


def set_read_only(folder: Path, on: bool) -> None:
    subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", str(folder)], check=True)
