"""The parameters of a run: one typed section per node, and the names by which they refer to each other.

`larpo.load.load_params` reads a file and lets every room of the method check what it is named there.
"""

from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import Field, ValidationError

from larpo.config.evaluation import BenchmarkParams, BestOfNParams, EvaluateParams
from larpo.config.judges import JudgeParams
from larpo.config.policy import PolicyParams
from larpo.config.reward import RewardParams
from larpo.config.sections import (
    BenchmarkName,
    EngineParams,
    IterationName,
    IterationParams,
    ListsParams,
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
from larpo.errors import ParameterError, at, first_error, nearest, unknown


class Params(Section):
    seed: int = Field(0, ge=0, description="every node's own seed comes from it")
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

    def entry(self, section: str, name: str) -> Any:
        """The entry `name` of `iterations`, `sft`, `best_of_n` or `retrieval`; ParameterError where there is none."""
        entries = getattr(self, section)
        if name not in entries:
            raise ParameterError(f"{section}.{name}", f"does not exist{nearest(name, list(entries))}")
        return entries[name]

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

    @property
    def training_dtype(self) -> str:
        """In which log-probabilities of reference and policy are computed."""
        return "bfloat16" if self.reference.autocast == "bfloat16" else self.policy.dtype

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


def parse_params(raw: Any, file: str = "params.yaml") -> Params:
    """A mapping as read from YAML, with the shape of every section and the names between them checked.

    Raises
    ------
    ParameterError
        It names `file`, the key, what was expected, and the nearest name that exists.
    """
    if not isinstance(raw, dict):
        raise ParameterError("", f"expected a mapping of sections, found {type(raw).__name__}", file)
    with at(file=file):
        try:
            params = Params.model_validate(raw)
        except ValidationError as error:
            raise first_error(error, _fields_at(error.errors()[0]["loc"])) from None
        check_params(params)
    return params


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """Names allowed in the section that holds the last key of `location`."""
    kind: Any = Params
    for key in location[:-1]:
        kind = get_args(kind)[0] if get_origin(kind) is UnionType else kind  # a section or null
        if get_origin(kind) in (dict, list):
            kind = get_args(kind)[-1]  # the key is an entry's name or position
        elif _is_section(kind) and key in kind.model_fields:
            kind = kind.model_fields[key].annotation
    kind = get_args(kind)[0] if get_origin(kind) is UnionType else kind
    return list(kind.model_fields) if _is_section(kind) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def check_params(params: Params) -> None:
    """Refuse a policy or a benchmark that is named and that nothing makes, and policies that would make each other."""
    made = ["0"]
    for name, sft in params.sft.items():
        if sft.previous not in made:
            raise ParameterError(f"sft.{name}.previous", f"expected an earlier policy, found {sft.previous!r}")
        made.append(name)
    if "0" in params.iterations:
        raise ParameterError("iterations.0", "policy 0 is the start; name the first iteration '1'")
    if "1" not in params.iterations:
        raise ParameterError("iterations", f"expected the first to be named '1', found {', '.join(params.iterations)}")
    for s, iteration in params.iterations.items():
        earlier = [name for name in params.iterations if int(name) < int(s)]
        if iteration.previous not in [*made, *earlier]:
            raise ParameterError(
                f"iterations.{s}.previous", f"expected an earlier iteration, found {iteration.previous!r}"
            )
    first = params.iterations["1"].previous
    for s in params.iterations if params.reference.model == "initial" else []:
        if params.reference_policy(s) != first:
            raise ParameterError(
                "reference.model",
                f"initial: iteration {s} goes back to policy {params.reference_policy(s)}, iteration 1 to {first}; "
                "expected all to start from one",
            )
    start = params.reward.policy
    if start in params.iterations:
        raise ParameterError(
            "reward.start",
            f"policy {start} is trained with this reward, so it cannot start from it; expected one of "
            f"{', '.join(made)}",
        )
    if start is not None and start not in made:
        raise ParameterError("reward.start", f"policy {start!r} does not exist{nearest(start, made)}")
    for i, name in enumerate(params.evaluate.policies):
        if name in params.evaluate.policies[:i]:
            raise ParameterError("evaluate.policies", f"policy {name!r} is named twice; expected each once")
        if name not in params.policies():
            raise ParameterError(
                "evaluate.policies", f"no iteration makes policy {name!r}; expected some of {params.policies()}"
            )
    for name, entry in params.best_of_n.items():
        with at(f"best_of_n.{name}"):
            if entry.policy not in params.evaluate.policies:
                raise ParameterError("policy", f"{entry.policy!r} is not in evaluate.policies; add it there")
            if entry.benchmark not in params.benchmarks:
                raise unknown("benchmark", entry.benchmark, list(params.benchmarks))
