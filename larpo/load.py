"""The parameters of a run: one typed section per node, checked before anything else happens.

``params.yaml`` is what DVC tracks and people edit; `load_params` turns it into a `Params` or raises a
`UserError` that names the key, what was expected and the nearest name that exists.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator

from larpo.config.overlays import UNREADABLE, StrictLoader
from larpo.config.reward import RewardParams
from larpo.config.sections import (
    BenchmarkName,
    BenchmarkParams,
    BestOfNParams,
    EngineParams,
    EvaluateParams,
    IterationName,
    IterationParams,
    JudgeParams,
    ListsParams,
    PolicyParams,
    PromptsParams,
    ReferenceParams,
    ReportParams,
    RetrievalParams,
    SampleParams,
    ScoreParams,
    Section,
    SFTName,
    SFTParams,
    TrainParams,
)
from larpo.errors import UserError, nearest


class Params(Section):
    seed: int = Field(0, ge=0)
    policy: PolicyParams
    sft: dict[SFTName, SFTParams] = {}
    iterations: dict[IterationName, IterationParams] = Field(min_length=1)
    prompts: PromptsParams
    engine: EngineParams = EngineParams()
    sample: SampleParams
    reward: RewardParams = RewardParams()
    score: ScoreParams
    lists: ListsParams
    reference: ReferenceParams = ReferenceParams()
    train: TrainParams
    evaluate: EvaluateParams
    benchmarks: dict[BenchmarkName, BenchmarkParams] = Field(min_length=1)
    best_of_n: dict[BenchmarkName, BestOfNParams] = {}
    judges: dict[str, JudgeParams] = {}
    retrieval: dict[BenchmarkName, RetrievalParams] = {}
    report: ReportParams = ReportParams()

    @model_validator(mode="after")
    def consistent(self) -> Params:
        """Checks across sections; every message names the key to change."""
        if (self.policy.model == "scratch") != (self.policy.architecture is not None):
            raise ValueError("policy.architecture: describes the model `scratch` and nothing else; set both or neither")
        known = ["0"]
        for name, sft in self.sft.items():
            if sft.previous not in known:
                raise ValueError(f"sft.{name}.previous: expected an earlier policy, found {sft.previous!r}")
            if sft.examples is None and sft.data.source == "reasoning_gym":
                raise ValueError(f"sft.{name}.examples: a generator has no end; expected a number, found null")
            # Both parts are chosen by the same hash of the text, so equal shares mean equal parts.
            if sft.data.held_out != self.prompts.held_out:
                raise ValueError(
                    f"sft.{name}.data.held_out: expected that of prompts, {self.prompts.held_out:g}, or evaluation "
                    f"prompts would be trained on; found {sft.data.held_out:g}"
                )
            known.append(name)
        if "1" not in self.iterations:
            raise ValueError(f"iterations: expected the first to be named '1', found {', '.join(self.iterations)}")
        for s, it in self.iterations.items():
            if s == "0":
                raise ValueError("iterations.0: policy 0 is the start; name the first iteration '1'")
            earlier = [name for name in self.iterations if int(name) < int(s)]
            if it.previous not in [*known, *earlier]:
                raise ValueError(f"iterations.{s}.previous: expected an earlier iteration, found {it.previous!r}")
            if 0 in it.temperatures and self.sample.responses > 1:
                raise ValueError(
                    f"iterations.{s}.temperatures: temperature 0 gives {self.sample.responses} identical "
                    "responses; expected > 0 (sample.responses is k)"
                )
            if self.sample.responses % len(it.temperatures):
                raise ValueError(
                    f"iterations.{s}.temperatures: {len(it.temperatures)} temperatures cannot share "
                    f"sample.responses={self.sample.responses} equally"
                )
            if self.lists.negatives == "related" and self.prompts.draw == "fresh" and self.memory_window(s) != [s]:
                raise ValueError(
                    "lists.negatives: related compares the prompts of one iteration; set lists.memory=current or "
                    f"prompts.draw=same, found memory {self.lists.memory!r}"
                )
            if self.reference.model == "initial" and self.reference_policy(s) != self.iterations["1"].previous:
                raise ValueError(
                    f"reference.model: initial: iteration {s} goes back to policy {self.reference_policy(s)}, "
                    f"iteration 1 to {self.iterations['1'].previous}; expected all from one, as dvc.yaml declares"
                )
        if self.lists.positive == "gold" and not self.sample.gold:
            raise ValueError(
                "lists.positive: gold needs the prompts' solutions among the responses; set sample.gold=true"
            )
        if self.sample.gold and self.prompts.source == "dataset" and self.prompts.solution_field is None:
            raise ValueError("sample.gold: the prompts have no solutions; set prompts.solution_field")
        self._reward_is_consistent(known)
        names = self.policies()
        for i, p in enumerate(self.evaluate.policies):
            if p in self.evaluate.policies[:i]:
                raise ValueError(f"evaluate.policies: policy {p!r} is named twice; expected each once")
            if p not in names:
                raise ValueError(f"evaluate.policies: no iteration makes policy {p!r}; expected some of {names}")
        for name, wanted in self.best_of_n.items():
            if wanted.policy not in self.evaluate.policies:
                raise ValueError(
                    f"best_of_n.{name}.policy: {wanted.policy!r} is not in evaluate.policies; add it there"
                )
            if wanted.benchmark not in self.benchmarks:
                raise ValueError(
                    f"best_of_n.{name}.benchmark: {wanted.benchmark!r} does not exist"
                    + nearest(wanted.benchmark, list(self.benchmarks))
                )
            samples = self.benchmarks[wanted.benchmark].generate.samples
            if max(wanted.ns) > samples:
                raise ValueError(
                    f"best_of_n.{name}.ns: best of {max(wanted.ns)} needs as many samples, "
                    f"benchmarks.{wanted.benchmark}.generate.samples is {samples}"
                )
        return self

    def _reward_is_consistent(self, known: list[str]) -> None:
        """`known`: the policies that are made before the loop, of which a reward may be made."""
        policy, train = self.reward.policy, self.reward.train
        if policy in self.iterations:
            raise ValueError(
                f"reward.start: policy {policy} is trained with this reward, so it cannot start from it; expected one "
                f"of {', '.join(known)}"
            )
        if policy is not None and policy not in known:
            raise ValueError(f"reward.start: policy {policy!r} does not exist{nearest(policy, known)}")
        # As for sft: by one hash of the text, so equal shares mean equal parts.
        if train and train.data.source == "sums" and train.held_out != self.prompts.held_out:
            raise ValueError(
                f"reward.train.held_out: expected that of prompts, {self.prompts.held_out:g}, or the reward would be "
                f"trained on evaluation prompts; found {train.held_out:g}"
            )

    def entry(self, section: str, name: str) -> Any:
        """The entry `name` of `iterations`, `sft`, `best_of_n` or `retrieval`; UserError where there is none."""
        known = getattr(self, section)
        if name not in known:
            raise UserError(f"params.yaml: {section}.{name} does not exist{nearest(name, list(known))}")
        return known[name]

    def check_policy(self, name: str) -> None:
        """UserError where nothing makes a policy of that name."""
        if name not in self.policies():
            raise UserError(f"params.yaml: iterations: nothing makes policy {name!r}{nearest(name, self.policies())}")

    def policies(self) -> list[str]:
        """Names of every policy in the order they are made: 0, those of `sft`, those of the iterations."""
        return ["0", *self.sft, *sorted(self.iterations, key=int)]

    def may_run_code(self, checkpoint: str) -> tuple[str, bool]:
        """The parameter that decides whether a checkpoint of the graph (data/policy/NAME, data/reward) may run code of
        its own, and its value. A permission is read from here by every node and is no dependency of any result: what
        the code does is decided by its bytes, which lie in the checkpoint."""
        if checkpoint == "data/reward" and self.reward.policy is None:
            return "reward.trust_remote_code", self.reward.trust_remote_code
        return "policy.trust_remote_code", self.policy.trust_remote_code

    def reference_policy(self, s: str) -> str:
        """The policy that log π_ref of iteration `s` comes from."""
        previous = self.iterations[s].previous
        if self.reference.model == "initial":
            while previous in self.iterations:
                previous = self.iterations[previous].previous
        return previous

    def memory_window(self, s: str) -> list[str]:
        """Iterations whose candidates may enter the lists of iteration `s`, oldest first.

        Follows `previous` back to the policy that the first iteration starts from, so that branches of an
        experiment keep separate memories.
        """
        chain = [s]
        while (prev := self.iterations[chain[-1]].previous) in self.iterations:
            chain.append(prev)
        if self.lists.memory == "first":
            return chain[-1:]
        length = {"current": 1, "previous": 2, "all": len(chain)}[self.lists.memory]
        return chain[:length][::-1]


def policy_key(name: str) -> tuple[int, int, str]:
    """Sorts policies as they are made: 0, then fine-tuned ones by name, then those of the iterations."""
    number = int(name) if name.isdecimal() else 0
    return (0 if name == "0" else 2 if number else 1, number, name)


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """Names allowed in the section that holds the last key of `location`."""
    kind: Any = Params
    for key in location[:-1]:
        if get_origin(kind) is UnionType:  # a section or null
            kind = get_args(kind)[0]
        if get_origin(kind) in (dict, list):
            kind = get_args(kind)[-1]  # the key is an entry's name or position
        elif _is_section(kind) and key in kind.model_fields:
            kind = kind.model_fields[key].annotation
    kind = get_args(kind)[0] if get_origin(kind) is UnionType else kind
    return list(kind.model_fields) if _is_section(kind) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def parse_params(raw: Any, name: str = "params.yaml") -> Params:
    """Check a mapping as read from YAML. `name` is the file that errors name."""
    if not isinstance(raw, dict):
        raise UserError(f"{name}: expected a mapping of sections, found {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "params"
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{name}: {where} does not exist{nearest(str(first['loc'][-1]), _fields_at(first['loc']))}"
            ) from None
        if first["type"] == "value_error" and not first["loc"]:
            raise UserError(f"{name}: {first['ctx']['error']}") from None
        # A password in an address is the only secret that a value may hold; the line ends up in logs.
        value = re.sub(r"//[^/@]*@", "//…@", reprlib.repr(first["input"]))
        found = "" if first["type"] == "missing" else f", found {value}"
        raise UserError(f"{name}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}{found}") from None


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file, names of registries included.

    Raises
    ------
    UserError
        The file is missing, not YAML, or a key or value is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; run from the project's folder, where params.yaml lies")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except UNREADABLE as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    params = parse_params(raw, str(path))
    check_names(params, str(path))
    return params


def check_names(params: Params, name: str = "params.yaml") -> None:
    """Refuse unknown engines, rewards, objectives, recipes, sources and benchmarks, a launch file that is
    missing, and recipes that ask for more responses than there are: all before a model is loaded."""
    from larpo.benchmarks import BENCHMARKS, build_benchmark
    from larpo.engines import ENGINES
    from larpo.lists.recipes import RECIPES, check_sources, responses_needed
    from larpo.objectives import build
    from larpo.rewards import REWARDS, check_reward
    from larpo.sources.prompts import SOURCES

    for key, value, known in [
        ("prompts.source", params.prompts.source, SOURCES),
        ("engine.name", params.engine.name, ENGINES),
        ("score.reward", params.score.reward, REWARDS),
        ("lists.recipe", params.lists.recipe, RECIPES),
        *[(f"benchmarks.{b}.benchmark", p.benchmark, BENCHMARKS) for b, p in params.benchmarks.items()],
    ]:
        if value not in known:
            raise UserError(f"{name}: {key}: {value!r} does not exist{nearest(value, list(known))}")
    check_code(params, name)
    check_reward(params.score, params.reward, name)
    try:
        objective = build(params.train.objective, **params.train.objective_options)
    except UserError as error:
        raise UserError(f"{name}: train.objective: {error}") from None
    if objective.needs_mismatched and not params.reference.mismatched:
        raise UserError(
            f"{name}: train.objective: {objective.name} needs a mismatched response per list, found "
            "reference.mismatched: false; set `reference.mismatched: true`"
        )
    for b, p in params.benchmarks.items():
        if None not in (p.generate.sampled_items, p.items) and p.generate.sampled_items > p.items:
            raise UserError(
                f"{name}: benchmarks.{b}.generate.sampled_items: {p.generate.sampled_items} of {p.items} items; "
                "expected at most `items`"
            )
        if p.judge is not None and p.judge not in params.judges:
            raise UserError(
                f"{name}: benchmarks.{b}.judge: {p.judge!r} does not exist{nearest(p.judge, list(params.judges))}"
                if params.judges
                else f"{name}: benchmarks.{b}.judge: {p.judge!r}: the section `judges` is empty; describe it there"
            )
        # Its settings, and where its data are: found out before anything is generated.
        build_benchmark(params, b, name)
    check_sources(params.lists, name)
    for key, file in [("train", params.train.launch), *[(f"sft.{n}", p.launch) for n, p in params.sft.items()]]:
        if file is not None and not Path(file).is_file():
            raise UserError(f"{name}: {key}.launch: {file}: not found; expected an Accelerate configuration")
    needed, k = responses_needed(params.lists), params.sample.responses
    if needed > k:
        raise UserError(
            f"{name}: lists.recipe: {params.lists.recipe} with top={params.lists.top}, "
            f"bottom={params.lists.bottom} needs {needed} responses per prompt, sample.responses is {k}; "
            "raise sample.responses or take fewer"
        )


def check_code(params: Params, name: str) -> None:
    """Refuse code of a hub model that no commit pins: what runs would be whatever its author publishes next."""
    for key, section in (("policy", params.policy), ("reward", params.reward)):
        model = str(section.model)
        local = model == "scratch" or model.startswith(("pypi:", ".", "/")) or Path(model).exists()
        if section.trust_remote_code and not local and not re.fullmatch("[0-9a-f]{40}", section.revision or ""):
            raise UserError(
                f"{name}: {key}.revision: {key}.trust_remote_code lets code of {model} run, so it has to be pinned; "
                f"expected the full hash of a commit (40 digits of 0-9a-f), found {section.revision!r}"
            )
