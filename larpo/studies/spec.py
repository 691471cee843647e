"""studies/NAME.yaml: cells, scales, measures and claims; and what runs they make."""

from __future__ import annotations

import copy
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from larpo.config import yaml12
from larpo.config.overlays import lay_all
from larpo.config.params import Params, parse_params
from larpo.config.sections import PolicyName, Section
from larpo.errors import UserError, nearest
from larpo.load import check_params

NAME = r"[a-z0-9][a-z0-9_]*"
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=64)]
Finding = Annotated[str, Field(pattern=r"^F[1-9]$")]
ScaleName = Literal["cpu", "paper"]
Settings = Annotated[
    dict[str, Any], Field(description="dotted key of params.yaml → value; a mapping is replaced whole")
]


class Scale(Section):
    base: str = Field(pattern=rf"^{NAME}\.yaml$", description="file in studies/ with complete parameters")
    set: Settings = {}
    policy: PolicyName | None = Field(None, description="what a cell measures where it does not say itself")


class Cell(Section):
    """One row of the table, or one point of the figure."""

    label: str
    policy: PolicyName | None = Field(None, description="the policy that is measured: `{policy}` in a measure's file")
    policies: dict[ScaleName, PolicyName] = Field({}, description="in place of `policy`, where the scales differ")
    set: Settings = {}
    cpu: Settings = {}
    paper: Settings = {}
    reported: dict[Name, float] = Field({}, description="measure → the paper's number")


class Source(Section):
    """Where a number stands in a run's outputs."""

    file: str = Field(
        pattern=r"^(data|report)(/[A-Za-z0-9_{}-][A-Za-z0-9_{}.-]*)+$",
        description="a file of the run, such as data/evaluate/{policy}-held_out.json",
    )
    key: str = Field(description="path in it, parts divided by `/`, such as pass/8/value")
    percent: bool = Field(True, description="a share, shown as percent")
    label: str | None = Field(None, description="in place of the measure's, where the scales measure different things")


class Measure(Section):
    label: str
    cpu: Source | None = None
    paper: Source | None = None


Term = tuple[Name, Name]  # cell, measure


class Claim(Section):
    """What a finding says about the numbers: Σ more − Σ less > 0, or a peak inside the ordered cells."""

    says: str
    more: list[Term] = []
    less: list[Term] = []
    peak: list[Name] = Field([], description="cells in order; the best of the inner ones against both ends")
    measure: Name | None = Field(None, description="of the peak")

    @model_validator(mode="after")
    def one_kind(self) -> Claim:
        if bool(self.peak) == bool(self.more or self.less) or bool(self.peak) != bool(self.measure):
            raise ValueError(f"claim {self.says!r}: expected more and less, or peak and measure")
        if self.peak and len(self.peak) < 3:
            raise ValueError(f"claim {self.says!r}: a peak needs three cells, found {len(self.peak)}")
        return self


class Line(Section):
    """A curve: (x, cell, measure) each."""

    label: str
    points: list[tuple[float, Name, Name]]


class Figure(Section):
    x: str
    y: str
    log_x: bool = False
    lines: list[Line]


class Study(Section):
    name: Name
    title: str
    paper: str | None = Field(
        None, description="table or figure of the paper; null: a question that is not the paper's"
    )
    about: str = Field(description="what is compared, in a sentence or two")
    differs: dict[ScaleName, str] = Field({}, description="where a scale departs from the paper")
    seeds: int = Field(3, ge=1)
    scales: dict[ScaleName, Scale]
    cells: dict[Name, Cell] = Field(min_length=1)
    measures: dict[Name, Measure] = Field(min_length=1)
    claims: dict[Finding, list[Claim]] = {}
    figure: Figure | None = None

    @model_validator(mode="after")
    def consistent(self) -> Study:
        terms = [t for claims in self.claims.values() for c in claims for t in [*c.more, *c.less]]
        terms += [(cell, c.measure) for claims in self.claims.values() for c in claims for cell in c.peak]
        terms += [(cell, m) for line in (self.figure.lines if self.figure else []) for _, cell, m in line.points]
        terms += [(name, m) for name, cell in self.cells.items() for m in cell.reported]
        for cell, measure in terms:
            if cell not in self.cells:
                raise ValueError(f"cell {cell!r} does not exist{nearest(cell, list(self.cells))}")
            if measure not in self.measures:
                raise ValueError(f"measure {measure!r} does not exist{nearest(measure, list(self.measures))}")
        for scale in self.scales:
            if all(getattr(m, scale) is None for m in self.measures.values()):
                raise ValueError(f"scale {scale!r} has no measure; name a file and a key for at least one")
        return self

    def sources(self, scale: ScaleName) -> dict[str, Source]:
        """Measures that a scale has, with their labels filled in."""
        found = {name: (m, getattr(m, scale)) for name, m in self.measures.items() if getattr(m, scale)}
        return {name: s.model_copy(update={"label": s.label or m.label}) for name, (m, s) in found.items()}


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
    raw = _read(path)
    try:
        study = Study.model_validate(raw)
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


def expand(
    study: Study, folder: Path, scale: ScaleName, seeds: int | None = None, overlays: Sequence[str | Path] = ()
) -> list[Run]:
    """Every cell with every seed 0..n-1, cells outermost, so that runs that share nodes follow each other.

    A run's parameters are the scale's base file, the sections of the files in `overlays` laid over it (what depends on
    the machine, as in configs/), the measured policy as the only one evaluated, then the scale's settings, the cell's,
    and the cell's for that scale.
    All of them are checked before anything runs.
    """
    if scale not in study.scales:
        raise UserError(f"studies/{study.name}.yaml: no scale {scale!r}{nearest(scale, list(study.scales))}")
    wanted = study.seeds if seeds is None else seeds
    if wanted < 1:
        raise UserError(f"seeds: expected 1 or more, found {wanted}")
    chosen = study.scales[scale]
    base = lay_all(_read(folder / chosen.base), overlays)
    runs = []
    for name, cell in study.cells.items():
        where = f"studies/{study.name}.yaml: cells.{name} at scale {scale}"
        where += "".join(f" with {file}" for file in overlays)
        raw = copy.deepcopy(base)
        policy = cell.policies.get(scale) or cell.policy or chosen.policy
        if policy:
            put(raw, "evaluate.policies", [policy], where)
        for settings in (chosen.set, cell.set, getattr(cell, scale)):
            for key, value in settings.items():
                put(raw, key, copy.deepcopy(value), where)
        for seed in range(wanted):
            params = raw | {"seed": seed}
            checked = parse_params(params, where)
            if seed == 0:
                check_params(checked, where)
            runs.append(Run(study.name, scale, name, seed, policy, params, checked))
    return runs


def targets(runs: Iterable[Run]) -> tuple[str, ...]:
    """Kinds of nodes that a study's runs are for: they, and what they need, are made."""
    runs = list(runs)
    kinds = ["evaluate"]
    kinds += ["best_of_n"] if any(run.checked.best_of_n for run in runs) else []
    kinds += ["retrieve"] if any(run.checked.retrieval for run in runs) else []
    return tuple(kinds)


def put(tree: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    """Set a dotted key; sections on the way must be mappings (an absent one is made)."""
    *path, last = dotted.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"{where}: {dotted}: {part} is no section")
    tree[last] = value


def _read(path: Path) -> dict[str, Any]:
    return yaml12.read_mapping(path)
