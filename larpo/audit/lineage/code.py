"""Code that a run's checkpoints bring along: whether an audit may run it, and what the run says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, judged
from larpo.errors import UserError
from larpo.models import remote_code

NAME = "code of checkpoints"


def untrusted(run: AuditedRun, folders: Sequence[str], trusted: bool, classes: Sequence[str]) -> str | None:
    """Why the checkpoints in `folders` cannot be loaded by these of transformers' Auto classes; None where they can,
    and `run.checkpoints` has them, with their code, where they bring some. The run's folder is the working folder."""
    for folder in folders:
        if brought := remote_code.references(folder, classes):
            if not trusted:
                return (
                    f"{folder} brings custom code ({remote_code.names_of(brought)}) and the run is not this project's; "
                    "it is executed with --again alone"
                )
            try:
                run.checkpoints[folder] = remote_code.admit(folder, *run.params.may_run_code(folder))
            except UserError as error:
                return str(error)
    return None


def check_code(run: AuditedRun, manifests: dict[str, dict[str, Any]]) -> Iterator[Check]:
    """Of a run whose checkpoints bring code: each node that had one recorded the files that lie there, by SHA-256."""
    failures, told, count = [], {}, 0
    for node in run.nodes:
        # A node that makes a checkpoint puts the code that it ran into it.
        near = [*node.deps, *node.outs]
        folders = [p for p in near if p == "data/reward" or p.startswith("data/policy/")]
        found: dict[str, str] = {}
        for folder in folders:
            if (run.folder / folder).is_dir():
                try:
                    found |= remote_code.hashes_of(remote_code.files_of(run.folder / folder))
                except UserError as error:
                    failures.append(f"{node.name}: {error}")
        recorded = executed(manifests.get(node.name, {}))
        if not found and not recorded:
            continue
        count += 1
        told |= recorded
        absent = any(not (run.folder / folder).is_dir() for folder in folders)
        if found != recorded and not absent:
            differ = sorted(n for n in found.keys() | recorded.keys() if found.get(n) != recorded.get(n))
            failures.append(f"{node.manifest}: notes.remote_code is not what lies there: {', '.join(differ)}")
    if count:
        files = ", ".join(f"{name} sha256 {digest[:12]}" for name, digest in sorted(told.items()))
        detail = f"{count} nodes executed code that a checkpoint brought: {files or 'none recorded'}"
        yield judged("lineage", NAME, count, detail, failures)


def executed(manifest: dict[str, Any]) -> dict[str, str]:
    """SHA-256 by file of the code of checkpoints that a node says it let run."""
    noted = manifest.get("notes", {}).get("remote_code", {})
    return {name: digest for files in noted.values() for name, digest in files.items()}
