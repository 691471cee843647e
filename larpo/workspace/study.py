"""Runs of a study: each in a clone of its own, with a record of what it measured.

A record counts only while everything that its numbers depend on is as it was. `identity` is taken in the clone itself,
so an edit of the project in the middle of a study cannot pass for what was run.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from larpo.config import yaml12
from larpo.hashing import digest, file_hash
from larpo.studies import Run
from larpo.studies.results import read_run
from larpo.studies.spec import Source
from larpo.workspace.clone import Workspace, named_paths
from larpo.workspace.dvc import read_graph, select
from larpo.workspace.files import write_json
from larpo.workspace.git import git_state
from larpo.workspace.lock import Lock
from larpo.workspace.processes import Commands
from larpo.workspace.repro import Repro

KEPT = Path(".larpo/studies")
# What a run computes from, beside its parameters. How studies are planned, run and shown does not change a number.
SOURCES = ("dvc.yaml", "larpo/**/*", "tasks/**/*", "data/samples/**/*")
NO_SOURCES = (
    "larpo/studies/",
    "larpo/plan/",
    "larpo/config/overlays",
    "larpo/report/",
    "larpo/audit/",
    "larpo/workspace/",
    "tasks/report.py",
    "tasks/frame/warm.py",
)
ALL_THE_SAME = ("larpo/report/hardness.py",)
"""Of those folders, what measures read."""


def alone(project: Path, study: str, scale: str) -> Lock:
    """One process at a time works on a study: runs have clones of fixed names."""
    return Lock(project / KEPT / f"{study}-{scale}.lock", f"study {study} at scale {scale}")


class Runner:
    """Runs of one study in one project; `stop` ends those that are under way."""

    def __init__(self, project: Path, sources: dict[str, Source], environment: dict[str, str], declared: str = ""):
        self.project, self.sources, self.environment, self.declared = project, sources, environment, declared
        # Git locks its index, and DVC is read in this process: one at a time.
        self._alone = threading.Lock()
        self._commands = Commands()
        self._code: dict[Path, dict[str, str]] = {}

    def record(self, run: Run) -> Path:
        return self.project / KEPT / f"{run.study}-{run.scale}" / f"{run.cell}-s{run.seed}.json"

    def identity(self, run: Run, folder: Path) -> str:
        """Of all that a run's numbers depend on, as it lies in `folder`."""
        if folder not in self._code:
            files = {path for pattern in SOURCES for path in folder.glob(pattern) if path.is_file()}
            names = {path.relative_to(folder).as_posix(): path for path in files if path.suffix != ".pyc"}
            counts = [n for n in sorted(names) if n in ALL_THE_SAME or not n.startswith(NO_SOURCES)]
            self._code[folder] = {n: file_hash(names[n]) for n in counts}
        measured = {
            name: s.model_dump(include={"file", "key", "policies", "crossing"}) for name, s in self.sources.items()
        }
        # A local dataset changes what a run measures as code does.
        named = {p.as_posix(): file_hash(p) for p in named_paths(run.params, self.project) if p.is_file()}
        return digest("study run", run.params, run.policy, measured, named, self._code[folder])

    def finished(self, run: Run) -> dict[str, Any] | None:
        """What a run measured, if it was made from what lies in the project now."""
        path = self.record(run)
        kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return kept if kept.get("identity") == self.identity(run, self.project) else None

    def run(self, run: Run, kinds: tuple[str, ...], only_shared: bool, say: Callable[[str], None]) -> dict | None:
        """Bring `kinds` of the run's graph up to date; saves it as an experiment and returns what it measured.

        With `only_shared` it stops after the nodes that all seeds share, and saves nothing: made before runs go side
        by side, none of them is made twice.
        """
        workspace = Workspace(self.project, run.name)
        start = time.monotonic()
        with self._alone:
            workspace.open(yaml12.write(run.params))
            graph = select(read_graph(workspace.folder), [*kinds])
            self._code.pop(workspace.folder, None)
            identity = self.identity(run, workspace.folder)
        nodes = [n.name for n in graph.values() if not only_shared or n.meta.shared]
        if nodes:
            Repro(workspace.folder, self._commands, self.environment).run_all(nodes, say)
        if only_shared:
            return None
        measured = read_run(workspace.folder, self.sources, run.policy)
        with self._alone:
            workspace.save(nodes)
            workspace.close()
        kept = {
            "identity": identity,
            "cell": run.cell,
            "seed": run.seed,
            "declared": self.declared,
            "experiment": run.name,
            "git": git_state(),
            "values": measured,
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(self.record(run), kept)
        return kept

    def stop(self) -> None:
        """End every run that is under way; runs asked for later are refused."""
        self._commands.stop()
