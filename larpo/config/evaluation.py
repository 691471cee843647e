"""The sections of params.yaml about benchmarks: what policies are asked, and how their answers are scored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from larpo.config.sections import BenchmarkName, PolicyName, Section


class BestOfNParams(Section):
    """Best-of-N under the run's reward, against the true score of a benchmark."""

    policy: PolicyName = Field(description="one of evaluate.policies")
    benchmark: BenchmarkName = Field(description="one of benchmarks, whose samples are taken")
    ns: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="N of best-of-N, at most its samples")


class EvaluateParams(Section):
    policies: list[PolicyName] = Field(min_length=1, description="checkpoints that every benchmark is run on")


class GenerateParams(Section):
    """What a checkpoint generates for a benchmark; scoring settings are elsewhere, so that they re-use it."""

    max_new_tokens: int = Field(ge=1, description="tokens after which an output is cut off")
    temperature: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="of the one output per item that alpaca_eval and mixeval judge; 0: greedy",
    )
    samples: int = Field(0, ge=0, description="samples per item and temperature, for Pass@N; 0: greedy only")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0], min_length=1, description="temperatures of those samples; the first one's scores are the headline"
    )
    sampled_items: int | None = Field(
        None, ge=2, description="so many items, chosen by their ids, are sampled; the others only greedily; null: all"
    )
    refinements: int = Field(0, ge=0, description="times that the model is shown its greedy answer and asked to revise")

    @model_validator(mode="after")
    def has_one_kind_of_first_output(self) -> GenerateParams:
        if self.temperature and (self.samples or self.refinements):
            raise ValueError(
                f"temperature: {self.temperature:g} is of the one output per item; expected samples, refinements 0"
            )
        return self


class BenchmarkParams(Section):
    benchmark: str = Field("held_out", description="a name of docs/benchmarks.md, or your own `module:object`")
    generate: GenerateParams
    items: int | None = Field(
        None, ge=2, description="so many items, chosen by a hash; null: all (held_out needs a number)"
    )
    data: str | None = Field(None, description="where the items are: a hub dataset, a file or a folder of your own")
    split: str = Field("test", description="split of a hub dataset")
    judge: str | None = Field(None, description="a name in the section `judges`, for benchmarks that ask one")
    options: dict[str, Any] = Field({}, description="the benchmark's own settings, checked by it")
