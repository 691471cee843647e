"""The code that the run executed against the auditor's own, file by file.

A node executed again runs the run's code, which makes the same numbers again whatever it does. So what differs from
the code that the auditor installed is listed, with the nodes that it could touch. Where the auditor computes a node's
outputs with their own code, another one there has changed nothing; of a node that only an execution tells about, the
difference has to be read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import larpo
from larpo.audit.chain import only_executed
from larpo.audit.lineage.commits import Commit
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude
from larpo.config.yaml12 import UNREADABLE, parse
from larpo.errors import UserError
from larpo.hashing import file_hashes

PART, NAME = "lineage", "their code is the auditor's"
GRAPH = "dvc.yaml"
EXECUTED = ("larpo", "tasks")
NEVER = ("larpo/audit/", "larpo/plan/", "larpo/studies/")
"""Rooms that no node enters."""
SHOWN = 3


def stages(graph: bytes | None) -> dict[str, Any]:
    """Stages as they are written in dvc.yaml, without what is only said of them; none where it cannot be read."""
    try:
        declared = parse(graph or b"")["stages"]
        for stage in declared.values():
            for part in (stage, stage.get("do", {})):
                part.pop("desc", None), part.pop("meta", None)
        return declared
    except (*UNREADABLE, LookupError, TypeError, AttributeError):
        return {}


def their_code(run: AuditedRun) -> Check:
    root = Path(larpo.__file__).resolve().parents[1]
    ours = {f"{top}/{name}": md5 for top in EXECUTED for name, md5 in file_hashes(root / top).items()}
    graph = stages((root / GRAPH).read_bytes())
    declared = {path for stage in graph.values() for path in stage.get("do", stage).get("deps", [])}
    only, files, touched, unread = {n.name for n in only_executed(run)}, set[str](), {}, []
    for name in dict.fromkeys(m.git.commit for m in run.manifests.values() if m.git.commit):
        nodes = [node for node in run.nodes if run.recorded(node.name).git.commit == name]
        try:
            commit = Commit(run.repository, name)
            theirs = {f"{top}/{file}": md5 for top in EXECUTED for file, md5 in commit.files(top).items()}
            other = stages(commit.content(GRAPH))
        except UserError as error:
            unread.append(str(error))
            continue
        files |= theirs.keys()
        for file in sorted(_code(theirs.keys() | ours.keys())):
            if theirs.get(file) != ours.get(file):
                inside = _inside(file, declared)
                touched.setdefault(file, set()).update(
                    n.name for n in nodes if not inside or _inside(file, set(n.deps))
                )
        for node in nodes:
            kind = run.graph[node.name].kind
            if other.get(kind) != graph.get(kind):
                touched.setdefault(f"{GRAPH}, stage {kind}", set()).add(node.name)
    touched = {file: nodes for file, nodes in touched.items() if nodes}
    rests = {file: _listed(nodes & only, run) for file, nodes in touched.items() if nodes & only}
    behind = [f"{file} is not the auditor's and could touch {names}" for file, names in rests.items()]
    detail = f"{len(files)} files of {len(EXECUTED)} packages against those of the auditor's larpo"
    if touched:
        some = [f"{file} ({_listed(nodes, run)})" for file, nodes in list(touched.items())[:SHOWN]]
        detail += f"; {len(touched)} differ: {', '.join(some)}{' …' if len(touched) > SHOWN else ''}"
    return conclude(PART, NAME, len(files), detail, unread, behind)


def _code(files: Iterable[str]) -> list[str]:
    return [f for f in files if "__pycache__" not in f and not f.startswith(NEVER)]


def _inside(file: str, paths: set[str]) -> bool:
    return any(file == path or file.startswith(f"{path}/") for path in paths)


def _listed(nodes: set[str], run: AuditedRun) -> str:
    names = [node.name for node in run.nodes if node.name in nodes]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
