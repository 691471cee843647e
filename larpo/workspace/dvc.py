"""DVC, asked in one place: the graph as it reads dvc.yaml, what it ignores, its commands."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import psutil

from larpo.errors import UserError, nearest
from larpo.graph import Meta, kinds, read_meta
from larpo.workspace.dvc_lock import LOCK, PAUSE, TRIES, plain
from larpo.workspace.processes import makers

# -P: a module of the folder's (it may be a stranger's run) must not stand in for one of ours.
COMMAND = (sys.executable, "-P", "-m", "dvc", "--wait-for-lock")


def environment() -> dict[str, str]:
    """This process's, as DVC's commands and its stages need it."""
    # Stages call `python`: the one that runs this must come first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}


def dvc(folder: Path, *arguments: str) -> str:
    """Output of one DVC command, run in `folder`; RuntimeError with DVC's own words where it fails."""
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def cache_folder(folder: Path) -> Path:
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        return Path(repo.cache.local_cache_dir)


def at_work(folder: Path) -> str | None:
    """The DVC command that is making an output of the project now; None where none is."""
    for path, process in makers(folder).items():
        with contextlib.suppress(psutil.Error):  # it was killed
            if "dvc" in " ".join(psutil.Process(process).cmdline()):
                return f"process {process} makes {os.path.relpath(path, folder)}"
    return None


def share_cache(project: Path, clone: Path) -> None:
    """Let the project in `clone` use the cache of `project`."""
    path = clone / ".dvc/config.local"
    held = path.read_text("utf-8").splitlines() if path.is_file() else []
    _configure(clone, {"cache": {"dir": str(cache_folder(project))}}, held)


def own_cache(folder: Path, cache: Path | None = None) -> None:
    """Let the project in `folder` use the cache that lies in it, or `cache`, whatever its committed configuration
    says."""
    from dvc.dirs import site_cache_dir

    paths = {"core": {"site_cache_dir": site_cache_dir()}, "cache": {"dir": str(cache or "cache")}}
    # `%(` would stand for another value, and nothing writes it as itself; without a setting DVC's default holds.
    sections = {name: {k: v for k, v in values.items() if "%(" not in v} for name, values in paths.items()}
    sections["core"]["analytics"], sections["cache"]["type"] = "false", "reflink,copy"
    _configure(folder, sections, [])


def _configure(folder: Path, sections: dict[str, dict[str, str]], held: list[str]) -> None:
    """Write sections over the lines `held` as the local configuration of the project in `folder`."""
    from configobj import ConfigObj  # what DVC reads it with: a path may hold a comma or a quote

    local = ConfigObj(held)
    for section, values in sections.items():
        local[section] = {**local.get(section, {}), **values}
    (folder / ".dvc/config.local").write_text("\n".join(local.write()) + "\n", "utf-8")


@dataclass(frozen=True)
class Declared:
    """One stage of dvc.yaml, its templates resolved. `params`: file → dotted keys, none for a file tracked whole."""

    cmd: str
    deps: frozenset[str]
    outs: frozenset[str]
    params: dict[str, list[str]]


@dataclass(frozen=True)
class GraphNode:
    """One stage. `kind` is what precedes `@`: `sample` of `sample@1`, `evaluate` of `evaluate@0-held_out`."""

    name: str
    kind: str
    needs: tuple[str, ...]
    meta: Meta = field(default_factory=Meta)
    declared: Declared | None = field(default=None, compare=False)


def node_name(root: Path, stage: Any) -> str:
    """As `dvc repro` names it in the project's folder; `Stage.addressing` follows the working folder."""
    file = Path(stage.path).relative_to(root).as_posix()
    return stage.name if file == "dvc.yaml" else f"{file}:{stage.name}" if hasattr(stage, "name") else file


def kind_of(name: str) -> str:
    return name.rsplit(":", 1)[-1].split("@", 1)[0]


def read_graph(folder: str | Path = ".") -> dict[str, GraphNode]:
    """Every stage that has a command, each after all that it needs, otherwise in the order of dvc.yaml. What is said of
    its kind comes from this project's dvc.yaml (an audited run may be older), else from that of `folder`.

    Raises
    ------
    UserError
        No DVC project here, or dvc.yaml is wrong (syntax, a cycle, an output declared twice).
    """
    from dvc.exceptions import DvcException

    for attempt in range(1, TRIES + 1):
        try:
            return _graph(folder)
        except DvcException as error:
            if attempt == TRIES or not _just_written(Path(folder, LOCK)):
                raise UserError(f"dvc.yaml: {' '.join(str(error).split())}") from None
            time.sleep(PAUSE)
    raise AssertionError("the last attempt returns or raises")


def _just_written(lock: Path) -> bool:
    """Whether another DVC may be writing it: in place, so that a part is seen."""
    try:
        return time.time() - lock.stat().st_mtime < TRIES * PAUSE
    except OSError:
        return False


def _graph(folder: str | Path) -> dict[str, GraphNode]:
    from dvc.repo import Repo

    known = kinds()
    with Repo(str(folder)) as repo:
        graph = repo.index.graph  # edges go from a stage to what it needs
        name = partial(node_name, Path(repo.root_dir))
        place = {stage: i for i, stage in enumerate(repo.index.stages)}
        order = nx.lexicographical_topological_sort(graph.reverse(), key=place.__getitem__)
        # Stages without a command (data added by `dvc add`) have nothing to run.
        return {
            name(stage): GraphNode(
                name(stage),
                kind_of(name(stage)),
                tuple(name(need) for need in sorted(graph.successors(stage), key=place.__getitem__) if need.cmd),
                known.get(kind_of(name(stage))) or read_meta(kind_of(name(stage)), stage.meta),
                _declared(stage),
            )
            for stage in order
            if stage.cmd
        }


def _declared(stage: Any) -> Declared:
    from dvc.dependency import ParamsDependency

    return Declared(
        stage.cmd,
        frozenset(plain(d.def_path) for d in stage.deps if not isinstance(d, ParamsDependency)),
        frozenset(plain(o.def_path) for o in stage.outs),
        {d.def_path: list(d.params) for d in stage.deps if isinstance(d, ParamsDependency)},
    )


def lister(folder: Path) -> Callable[[str], list[str]]:
    """A function from a folder's path below `folder` to the names of its files as DVC sees them (.dvcignore left out),
    relative to it, sorted."""
    from dvc.fs import LocalFileSystem
    from dvc.ignore import DvcIgnoreFilter

    ignore = DvcIgnoreFilter(LocalFileSystem(), str(folder))  # as of DVC's Repo, which would read its settings

    def files(path: str) -> list[str]:
        root, names = str(folder / path), []
        for here, _, inside in ignore.walk(LocalFileSystem(), root):
            names += [os.path.relpath(os.path.join(here, name), root).replace(os.sep, "/") for name in inside]
        return sorted(names)

    return files


def select(graph: dict[str, GraphNode], targets: list[str] | None) -> dict[str, GraphNode]:
    """The targets with everything they need, in order; a target is a node or a kind. None: the whole graph.

    Raises
    ------
    UserError
        A target that is neither.
    """
    if not targets:
        return dict(graph)
    wanted: list[str] = []
    for target in targets:
        found = [target] if target in graph else [n.name for n in graph.values() if n.kind == target]
        if not found:
            known = [*graph, *{node.kind for node in graph.values()}]
            raise UserError(f"target {target!r} is not a node of dvc.yaml{nearest(target, known)}")
        wanted += found
    keep: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in keep:
            keep.add(name)
            wanted += graph[name].needs
    return {name: node for name, node in graph.items() if name in keep}
