"""Engines that generate responses: token ids in, token ids out.

An engine is one class in one file and one line in `ENGINES`. Its module is imported only when it is used,
so that vLLM is needed only where it runs.
"""

from dataclasses import dataclass
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


class Engine(Protocol):
    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """Generate `sampling.n` responses for each prompt of one batch.

        The result depends on the arguments alone, never on earlier calls: a run that resumes at any
        batch equals one that was never stopped.
        """

    def facts(self) -> dict[str, object]:
        """What the manifest records about the engine."""


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
    return ENGINES.load(params.name, "engine.name")(checkpoint, params, seed)
