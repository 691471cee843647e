"""From studies/NAME.yaml to the runs that it asks for."""

import copy
import itertools
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from larpo.config import yaml12
from larpo.config.overlays import lay_all
from larpo.config.params import Params, parse_params
from larpo.errors import UserError, nearest
from larpo.load import check_params
from larpo.studies.spec import NAME, ScaleName, Source, Study


@dataclass(frozen=True)
class Run:
    """One cell with one seed."""

    study: str
    scale: ScaleName
    cell: str
    seed: int
    policy: str | None
    params: dict[str, Any]  # as params.yaml holds them
    checked: Params

    @property
    def name(self) -> str:
        """Of its DVC experiment."""
        return f"{self.study}-{self.scale}-{self.cell}-s{self.seed}".replace("_", "-")


def names(folder: Path) -> list[str]:
    """Studies that `folder` (studies/) holds: files with a `name`; the others are bases."""
    return sorted(p.stem for p in folder.glob("*.yaml") if re.search(r"^name:", p.read_text("utf-8"), re.M))


def load_study(folder: Path, name: str) -> Study:
    """Read and check studies/NAME.yaml.

    Raises
    ------
    UserError
        No such study, or a wrong key, cell or measure; the line names it.
    """
    path = folder / f"{name}.yaml"
    if not re.fullmatch(NAME, name) or len(name) > 64:
        raise UserError(f"study {reprlib.repr(name)}: expected a name in studies/, such as table3; `larpo study list`")
    if not path.is_file():
        raise UserError(f"{path}: not found{nearest(name, names(folder)) if folder.is_dir() else ''}")
    try:
        study = Study.model_validate(unfold(yaml12.read_mapping(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_pattern_mismatch":
            reason += f", found {reprlib.repr(first['input'])}"
        raise UserError(f"{path}: {where + ': ' if where else ''}{reason}") from None
    if study.name != name:
        raise UserError(f"{path}: name: expected {name!r}, as the file is called, found {study.name!r}")
    return study


def unfold(tree: Any) -> Any:
    """`each: {n: [1, 2], t: [0.3]}` in an entry stands for one entry per combination, `{n}` and `{t}` replaced in its
    name and in its texts; a text that is `{t}` alone becomes the value itself, and names are without dots."""
    if isinstance(tree, dict):
        found = {}
        for key, value in tree.items():
            for filled in _combinations(value):
                found[_fill(key, filled, in_name=True) if filled else key] = _entry(value, filled)
        return found
    if isinstance(tree, list):
        return [_entry(value, filled) for value in tree for filled in _combinations(value)]
    return tree


def _combinations(value: Any) -> Iterable[dict[str, Any]]:
    """What `each` of an entry asks for: name → value; a single empty one where there is none."""
    each = value.get("each", {}) if isinstance(value, dict) else {}
    return (dict(zip(each, chosen, strict=True)) for chosen in itertools.product(*each.values()))


def _entry(value: Any, filled: dict[str, Any]) -> Any:
    if filled:
        value = {key: _fill(part, filled) for key, part in value.items() if key != "each"}
        value = value.get("point", value)
    return unfold(value)


def _fill(tree: Any, filled: dict[str, Any], in_name: bool = False) -> Any:
    if isinstance(tree, dict):
        return {_fill(key, filled, True): _fill(value, filled) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_fill(value, filled) for value in tree]
    if not isinstance(tree, str):
        return tree
    for name, value in filled.items():
        if tree == f"{{{name}}}":
            return value
        tree = tree.replace(f"{{{name}}}", str(value).replace(".", "") if in_name else str(value))
        tree = tree.replace(f"{{{name}_}}", str(value).replace(".", ""))
    return tree


def expand(
    study: Study, folder: Path, scale: ScaleName, seeds: int | None = None, overlays: Sequence[str | Path] = ()
) -> list[Run]:
    """Every cell with so many seeds from the rule's first one, by default as many as its last look has; cells
    outermost, so that runs that share nodes follow each other.

    A run's parameters are the scale's base file, the sections of the files in `overlays` laid over it (what depends on
    the machine, as in configs/), the measured policy as the only one evaluated, then the scale's settings, the cell's,
    and the cell's for that scale; last the seed, in the keys of `seeded` too.
    All of them are checked before anything runs.
    """
    if scale not in study.scales:
        raise UserError(f"studies/{study.name}.yaml: no scale {scale!r}{nearest(scale, list(study.scales))}")
    chosen = study.scales[scale]
    count = chosen.rule.looks[-1] if seeds is None else seeds
    if count < 1:
        raise UserError(f"seeds: expected 1 or more, found {count}")
    base = lay_all(yaml12.read_mapping(folder / chosen.base), overlays)
    runs = []
    for name, cell in study.cells_at(scale).items():
        where = f"studies/{study.name}.yaml: cells.{name} at scale {scale}"
        where += "".join(f" with {file}" for file in overlays)
        raw = copy.deepcopy(base)
        policy = cell.policies.get(scale) or cell.policy or chosen.policy
        if policy:
            put(raw, "evaluate.policies", [policy], where)
        for settings in (chosen.set, cell.set, getattr(cell, scale)):
            for key, value in settings.items():
                put(raw, key, copy.deepcopy(value), where)
        for seed in range(chosen.rule.first_seed, chosen.rule.first_seed + count):
            params = copy.deepcopy(raw) | {"seed": seed}
            for key in chosen.seeded:
                put(params, key, seed, f"{where}: seeded")
            checked = parse_params(params, where)
            if seed == chosen.rule.first_seed:
                check_params(checked, where)
            runs.append(Run(study.name, scale, name, seed, policy, params, checked))
    return runs


def targets(runs: Iterable[Run], sources: Iterable[Source]) -> tuple[str, ...]:
    """Kinds of nodes that a study's runs are for: they, and what they need, are made."""
    runs = list(runs)
    kinds = ["evaluate"]
    kinds += ["best_of_n"] if any(run.checked.best_of_n for run in runs) else []
    kinds += ["retrieve"] if any(run.checked.retrieval for run in runs) else []
    kinds += ["report"] if any(source.file and source.file.startswith("report/") for source in sources) else []
    return tuple(kinds)


def put(tree: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    """Set a dotted key; sections on the way must be mappings (an absent one is made)."""
    *path, last = dotted.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"{where}: {dotted}: {part} is no section")
    tree[last] = value
