"""Engines that generate responses: token ids in, token ids out.

An engine is one class in one file and one line in `ENGINES`. Its module is imported only when it is used,
so that vLLM is needed only where it runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Literal, Protocol

from larpo.config.sections import EngineParams
from larpo.models.resolve import Model
from larpo.registry import Registry


@dataclass(frozen=True)
class Sampling:
    """How to generate. `temperature` 0 is greedy (and then `n` is 1)."""

    n: int
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0


@dataclass(frozen=True)
class Completion:
    """One response.

    `token_ids` ends with the end-of-sequence token exactly when `finish_reason` is "stop"; "length" means
    that max_new_tokens cut it off. `seed` reproduces it, given the same batch around it.
    `logp`, in nats, is the sum of its tokens' log-probabilities under the model itself (temperature 1, no top-p, each
    in float32); None from an engine that does not report them.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    seed: int
    logp: float | None = None


Finished = tuple[int, list[Completion]]
"""The place of a prompt among all, and its responses."""


class Engine(Protocol):
    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """Generate `sampling.n` responses for each prompt of one batch.

        The result depends on the arguments alone, never on earlier calls: a run that resumes at any
        batch equals one that was never stopped.
        """

    def facts(self) -> dict[str, object]:
        """What the manifest records about the engine."""


class StreamingEngine(Engine, Protocol):
    """An engine that takes a stream of prompts and is not drained between batches."""

    def stream(
        self, prompts: list[list[int]], sampling: Sampling, seeds: list[int], places: list[int]
    ) -> Iterator[Finished]:
        """What `stream` below returns, in the order in which prompts finish."""


ENGINES = Registry(
    "engine",
    {
        "transformers": "larpo.engines.transformers_engine:TransformersEngine",
        "vllm": "larpo.engines.vllm_engine:VLLMEngine",
    },
)


def build_engine(params: EngineParams, checkpoint: Model, seed: int) -> Engine:
    """Load a checkpoint into the engine that `params.name` names.

    Raises
    ------
    UserError
        The name is unknown, or the engine's package is not installed.
    """
    if params.replicas > 1:
        return resolve_name("larpo.engines.replicas:Replicas")(checkpoint, params, seed)
    return ENGINES.load(params.name, "engine.name")(checkpoint, params, seed)


def stream(
    engine: Engine, prompts: list[list[int]], sampling: Sampling, seeds: list[int], places: list[int], batch_size: int
) -> Iterator[Finished]:
    """The responses to the prompts at `places`, each as soon as the engine has finished them.

    Parameters
    ----------
    prompts
        All of a run, also those that are not asked for: the batches of an engine without a `stream` of its own are
        `batch_size` prompts from the first one on, whatever is left to do, so that a resumed run makes the same.
    seeds
        One per such batch.
    """
    if hasattr(engine, "stream"):
        yield from engine.stream(prompts, sampling, seeds, places)
        return
    wanted = set(places)
    for batch in sorted({place // batch_size for place in places}):
        start = batch * batch_size
        made = engine.generate(prompts[start : start + batch_size], sampling, seeds[batch])
        yield from ((start + i, many) for i, many in enumerate(made) if start + i in wanted)
