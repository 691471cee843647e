"""What stands in studies/NAME.yaml: cells, measures, claims, and the rule by which they are judged."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from larpo.config.sections import PolicyName, Section
from larpo.errors import nearest
from larpo.hashing import digest

NAME = r"[a-z0-9][a-z0-9_]*"
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=64)]
Finding = Annotated[str, Field(pattern=r"^F([1-9]|1[01])$")]
ScaleName = Literal["cpu", "smol", "paper"]
Settings = Annotated[
    dict[str, Any], Field(description="dotted key of params.yaml → value; a mapping is replaced whole")
]


class Rule(Section):
    """When a study is read and what a difference must show; declared before the first run, hashed into the result."""

    primary: Name = Field(description="the measure that claims are about where they name none")
    first_seed: int = Field(ge=0, description="settings were chosen on smaller ones")
    looks: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="numbers of seeds, rising")
    level: float = Field(gt=0, lt=0.5, description="two-sided, of each look")
    margin: float = Field(gt=0, lt=1, description="smallest difference of shares that matters")
    over: Literal["seeds", "items"] = Field(
        "seeds", description="what the interval is over; items: of a benchmark, with seeds as a second level"
    )

    @model_validator(mode="after")
    def looks_rise(self) -> Self:
        if self.looks != sorted(set(self.looks)):
            raise ValueError(f"looks: expected rising numbers of seeds, found {self.looks}")
        return self


class Scale(Section):
    base: str = Field(pattern=rf"^{NAME}\.yaml$", description="file in studies/ with complete parameters")
    set: Settings = {}
    policy: PolicyName | None = Field(None, description="what a cell measures where it does not say itself")
    seeded: list[str] = Field([], description="dotted keys that take the run's seed: each seed makes models of its own")
    rule: Rule


class Cell(Section):
    """One row of the table, or one point of the figure."""

    label: str
    only: ScaleName | None = Field(None, description="the one scale that has it; null: all")
    policy: PolicyName | None = Field(None, description="the policy that is measured: `{policy}` in a measure's file")
    policies: dict[ScaleName, PolicyName] = Field({}, description="in place of `policy`, where the scales differ")
    set: Settings = {}
    cpu: Settings = {}
    smol: Settings = {}
    paper: Settings = {}
    reported: dict[Name, float] = Field({}, description="measure → the paper's number, shares in percent")
    same_as: dict[ScaleName, Annotated[str, Field(pattern=rf"^{NAME}/{NAME}$")]] = Field(
        {}, description="STUDY/CELL that trains alike at a scale: evidence that counts once"
    )


class Crossing(Section):
    """Where one curve overtakes another: N* on a logarithmic scale of N, between two measured N by a straight line."""

    ns: list[float] = Field(min_length=2)
    rising: list[Name]
    falling: list[Name]


class Source(Section):
    """Where a number stands in a run's outputs, or how it follows from others."""

    file: str | None = Field(
        None,
        pattern=r"^(data|report)(/[A-Za-z0-9_{}-][A-Za-z0-9_{}.-]*)+$",
        description="a file of the run, such as data/evaluate/{policy}-held_out.json",
    )
    key: str | None = Field(
        None, description="path in it, parts divided by `/`: pass/8/value, points/n=8/score; `*`: the only one"
    )
    policies: list[PolicyName] = Field([], description="the mean over these in place of {policy}")
    crossing: Crossing | None = None
    percent: bool = Field(True, description="a share, shown as percent")
    margin: float | None = Field(None, gt=0, description="smallest difference that matters, of what is no share")
    over: Literal["seeds", "items"] | None = Field(None, description="in place of the rule's")
    label: str | None = Field(None, description="in place of the measure's, where the scales measure different things")

    @model_validator(mode="after")
    def one_kind(self) -> Self:
        if bool(self.file and self.key) == bool(self.crossing):
            raise ValueError("expected file and key, or crossing")
        return self


class Measure(Section):
    label: str
    cpu: Source | None = None
    smol: Source | None = None
    paper: Source | None = None
    error: float | None = Field(None, gt=0, description="standard error of the paper's numbers, in their unit")


Term = Annotated[
    tuple[Name, Name | None], BeforeValidator(lambda term: (term, None) if isinstance(term, str) else term)
]
"""A cell, which stands for the primary measure, or a pair of cell and measure."""


class Claim(Section):
    """What a finding says about the numbers: the mean of `more` less the mean of `less`, or a trend over `rising`.

    The trend is the rise of the fitted straight line from the first cell to the last, the cells equally far apart.
    """

    says: str
    more: list[Term] = []
    less: list[Term] = []
    rising: list[Term] = Field([], description="in order; three or more")
    by: float = Field(0.0, ge=0, description="so much is taken off the difference")
    expects: Literal["better", "not_worse"] = "better"
    secondary: bool = Field(False, description="judged only where the finding holds, on which it has no say")
    only: ScaleName | None = None

    @model_validator(mode="after")
    def one_kind(self) -> Self:
        if bool(self.rising) == bool(self.more and self.less) or (self.rising and (self.more or self.less)):
            raise ValueError(f"claim {self.says!r}: expected more and less, or rising")
        if self.rising and len(self.rising) < 3:
            raise ValueError(f"claim {self.says!r}: a trend needs three cells, found {len(self.rising)}")
        return self

    @property
    def terms(self) -> list[Term]:
        return [*self.more, *self.less, *self.rising]

    def weights(self, primary: str) -> list[tuple[float, str, str]]:
        """(weight, cell, measure); the weights sum to 0."""
        found = [(1 / len(self.more), t) for t in self.more] + [(-1 / len(self.less), t) for t in self.less]
        if self.rising:
            x = [i - (len(self.rising) - 1) / 2 for i in range(len(self.rising))]
            scale = (x[-1] - x[0]) / sum(v * v for v in x)
            found = [(v * scale, t) for v, t in zip(x, self.rising, strict=True)]
        return [(weight, cell, measure or primary) for weight, (cell, measure) in found]


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
    scales: dict[ScaleName, Scale] = Field(min_length=1)
    cells: dict[Name, Cell] = Field(min_length=1)
    measures: dict[Name, Measure] = Field(min_length=1)
    claims: dict[Finding, list[Claim]] = {}
    figure: Figure | None = None

    @model_validator(mode="after")
    def consistent(self) -> Self:
        judged = [c for claims in self.claims.values() for c in claims]
        points = [(cell, m) for line in (self.figure.lines if self.figure else []) for _, cell, m in line.points]
        reported = [(name, m) for name, cell in self.cells.items() for m in cell.reported]
        for cell, measure in [*(t for c in judged for t in c.terms), *points, *reported]:
            if cell not in self.cells:
                raise ValueError(f"cell {cell!r} does not exist{nearest(cell, list(self.cells))}")
            if measure is not None and measure not in self.measures:
                raise ValueError(f"measure {measure!r} does not exist{nearest(measure, list(self.measures))}")
        for scale, chosen in self.scales.items():
            sources, cells = self.sources(scale), self.cells_at(scale)
            if not sources:
                raise ValueError(f"scale {scale!r} has no measure; name a file and a key for at least one")
            if chosen.rule.primary not in sources:
                found = f"{chosen.rule.primary!r}{nearest(chosen.rule.primary, list(sources))}"
                raise ValueError(f"scales.{scale}.rule.primary: no measure of this scale, found {found}")
            for claim in [c for c in judged if c.only in (None, scale)]:
                if absent := [cell for cell, _ in claim.terms if cell not in cells]:
                    raise ValueError(
                        f"claim {claim.says!r}: scale {scale!r} has no cell {absent[0]!r}; expected `only`"
                    )
        return self

    def sources(self, scale: ScaleName) -> dict[str, Source]:
        """Measures that a scale has, with their labels filled in."""
        found = {name: (m, getattr(m, scale)) for name, m in self.measures.items() if getattr(m, scale)}
        return {name: s.model_copy(update={"label": s.label or m.label}) for name, (m, s) in found.items()}

    def cells_at(self, scale: ScaleName) -> dict[str, Cell]:
        return {name: cell for name, cell in self.cells.items() if cell.only in (None, scale)}

    def claims_at(self, scale: ScaleName) -> dict[str, list[Claim]]:
        found = {f: [c for c in claims if c.only in (None, scale)] for f, claims in self.claims.items()}
        return {finding: claims for finding, claims in found.items() if claims}

    def declaration(self, scale: ScaleName) -> str:
        """Hash of what must stand before the first run: settings, sources, claims and rule; no labels and no words."""
        cells = {
            name: [cell.set, getattr(cell, scale), cell.policy, cell.policies.get(scale)]
            for name, cell in self.cells_at(scale).items()
        }
        sources = {name: s.model_dump(exclude={"label"}) for name, s in self.sources(scale).items()}
        claims = {f: [c.model_dump(exclude={"says"}) for c in found] for f, found in self.claims_at(scale).items()}
        return digest("declaration", self.name, self.scales[scale].model_dump(), cells, sources, claims)
