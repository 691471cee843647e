"""Code that a run's checkpoints bring along: whether an audit may run it, and what the run says of it."""

from collections.abc import Iterator, Sequence

from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude
from larpo.errors import UserError
from larpo.models import remote_code

NAME = "code of checkpoints"


def untrusted(run: AuditedRun, folders: Sequence[str], trusted: bool, classes: Sequence[str]) -> str | None:
    """Why the checkpoints in `folders` cannot be loaded by these of transformers' Auto classes; None where they can,
    and `run.checkpoints` has them, with their code, where they bring some. The run's folder is the working folder."""
    for folder in folders:
        if references := remote_code.references(folder, classes):
            if not trusted:
                brought = f"{folder} brings custom code ({remote_code.names_of(references)})"
                return f"{brought} and the run is not this project's; it is executed with --again alone"
            try:
                run.checkpoints[folder] = remote_code.admit(folder, *run.params.may_run_code(folder))
            except UserError as error:
                return str(error)
    return None


def check_code(run: AuditedRun) -> Iterator[Check]:
    """Of a run whose checkpoints bring code: each node that had one recorded the files that lie there, by SHA-256."""
    failures, executed, count = [], {}, 0
    for node in run.nodes:
        # A node that makes a checkpoint puts the code that it ran into it.
        folders = [p for p in (*node.deps, *node.outs) if p == "data/reward" or p.startswith("data/policy/")]
        here: dict[str, str] = {}
        for folder in folders:
            if (run.folder / folder).is_dir():
                try:
                    here |= remote_code.hashes_of(remote_code.files_of(run.folder / folder))
                except UserError as error:
                    failures.append(f"{node.name}: {error}")
        recorded = run.recorded(node.name).remote_code
        if not here and not recorded:
            continue
        count += 1
        executed |= recorded
        absent = any(not (run.folder / folder).is_dir() for folder in folders)
        if here != recorded and not absent:
            differ = sorted(n for n in here.keys() | recorded.keys() if here.get(n) != recorded.get(n))
            failures.append(f"{node.manifest}: notes.remote_code is not what lies there: {', '.join(differ)}")
    if count:
        files = ", ".join(f"{name} sha256 {digest[:12]}" for name, digest in sorted(executed.items()))
        detail = f"{count} nodes executed code that a checkpoint brought: {files or 'none recorded'}"
        yield conclude("lineage", NAME, count, detail, failures)
