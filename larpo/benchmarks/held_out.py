"""The held-out part of the training task: greedy accuracy and Pass@N on prompts never trained on."""

from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from larpo.benchmarks import parse_options
from larpo.benchmarks.verifiable import aggregate, check_ns
from larpo.config.evaluation import BenchmarkParams
from larpo.config.params import Params
from larpo.config.sections import Section
from larpo.errors import ParameterError, at
from larpo.hashing import seed_of
from larpo.rewards import REWARDS, build_reward, check_answers, is_verifiable, penalised, verifiable
from larpo.sources.prompts import draw


class Options(Section):
    ns: list[Annotated[int, Field(ge=1)]] | None = Field(None, description="N of Pass@N; null: 1, 2, 4, … and all")
    rule: str | None = Field(None, description="the rule that says right or wrong; null: that of score.reward")


class HeldOut:
    """Scored by the run's own rule or by `options.rule`: accuracy needs right and wrong. Loads no reward model."""

    def __init__(self, params: Params, entry: BenchmarkParams):
        self.params, self.entry, self.options = params, entry, parse_options(Options, entry.options)
        if entry.items is None:
            raise ParameterError("items", "held_out draws its items and needs their number, such as 200")
        if params.prompts.held_out == 0:
            raise ParameterError("", "prompts.held_out: 0 leaves no prompts for it; expected a share, such as 0.3")
        check_ns(self.options.ns, entry)
        named = self.options.rule
        if named is not None:
            REWARDS.check(named, "options.rule")
        rule = verifiable(params.score) if named is None else (named, {})
        if rule is None or not is_verifiable(rule[0]):
            raise ParameterError(
                "options.rule",
                f"{named or params.score.reward} is no rule, and accuracy needs right and wrong; set it to a rule's "
                "name, such as final_number or exact_match",
            )
        self.rule, self.named_rule = rule[0], rule
        self.reward = build_reward(*rule)

    def items(self) -> pd.DataFrame:
        with at("prompts", file="params.yaml"):
            seed, asked = seed_of(self.params.seed, "held_out"), "`items` of the benchmark held_out"
            frame = draw(self.params.prompts, self.entry.items, seed, held_out=True, asked=asked)
        check_answers([self.named_rule], frame, "held-out prompts")
        return frame.drop(columns="solution").assign(meta=None)

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        joined = outputs[["prompt_id", "text", "finish_reason"]].merge(items, on="prompt_id", how="left")
        scored = self.reward.score(joined["messages"].tolist(), joined["answer"].tolist(), joined["text"].tolist())
        # A response that was cut off gave no final answer, whatever number stands last in it.
        complete = (joined["finish_reason"] != "length").to_numpy()
        scores = np.where(complete, scored["correct"].astype(float), 0.0)
        return pd.DataFrame({"parsed": scored["parsed"].to_numpy(), "score": scores}, index=outputs.index)

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """Accuracy, Pass@N and strategies (see `verifiable.aggregate`), and the mean reward of the samples with its
        correlation with their length."""
        found = aggregate(evaluations, self.options.ns, getattr(self.reward, "votes", None))
        rows = evaluations[(evaluations["turn"] == 0) & (evaluations["sample"] >= 0)]
        if rows.empty:
            rows = evaluations[evaluations["turn"] == 0]
        rows = rows[rows["temperature"] == rows["temperature"].iloc[0]]
        length = rows["n_tokens"].to_numpy(dtype=float)
        if self.rule != self.params.score.reward:
            # The run's reward is a model's; what it gives these samples is the business of the node best_of_n.
            return found | {"mean_reward": None, "length_reward_correlation": None}
        cut = (rows["finish_reason"] == "length").to_numpy()
        given = rows["score"]
        if self.reward.graded:
            told = [None if c or pd.isna(p) else p for c, p in zip(cut, rows["parsed"], strict=True)]
            given = pd.Series([self.reward.value(p, a) for p, a in zip(told, rows["answer"], strict=True)], rows.index)
        reward = penalised(pd.DataFrame({"reward": given}), self.params.score, length, cut)
        varied = length.std() > 0 and reward.std() > 0
        return found | {
            "mean_reward": float(reward.mean()),
            "length_reward_correlation": float(np.corrcoef(length, reward)[0, 1]) if varied else None,
        }
