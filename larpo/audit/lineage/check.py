"""Where every input came from: its producer's recorded output, a commit's code, or a named source."""

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from larpo.audit.compare.values import ABSENT, different_values, value_at
from larpo.audit.lineage.code import check_code
from larpo.audit.lineage.commits import CODE, Commit
from larpo.audit.lineage.ours import GRAPH, stages, their_code
from larpo.audit.open import RECORDS, AuditedRun
from larpo.audit.record import Source
from larpo.audit.results import Check, conclude, unchecked
from larpo.errors import UserError, one_line
from larpo.hashing import dvc_hash, file_hash, tree_hash
from larpo.workspace.dvc_lock import LOCK, LockedNode, plain

PART = "lineage"
CHECKED = (*CODE, GRAPH)


def check_lineage(run: AuditedRun) -> Iterator[Check]:
    yield manifests(run)
    yield producers(run)
    yield records(run)
    yield params_recorded(run)
    yield code_committed(run)
    yield their_code(run)
    yield sources(run)
    yield from check_code(run)
    yield lock_committed(run)


def manifests(run: AuditedRun) -> Check:
    broken = []
    for node in run.nodes:
        try:
            run.manifest(node)
        except UserError as error:
            broken.append(str(error))
    detail = f"{len(run.nodes) - len(broken)} nodes' records of themselves are there"
    return conclude(PART, "manifests", len(run.nodes), detail, broken)


def producers(run: AuditedRun) -> Check:
    """In dvc.lock: what a node read is what its producer made."""
    failures, count = [], 0
    for node in run.nodes:
        for path, entry in node.deps.items():
            if (maker := run.producer.get(path)) is not None:
                md5 = run.lock[maker].outs[path].md5
            elif (home := run.around(path)) is not None:
                maker = run.producer[home]
                md5 = _within(run.listing(run.lock[maker].outs[home]) or {}, path.removeprefix(f"{home}/"))
            else:
                continue
            count += 1
            if md5 != entry.md5:
                failures.append(f"{node.name}: read {path} {entry.md5}, {maker} made {md5}")
    return conclude(PART, "inputs are their producers' outputs", count, f"{count} edges of the graph", failures)


def _within(listing: dict[str, str], name: str) -> str | None:
    """The hash of a file or folder inside an output's folder; None where it has none of that name."""
    inside = {n.removeprefix(f"{name}/"): md5 for n, md5 in listing.items() if n.startswith(f"{name}/")}
    return dvc_hash(inside) if inside else listing.get(name)


def records(run: AuditedRun) -> Check:
    """In the manifests: hashes of inputs and outputs are those of the files that lie there, and of the producers."""
    failures, count = [], 0
    for node in (node for node in run.nodes if node.name in run.manifests):
        manifest = run.manifests[node.name]
        if manifest.node != node.name:
            failures.append(f"{node.manifest}: is the record of {manifest.node!r}, expected {node.name!r}")
        if differ := ", ".join(sorted(set(manifest.outputs) ^ set(node.products))):
            failures.append(f"{node.manifest}: outputs are not those of dvc.lock ({differ})")
        for side, hashes, locked in (("inputs", manifest.inputs, node.deps), ("outputs", manifest.outputs, node.outs)):
            for path, recorded in hashes.items():
                if not _inside(path, locked):
                    failures.append(f"{node.manifest}: {side} {path} is none of the node's in dvc.lock")
                elif run.absent(path):
                    continue
                elif (now := run.tree_hash(path)) != recorded:
                    failures.append(f"{node.manifest}: {side} {path} {recorded}, found {now}")
                count += 1
    return conclude(PART, "manifests' hashes", count, f"{count} inputs and outputs", failures)


def _inside(path: str, declared: Collection[str]) -> bool:
    """Whether a path is a declared one or lies in one; a manifest may name any file of the machine."""
    place = PurePosixPath(path)
    return path == plain(path) and any(str(p) in declared for p in (place, *place.parents))


def params_recorded(run: AuditedRun) -> Check:
    """In the manifests: parameters are those of params.yaml, defaults filled in: the run's own, where its code had
    others than the auditor's."""
    failures, count, defaults = [], 0, run.defaults
    tree, given = run.params.model_dump(mode="json"), run.written.model_dump(mode="json", exclude_unset=True)
    for node in run.nodes:
        recorded = run.recorded(node.name).params
        now = {key: _known(recorded[key], value_at(tree, key), value_at(given, key)) for key in recorded}
        if node.name in defaults.older:
            now = {key: value for key, value in now.items() if value is not ABSENT}
            recorded = {key: _known(value, recorded[key], {}) for key, value in now.items()}
        failures += different_values(f"{node.manifest}: params", recorded, now, "params.yaml has", tolerance=0)
        count += len(recorded)
    detail = f"{count} sections with their defaults against params.yaml"
    if defaults.changed:
        told = [f"{key} {then} (today {now})" for key, (then, now) in defaults.changed.items()]
        detail += f"; defaults as the run had them: {', '.join(told)}"
    if defaults.newer:
        detail += f"; newer than the run, taken as by default today: {', '.join(defaults.newer)}"
    gone = [
        f"{key}: recorded as {value!r}, and the auditor's larpo has no such" for key, value in defaults.gone.items()
    ]
    return conclude(PART, "manifests' parameters", count, detail, failures, gone)


def _known(recorded: Any, now: Any, given: Any) -> Any:
    """`now` without what is neither recorded nor given in params.yaml: a default that is newer than the run."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        given = given if isinstance(given, dict) else {}
        return {
            key: _known(recorded.get(key), value, given.get(key))
            for key, value in now.items()
            if key in recorded or key in given
        }
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        each = given if isinstance(given, list) and len(given) == len(now) else [None] * len(now)
        return [_known(*values) for values in zip(recorded, now, each, strict=True)]
    return now


def code_committed(run: AuditedRun) -> Check:
    """Code that a node ran is that of the commit that it names: dependencies by their content, the frame around them
    (which dvc.yaml leaves out) by the list of files that differed from the commit."""
    failures, count = [], 0
    commits: dict[str, Commit] = {}
    declared: dict[str, dict[str, Any]] = {"": stages(run.folder.joinpath(GRAPH).read_bytes())}
    for node in run.nodes:
        state = run.recorded(node.name).git
        name = state.commit
        if not name:
            failures.append(f"{node.name}: made outside Git or before the first commit, so no commit holds its code")
            continue
        try:
            commit = commits[name] = commits.get(name) or Commit(run.repository, name)
            if name not in declared:
                declared[name] = stages(commit.content(GRAPH))
        except UserError as error:
            failures.append(f"{node.name}: {error}")
            continue
        count += 1
        if state.dirty and state.changed is None:
            failures.append(f"{node.name}: ran with uncommitted changes, and the manifest does not say which")
        if changed := [path for path in state.changed or [] if path.startswith(CHECKED)]:
            failures.append(f"{node.name}: ran with uncommitted changes in {', '.join(changed[:3])}; commit, run again")
            continue
        failures += _code_of(run, node, commit)
        kind = run.graph[node.name].kind
        if declared[""].get(kind) != declared[name].get(kind):
            failures.append(
                f"{node.name}: {GRAPH} in commit {name[:10]} declares its stage otherwise; commit, run again"
            )
    detail = f"{count} nodes, {len(commits)} commits ({', '.join(c[:10] for c in commits) or 'none'})"
    return conclude(PART, "code is committed", count, detail, failures)


def _code_of(run: AuditedRun, node: LockedNode, commit: Commit) -> list[str]:
    failures = []
    for path in (p for p in node.deps if p in set(run.sources) and p.startswith(CHECKED)):
        files = commit.files(path)
        if not files:
            failures.append(f"{node.name}: {path} is not in commit {commit.commit[:10]}")
        elif node.deps[path].md5 != dvc_hash(files):
            failures.append(f"{node.name}: ran {path} as it is not in commit {commit.commit[:10]}; commit, run again")
    return failures


def origins(run: AuditedRun) -> dict[str, list[Source]]:
    """Sources of the run by the node at which they enter, as its manifest names them. The node `inputs` looks at them
    and takes none."""
    taken = {node.name: run.recorded(node.name).notes.sources for node in run.nodes if RECORDS not in node.outs}
    return {name: sources for name, sources in taken.items() if sources}


def sources(run: AuditedRun) -> Check:
    """Each thing from outside has a name and a licence, or it is said that none is stated; manifests name what the
    records of `inputs` name; files, folders and own code still have the hash that was recorded. What entered is also an
    output with a hash: data/policy/0, data/prompts, data/items."""
    failures, count, licences = [], 0, {}
    for name, entered in origins(run).items():
        for source in entered:
            count += 1
            label = f"{source.name}{' ' + source.version if source.version else ''}"
            if source.kind == "code":
                licences[label] = "code of the run's own"
            else:
                licences[label] = source.licence or "licence not stated"
            if source.kind == "hub" and not source.version:
                licences[label] += f", revision not pinned: what was fetched is {name}'s output"
            for path in source.paths:
                recorded = source.files.get(path, source.hash)
                try:
                    place = run.folder / path
                    if place.exists() and (now := tree_hash(place)) != recorded:
                        failures.append(f"{name}: {path}: hash {now}, recorded {recorded}")
                except (OSError, ValueError) as error:  # no name for a file, or one that may not be read
                    failures.append(f"{name}: {path[:80]}: {one_line(error)[:120]}")
    detail = "; ".join(f"{label} ({licence})" for label, licence in licences.items())
    return conclude(PART, "sources", count, detail or "none", failures + _unnamed(run))


def _unnamed(run: AuditedRun) -> list[str]:
    """Where a manifest's sources are not those of the records that its node depends on."""
    failures = []
    for node in run.nodes:
        try:
            recorded = run.inputs_of(node)
        except UserError as error:
            failures.append(f"{node.name}: {error}")
            continue
        if recorded is not None:
            known = {source.fact: source.name for source in recorded}
            named = {source.fact: source.name for source in run.recorded(node.name).notes.sources}
            failures += [
                f"{node.name}: its manifest does not name {name}, which {RECORDS} does"
                for fact, name in known.items()
                if fact not in named
            ]
            failures += [
                f"{node.name}: its manifest names {name[:80]} otherwise than {RECORDS}"
                for fact, name in named.items()
                if fact not in known
            ]
    return failures


def lock_committed(run: AuditedRun) -> Check:
    """Whether Git dates this dvc.lock: a lock that no commit holds may have been written a minute ago."""
    try:
        held = Commit(run.repository, "HEAD").files(str(LOCK))
    except UserError:
        return unchecked(PART, "dvc.lock is committed", "the folder is in no Git repository", False)
    if not held or held[""] != file_hash(run.folder / LOCK):
        why = "HEAD holds no or another dvc.lock; `git commit` dates a run"
        return unchecked(PART, "dvc.lock is committed", why, False)
    return conclude(PART, "dvc.lock is committed", 1, "HEAD holds it as it lies here", [])
