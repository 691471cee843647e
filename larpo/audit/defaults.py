"""What a run's parameters were where params.yaml is silent: the defaults of the code that ran, not of the auditor's.

Nodes record their parameters with the defaults filled in. Where a node's commit has the auditor's larpo/config, its
defaults are the auditor's. Where it has another, a default may have changed since (what was recorded is taken), may be
newer than the run (nothing was recorded), or a parameter is no more (what was recorded means nothing here).
"""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import larpo
from larpo.audit.compare.values import ABSENT
from larpo.audit.lineage.commits import Commit
from larpo.audit.record import Manifest
from larpo.config.params import Params, parse_params
from larpo.errors import UserError
from larpo.hashing import file_hashes

CONFIG = "larpo/config"


@dataclass(frozen=True)
class Defaults:
    """The run's parameters, and how they are not what the auditor makes of params.yaml.

    Attributes
    ----------
    params
        With the defaults that the run had.
    settings
        The same as a tree, without what is newer than the run.
    older
        Nodes of a commit whose larpo/config is not the auditor's.
    changed
        Dotted key → (the run's default, the auditor's).
    newer
        Dotted keys that the older nodes did not have.
    gone
        Dotted key → what they recorded of a parameter that the auditor does not have.
    """

    params: Params
    settings: dict[str, Any]
    older: frozenset[str] = frozenset()
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    newer: list[str] = field(default_factory=list)
    gone: dict[str, Any] = field(default_factory=dict)


def defaults_of(written: Params, manifests: dict[str, Manifest], repository: Path | None) -> Defaults:
    """Of a run whose params.yaml makes `written` here; `repository` as `AuditedRun` has it."""
    today = written.model_dump(mode="json")
    older = _older(manifests, repository)
    if not older:
        return Defaults(written, today)
    recorded: dict[str, Any] = {}
    for name in (name for name in manifests if name in older):
        for key, value in manifests[name].params.items():
            *sections, last = key.split(".")
            recorded = _merged(recorded, reduce(lambda inner, k: {k: inner}, reversed(sections), {last: value}))
    then = _Then()
    settings = then(today, written.model_dump(mode="json", exclude_unset=True), recorded)
    params, changed, gone = written, then.changed, then.gone
    try:
        params = parse_params(settings) if changed else params
    except UserError:  # what is refused today means nothing here either
        changed, gone = {}, gone | {key: value for key, (value, _) in changed.items()}
    if "report" not in older:  # the only node that records every section
        settings = params.model_dump(mode="json")
        then.newer = [key for key in then.newer if "." in key]
    return Defaults(params, settings, older, changed, then.newer, gone)


@dataclass
class _Then:
    """Trees of parameters put together; what is met on the way."""

    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    newer: list[str] = field(default_factory=list)
    gone: dict[str, Any] = field(default_factory=dict)

    def __call__(self, now: Any, given: Any, recorded: Any, key: str = "") -> Any:
        """What the run had where the auditor has `now`: what params.yaml gives, else what was recorded."""
        if isinstance(now, dict) and isinstance(recorded, dict) and (given is ABSENT or isinstance(given, dict)):
            given, start = {} if given is ABSENT else given, f"{key}." if key else ""
            self.gone |= {start + name: value for name, value in recorded.items() if name not in now}
            self.newer += [start + name for name in now if name not in given and name not in recorded]
            return {
                name: self(value, given.get(name, ABSENT), recorded.get(name, ABSENT), start + name)
                for name, value in now.items()
                if name in given or name in recorded
            }
        if given is ABSENT:
            if recorded != now:
                self.changed[key] = recorded, now
            return recorded
        if all(isinstance(tree, list) for tree in (now, given, recorded)) and len(now) == len(given) == len(recorded):
            trees = enumerate(zip(now, given, recorded, strict=True))
            return [self(*values, f"{key}.{i}") for i, values in trees]
        return given


def _merged(first: Any, second: Any) -> Any:
    """What two nodes recorded; what the first has stands."""
    if isinstance(first, dict) and isinstance(second, dict):
        return second | {name: _merged(value, second.get(name, value)) for name, value in first.items()}
    return first


def _older(manifests: dict[str, Manifest], repository: Path | None) -> frozenset[str]:
    here = _code(file_hashes(Path(larpo.__file__).parent / "config"))
    other: dict[str | None, bool] = {}
    for commit in {m.git.commit for m in manifests.values() if m.git.commit}:
        with suppress(UserError):  # `code is committed` tells it
            other[commit] = _code(Commit(repository, commit).files(CONFIG)) != here
    return frozenset(name for name, m in manifests.items() if other.get(m.git.commit))


def _code(files: dict[str, str]) -> dict[str, str]:
    return {name: md5 for name, md5 in files.items() if name.endswith(".py") and "__pycache__" not in name}
