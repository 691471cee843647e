"""What every node shares: its declaration, a scratch folder, atomic publishing, a manifest, progress, one-line errors.

A node takes its inputs, outputs and parameters from its stage in dvc.yaml, works in scratch/NODE/KEY (outside its
outputs, because DVC deletes outputs before a stage starts), and publishes by renaming into place. KEY is a hash of
inputs and parameters: scratch of other inputs is never resumed.

    with Node("lists", "1") as node:             # stage lists@1
        candidates = tables.read("candidates", node["candidates"])
        table = ...                              # long nodes keep finished parts under node.scratch
        tables.write(table, "lists", node.out("lists"))
        node.rows(read=len(candidates), written=len(table), dropped={"reason": 3})
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

from larpo.config.sections import SourceParams
from larpo.errors import MachineError, UserError, at, one_line
from larpo.graph import Stage, missing, read_stages, unroll, value_at
from larpo.hashing import digest, file_hashes, tree_hash, tree_hash_of
from larpo.load import load_params
from larpo.models import remote_code
from larpo.models.resolve import Checkpoint
from larpo.registry import own_code, own_modules
from larpo.sources import hub, provenance
from larpo.workspace.dvc_lock import check_recorded, plain
from larpo.workspace.files import write_json
from larpo.workspace.git import git_state
from larpo.workspace.lock import Lock
from larpo.workspace.machine import hardware, package_versions
from larpo.workspace.progress import say
from tasks.frame.files import check_writable, disk_fault, publish

SCRATCH, DATA = Path("scratch"), Path("data")
CODE, MANIFEST = ("larpo/", "tasks/"), ".manifest.json"
RECORDS = DATA / "inputs"
"""What the node `inputs` found outside; a node takes the commits of the hub that its records name."""


class Node:
    """One execution of one node. Outputs appear only when the `with` block ends without an error.

    Parameters
    ----------
    kind, key
        As in dvc.yaml: `Node("sample", "1")` is stage `sample@1`; an empty key is a single stage.

    Attributes
    ----------
    params
        All parameters, checked; those that the stage declares are recorded and tell its scratch from others'.
    seed
        For the record; a node that draws sets it.

    Raises
    ------
    UserError
        params.yaml is wrong, or makes no such stage.
    """

    def __init__(self, kind: str, key: str = ""):
        self.params = load_params()
        settings = self.params.model_dump(mode="json")
        graph = read_stages()
        stages = unroll(graph, settings)
        self.stage = f"{kind}@{key}" if key else kind
        if self.stage not in stages:
            raise missing(kind, key, graph, settings)
        declared = stages[self.stage]
        self.inputs = [Path(plain(path, Path.cwd())) for path in data_of(declared, stages)]
        self.code = [Path(path) for path in declared.deps if path.startswith(CODE)]
        (self.manifest_path,) = (Path(path) for path in declared.outs if path.endswith(MANIFEST))
        self.outputs = [path for path in map(Path, declared.outs) if path != self.manifest_path]
        # An empty key is the whole file.
        dotted = [inner for key in declared.params for inner in ([key] if key else settings)]
        self.settings = {key: value_at(settings, key, "params.yaml") for key in dotted}
        self.seed: int | None = None
        # Of several processes (tasks/frame/launch.py) the first one clears, writes and publishes.
        self.leads = os.environ.get("RANK", "0") == "0"
        self._keeps = self._kept = False
        self._lock = Lock(SCRATCH / f"{self.stage}.lock", self.stage)
        self._held = contextlib.ExitStack()
        self._rows: dict[str, Any] = {}
        self._notes: dict[str, Any] = {}
        # The models that it reads, with what of their own code may run.
        self.checkpoints: dict[str, Checkpoint] = {}

    def __getitem__(self, name: str | tuple[str, ...]) -> str:
        """The input of that name: `lists` is data/lists/1.parquet, `("policy", "0")` is data/policy/0."""
        return self._one(self.inputs, name, "").as_posix()

    def checkpoint(self, name: str | tuple[str, ...]) -> Checkpoint:
        """The input of that name, a model, as what loads it takes it: its own code runs only where params.yaml says
        so."""
        return self.checkpoints.get(self[name]) or Checkpoint(self[name])

    @cached_property
    def sources(self) -> list[provenance.Source]:
        """What it takes from outside, as the records among its inputs name it."""
        paths = [p for p in self.inputs if p.is_relative_to(RECORDS)]
        files = [f for p in paths for f in (sorted(p.rglob("*.json")) if p.is_dir() else [p])]
        try:
            return [source for file in files for source in json.loads(file.read_text("utf-8"))]
        except (OSError, ValueError) as error:
            raise UserError(f"{RECORDS}: not what `inputs` wrote ({one_line(error)}); run `dvc repro inputs`") from None

    def __enter__(self) -> Node:
        self._started, self._wall = datetime.now(UTC), time.perf_counter()
        for path in self.inputs:
            if not path.exists():
                raise UserError(
                    f"{path}: not found, needed by {self.stage}; run `dvc repro {self.stage}` or `dvc pull`"
                )
        if self.leads:
            self._lock.acquire()
        self._held.callback(self._lock.release)
        try:
            self._held.enter_context(hub.pinned(self.sources))
            self._open()
        except BaseException:
            self._held.close()
            raise
        return self

    def _open(self) -> None:
        hashes = {p: file_hashes(p) for p in self.inputs}
        if self.leads:
            check_recorded(hashes, self.stage)
        self.input_hashes = {p.as_posix(): tree_hash_of(found) for p, found in hashes.items()}
        self.identity = digest(self.stage, self.input_hashes, self.settings)
        home = SCRATCH / self.stage
        self.scratch = home / self.identity
        if home.exists() and self.leads:
            # Scratch of other inputs can never be used again; keeping it would only fill the disk.
            for old in home.iterdir():
                if old != self.scratch:
                    shutil.rmtree(old, ignore_errors=True)
        self.resumed = self.scratch.exists()
        (self.scratch / "publish").mkdir(parents=True, exist_ok=True)
        for path in self.inputs:
            if (path / remote_code.CONFIG).is_file():  # a policy, or a reward model
                permission = self.params.may_run_code(path.as_posix())
                self.checkpoints[path.as_posix()] = remote_code.admit(path, *permission, within=self.scratch)
        if self.leads:  # told now rather than after hours of work
            for path in (*self.outputs, self.manifest_path):
                links = (p for p in (path, *path.parents) if p.is_symlink() and p.is_dir())
                if link := next((p for p in links if not p.resolve().is_relative_to(Path.cwd().resolve())), None):
                    raise UserError(
                        f"{link}: a link out of the project, and DVC takes no output of {self.stage} behind it; remove "
                        "it (for space elsewhere: `dvc cache dir FOLDER` and `dvc config cache.type symlink`)"
                    )
                check_writable(path.parent)

    def out(self, name: str, ending: str = "") -> Path:
        """Scratch place for the output of that name, cleared; it is renamed to its path at the end. `ending` tells
        several outputs of one name apart."""
        place = self.place(name, ending)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and self.leads:
            shutil.rmtree(place)
        return place

    def place(self, name: str, ending: str = "") -> Path:
        """The same place, with what a killed node left there."""
        return self.scratch / "publish" / self._one(self.outputs, name, ending)

    def _one(self, paths: list[Path], name: str | tuple[str, ...], ending: str) -> Path:
        """The path that lies at or under data/NAME, or is NAME."""
        home = Path(name) if isinstance(name, str) else Path(*name)
        found = [
            path
            for path in paths
            if {home, DATA / home} & {path, path.with_suffix(""), *path.parents} and path.name.endswith(ending)
        ]
        if len(found) != 1:
            raise ValueError(f"{self.stage}: {home} {ending} names {len(found)} of {', '.join(map(str, paths))}")
        return found[0]

    def rows(self, read: int, written: int, dropped: dict[str, int] | None = None) -> None:
        """Record rows in, rows out, and rows dropped by reason."""
        self._rows = {"in": read, "out": written, "dropped": dropped or {}}

    def keep_if_unchanged(self) -> bool:
        """Leave what lies there, and the record of who made it, where the same code would put the same in its place.
        Returns whether it does; called when all outputs are there."""
        self._keeps = True
        self._kept = self._is_kept(self._manifest())
        return self._kept

    def note(self, **facts: Any) -> None:
        """Record further facts (an engine's settings, a reward's identity) in the manifest."""
        self._notes.update(facts)

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self.leads:
                self._publish()
        finally:
            self._held.close()

    def _publish(self) -> None:
        missing = [p for p in self.outputs if not (self.scratch / "publish" / p).exists()]
        if missing:
            raise RuntimeError(f"{self.stage} made no {', '.join(map(str, missing))}")
        if self._kept:
            shutil.rmtree(self.scratch, ignore_errors=True)
            return
        record = self._manifest()
        # Killed from here on, old outputs must not stand beside a new manifest, nor new ones beside an old.
        self.manifest_path.unlink(missing_ok=True)
        for path in self.outputs:
            publish(self.scratch / "publish" / path, path)
        write_json(self.manifest_path, record)
        shutil.rmtree(self.scratch, ignore_errors=True)
        rows = self._rows
        dropped = ", ".join(f"{n} {reason}" for reason, n in rows.get("dropped", {}).items())
        counts = f"{rows['in']} rows in, {rows['out']} out" + (f" ({dropped})" if dropped else "") if rows else ""
        say(f"{self.stage}: done in {record['seconds']:.1f} s" + (f", {counts}" if counts else ""))

    def _is_kept(self, record: dict[str, Any]) -> bool:
        """Whether the outputs that lie there were made of the same by the same code."""
        try:
            before = json.loads(self.manifest_path.read_text("utf-8"))
            same = all(before[key] == record[key] for key in ("inputs", "params", "outputs"))
            lying = {path.as_posix(): tree_hash(path) for path in self.outputs}
            same &= before["notes"]["code"] == record["notes"]["code"] and lying == record["outputs"]
            return same and not (_uncommitted(before) and not _uncommitted(record))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _manifest(self) -> dict[str, Any]:
        if self._keeps:
            files = {(p / name).as_posix(): md5 for p in self.code for name, md5 in file_hashes(p).items()}
            self.note(code=digest({path: md5 for path, md5 in files.items() if "__pycache__" not in path}))
        if self.sources:
            self.note(sources=[provenance.with_licence(source) for source in self.sources])
        ran = {"remote_code": remote_code.record(self.checkpoints.values()), "own_code": own_modules()}
        return {
            "node": self.stage,
            "inputs": self.input_hashes,
            "params": self.settings,
            "outputs": {p.as_posix(): tree_hash(self.scratch / "publish" / p) for p in self.outputs},
            "seed": self.seed,
            "rows": self._rows,
            "notes": self._notes | {name: code for name, code in ran.items() if code},
            "git": git_state(),
            "packages": package_versions(),
            "hardware": hardware(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._wall, 3),
            "resumed": self.resumed,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _uncommitted(record: dict[str, Any]) -> bool:
    """Whether a manifest says that code differed from its commit: once it is committed the record is made anew."""
    return any(path.startswith((*CODE, "dvc.yaml")) for path in record["git"]["changed"] or [])


def data_of(stage: Stage, stages: dict[str, Stage]) -> list[str]:
    """What a stage reads apart from code: a folder that other stages write into is what they make in it, records
    excluded."""
    made = [out for other in stages.values() for out in other.outs if not out.endswith(MANIFEST)]
    paths = (dep.rstrip("/") for dep in stage.deps if not dep.startswith(CODE))
    found = (path for dep in paths for path in ([out for out in made if out.startswith(f"{dep}/")] or [dep]))
    return list(dict.fromkeys(found))


def command(function: Callable[..., None]) -> None:
    """Run a node's function as a command: options from its signature, one line and exit code 2 on bad input, one line
    and exit code 1 where the disk is full or the like, no traceback for what a user can mend."""

    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            with at(file="params.yaml"), own_code():
                function(*args, **kwargs)
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            raise typer.Exit(2) from None
        except MachineError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise typer.Exit(1) from None
        except Exception as error:
            line = disk_fault(error, SCRATCH, DATA)
            if line is None:
                raise
            print(f"error: {line}", file=sys.stderr, flush=True)
            raise typer.Exit(1) from None

    guarded.__doc__, guarded.__annotations__ = function.__doc__, function.__annotations__
    guarded.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(guarded)
    app()


def say_repeated(node: Node, dropped: Mapping[str, int], source: SourceParams) -> None:
    """Of rows that repeat a prompt with another answer no one can tell which is right: said, beside the count."""
    if again := dropped.get("other_answer"):
        say(
            f"{node.stage}: {again} rows repeat a prompt with another answer or solution, and are dropped: of such "
            f"rows the first in the seed's order counts; mend them in {source.dataset or 'the source'}"
        )
