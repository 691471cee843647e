"""A finished run as an audit meets it: a folder with dvc.yaml, dvc.lock, params.yaml and what the nodes made.

Nothing here believes DVC's state database, which takes a file with an unchanged time stamp for unchanged: every hash
is of bytes read now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import chdir, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from larpo.audit.defaults import Defaults, defaults_of
from larpo.audit.draw import Draw
from larpo.audit.pack import PACK, Facts
from larpo.audit.pack.unpack import KEPT
from larpo.audit.record import UNREADABLE, Manifest, Source
from larpo.config.params import Params
from larpo.errors import UserError, one_line
from larpo.hashing import dvc_hash, file_hash, tree_hash_of
from larpo.load import load_params
from larpo.models.resolve import Checkpoint
from larpo.workspace.dvc import Declared, GraphNode, cache_folder, lister, read_graph
from larpo.workspace.dvc_lock import LOCK, Entry, LockedNode, read_lock
from larpo.workspace.foreign import sanitised, stand_in
from larpo.workspace.git import top_of

PARAMS = "params.yaml"
RECORDS = "data/inputs"
NO_FILE = "no file"
T = TypeVar("T")


class AuditedRun:
    """The run in `folder`.

    Attributes
    ----------
    lock
        What dvc.lock says was run.
    graph
        What dvc.yaml declares, in an order in which it can run.
    written
        params.yaml, checked, with the auditor's defaults.
    own
        Whether it is this user's: else nothing of it is executed unless that is asked for.
    repository
        Where Git finds its history: its folder, of a stranger's run the same folder of a sanitised copy; None where it
        lies in no repository.
    draw
        What its auditor draws by lot.
    """

    draw: Draw = Draw(0)

    def __init__(self, folder: str | Path, *, home: Path | None = None, cache: Path | None = None):
        """`home`: a scratch folder, for as long as the run is open; given for a stranger's run. `cache`: DVC's, where
        it is known to lie elsewhere."""
        self.folder, self.own, self.home, self._cache = Path(folder).resolve(), home is None, home, cache
        if not (self.folder / "dvc.yaml").is_file():
            raise UserError(f"{folder}: no dvc.yaml; expected the folder of a run")
        self.lock = read_lock(self.folder / LOCK)
        self.graph: dict[str, GraphNode] = read_graph(stand_in(self.folder, home) if home else self.folder)
        self._hashed: dict[Path, str] = {}
        self._made_once: dict[Callable, Any] = {}
        with chdir(self.folder):  # files that parameters name are named from there
            self.written: Params = load_params(self.folder / PARAMS)
        self.checkpoints: dict[str, Checkpoint] = {}  # those whose code was looked at, and may run

    def checkpoint(self, folder: str) -> Checkpoint:
        """A model of the run as what loads it takes it; code of its own runs where `checkpoints` has it."""
        return self.checkpoints.get(folder) or Checkpoint(folder)

    @cached_property
    def defaults(self) -> Defaults:
        """Its parameters with the defaults that it had, and which of them are not today's."""
        return defaults_of(self.written, self.manifests, self.repository)

    @property
    def params(self) -> Params:
        return self.defaults.params

    @cached_property
    def repository(self) -> Path | None:
        if self.home is None:
            return self.folder if top_of(self.folder) else None
        return sanitised(self.folder, {c for m in self.manifests.values() if (c := m.git.commit)}, self.home)

    @cached_property
    def producer(self) -> dict[str, str]:
        """Which node of dvc.lock makes a path."""
        return {path: node.name for node in self.nodes for path in node.outs}

    @cached_property
    def nodes(self) -> list[LockedNode]:
        """Locked nodes that dvc.yaml still declares, in the graph's order."""
        return [self.lock[name] for name in self.graph if name in self.lock]

    @cached_property
    def missing(self) -> list[str]:
        """Nodes of dvc.yaml that dvc.lock does not know."""
        return [name for name in self.graph if name not in self.lock]

    @cached_property
    def unfinished(self) -> str | None:
        """Of a run that has reported nothing yet, for its last nodes are not in dvc.lock: how far it is."""
        last = set(self.graph) - {need for node in self.graph.values() for need in node.needs}
        if not self.missing or not last <= set(self.missing):
            return None
        count = len(self.missing)
        return f"the run is not finished: {count} of {len(self.graph)} nodes have not run, {self.missing[0]} first"

    @cached_property
    def left_out(self) -> frozenset[str]:
        """Outputs that a pack was made without; dvc.lock still has their hashes."""
        path = self.folder / KEPT / PACK
        try:
            left_out = Facts.model_validate_json(path.read_bytes()).left_out if path.is_file() else []
            return frozenset(left.path for left in left_out)
        except (OSError, ValueError):
            raise UserError(f"{path}: not what `larpo unpack` writes; unpack the run again") from None

    def absent(self, path: str) -> bool:
        """Whether a pack was made without this output, and it is not here."""
        return path in self.left_out and not (self.folder / path).exists()

    @cached_property
    def declared(self) -> dict[str, Declared]:
        """What dvc.yaml says of each node."""
        return {name: node.declared for name, node in self.graph.items() if node.declared}

    @cached_property
    def sources(self) -> list[str]:
        """Dependencies that no node makes: code, and data that is given."""
        return sorted({path for node in self.nodes for path in node.deps if not self._made(path)})

    def _made(self, path: str) -> bool:
        """Whether a node makes it, what it lies in, or what lies in it (the report reads whole folders)."""
        within = self.around(path) is not None
        return path in self.producer or within or any(out.startswith(f"{path}/") for out in self.producer)

    def around(self, path: str) -> str | None:
        """The output that a path lies in; None where there is none."""
        return next((out for out in self.producer if path.startswith(f"{out}/")), None)

    def inputs_of(self, node: LockedNode) -> list[Source] | None:
        """What a node takes from outside, as the records of the node `inputs` that it depends on say; None where it
        depends on none.

        Raises
        ------
        UserError
            A record that cannot be read.
        """
        found: list[Source] | None = None
        for path in (p for p in node.deps if p.startswith(f"{RECORDS}/")):
            place = self.folder / path
            for file in sorted(place.rglob("*.json")) if place.is_dir() else [place]:
                try:
                    found = (found or []) + TypeAdapter(list[Source]).validate_json(file.read_bytes())
                except (OSError, ValueError) as error:
                    raise UserError(f"{path}: not a record of inputs ({one_line(error)[:120]})") from None
        return found

    @cached_property
    def given(self) -> list[Path]:
        """Files and folders from outside that the nodes' manifests name: data, models, the run's own code."""
        names = {path for m in self.manifests.values() for source in m.notes.sources for path in source.paths}
        return sorted(Path(os.path.normpath(self.folder / name)) for name in names)

    def manifest(self, node: LockedNode) -> Manifest:
        """The node's record of itself.

        Raises
        ------
        UserError
            None, or of another shape.
        """
        if node.manifest is None:
            raise UserError(f"{node.name}: dvc.lock names no manifest among its outputs")
        try:
            return Manifest.model_validate_json((self.folder / node.manifest).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "content"
            raise UserError(f"{node.manifest}: not a node's manifest: {where}: {first['msg']}") from None
        except OSError as error:
            raise UserError(f"{node.manifest}: not a readable manifest ({error})") from None

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """Those that can be read, by node."""
        readable = {}
        for node in self.nodes:
            with suppress(UserError):
                readable[node.name] = self.manifest(node)
        return readable

    def recorded(self, name: str) -> Manifest:
        """A node's manifest, or UNREADABLE."""
        return self.manifests.get(name, UNREADABLE)

    @cached_property
    def files(self) -> Callable[[str], list[str]]:
        """Names of the files in a folder as DVC sees it (.dvcignore left out), relative to it, sorted."""
        return lister(self.folder)

    def file_md5(self, place: Path) -> str:
        """MD5 of a file's bytes; several checks ask, and weights are read once."""
        if place not in self._hashed:
            self._hashed[place] = file_hash(place)
        return self._hashed[place]

    def md5(self, path: str) -> str | None:
        """The md5 that DVC would record for what lies there now; None where nothing does."""
        place = self.folder / path
        if place.is_dir():
            # Opening a pipe would wait for ever; a link to nothing has no content. Neither was ever an output.
            names = {name: place / name for name in self.files(path)}
            return dvc_hash({name: self.file_md5(p) if p.is_file() else NO_FILE for name, p in names.items()})
        return self.file_md5(place) if place.is_file() else None

    def tree_hash(self, path: str) -> str | None:
        """`larpo.hashing.tree_hash`, which manifests hold, of what lies there now; None where nothing does."""
        place = self.folder / path
        if not place.exists():
            return None
        if place.is_file():
            return self.file_md5(place)
        files = sorted(p for p in place.rglob("*") if p.is_file())
        return tree_hash_of({p.relative_to(place).as_posix(): self.file_md5(p) for p in files})

    def once(self, make: Callable[[AuditedRun], T]) -> T:
        """What `make` makes of this run: several checks need it, and it may take long."""
        if make not in self._made_once:
            self._made_once[make] = make(self)
        return self._made_once[make]

    @cached_property
    def evaluated(self) -> list[tuple[str, str]]:
        """Every benchmark with every policy that is measured on it."""
        return [(b, p) for b in self.params.benchmarks for p in self.params.evaluate.policies]

    @cached_property
    def licence(self) -> str | None:
        """Name of the repository's licence file."""
        return next(iter(sorted(p.name for p in self.folder.glob("LICEN[CS]E*") if p.is_file())), None)

    @cached_property
    def cache(self) -> Path:
        """DVC's cache of this project; a stranger's is looked for where an unpacked run has it."""
        return self._cache or (cache_folder(self.folder) if self.own else self.folder / ".dvc/cache")

    def object(self, md5: str) -> Path:
        """Where the cache keeps what has that hash."""
        return self.cache / "files" / "md5" / md5[:2] / md5[2:]

    def cached(self, md5: str) -> Path | None:
        """The cache's object of that hash, if it is there and really has it."""
        place = self.object(md5)
        return place if place.is_file() and file_hash(place) == md5.removesuffix(".dir") else None

    def listing(self, entry: Entry) -> dict[str, str] | None:
        """File name → md5 of a folder as it was recorded: from the cache, or put together of what nodes made in it;
        None where neither is known."""
        if (place := self.cached(entry.md5)) is not None:
            return {e["relpath"]: e["md5"] for e in json.loads(place.read_text("utf-8"))}
        if entry.path in self.producer:
            return None
        names: dict[str, str] = {}
        for node in self.nodes:
            for path, out in node.outs.items():
                if path.startswith(f"{entry.path}/"):
                    name = path[len(entry.path) + 1 :]
                    inside = self.listing(out) if out.md5.endswith(".dir") else {"": out.md5}
                    names |= {f"{name}/{n}" if n else name: md5 for n, md5 in (inside or {}).items()}
        return names if dvc_hash(names) == entry.md5 else None
