"""How hard the negatives are that an iteration trained on (Section 3.2): a hard one looks like the positive, and the
policy finds it as likely.

- token overlap: ROUGE-L's F1 (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", Section 3.1, β = 1)
  of the two responses' token ids without the end token; 1 for equal responses;
- log-prob gap: log π_ref of the positive minus that of the negative behind the list's prompt, summed and per token; the
  lower, the harder. π_ref is the behaviour policy unless reference.model is `initial`.

A negative is compared with its list's best positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from larpo.errors import UserError
from larpo.report.data import Estimate, flat
from larpo.statistics import mean_interval, share_interval

MEASURES = ("overlap", "gap", "gap_per_token")


@dataclass(frozen=True)
class Hardness:
    """Means over lists with 95 % intervals; a list counts by the mean over its negatives."""

    source: str  # `own`, or `lists.negatives` for those of other prompts
    temperature: float | None  # that the negatives were sampled at; None: all
    lists: int
    negatives: int
    overlap: Estimate
    gap: Estimate  # nats
    gap_per_token: Estimate

    def flat(self) -> dict[str, Any]:
        """Plain names, for `hardness.json`."""
        out: dict[str, Any] = {"lists": self.lists, "negatives": self.negatives}
        for name in MEASURES:
            out |= flat(name, getattr(self, name))
        return out


def common_subsequence(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence, |b| operations on integers of |a| bits.

    Bit i of `row` is 0 where the dynamic programme's row rises at column i (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited"), so its zeros are the length.
    """
    places: dict[int, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[int], b: Sequence[int]) -> float:
    """F1 of the longest common subsequence: 2 LCS / (|a| + |b|); two empty sequences are equal."""
    return 2 * common_subsequence(a, b) / (len(a) + len(b)) if len(a) or len(b) else 1.0


def pairs(lists: pd.DataFrame, candidates: pd.DataFrame, reference: pd.DataFrame, other: str) -> pd.DataFrame:
    """One row per negative: prompt_id, source, temperature, and the three measures.

    `other` names the source of negatives that answer another prompt (`lists.negatives`).
    """
    facts = candidates[["response_id", "prompt_id", "temperature", "token_ids", "finish_reason"]]
    frame = lists.merge(facts.rename(columns={"prompt_id": "answers"}), on="response_id", how="left")
    frame = frame.merge(reference, on=["prompt_id", "response_id"], how="left", validate="many_to_one")
    missing = (frame["reference_logp"].isna() | frame["answers"].isna()).to_numpy()
    if missing.any():
        raise UserError(
            f"data/reference: no log-probability of response {frame['response_id'][int(missing.argmax())]} of the "
            "lists; run `dvc repro --force` on the reference node"
        )
    frame["source"] = np.where(frame["answers"] == frame["prompt_id"], "own", other)
    frame["words"] = [
        list(map(int, ids if reason == "length" else ids[:-1]))
        for ids, reason in zip(frame["token_ids"], frame["finish_reason"], strict=True)
    ]
    frame["per_token"] = frame["reference_logp"] / frame["n_tokens"]
    best = frame[frame["rank"] == 0].set_index("prompt_id")
    found = frame[frame["role"] == "negative"].reset_index(drop=True)
    positive = best.loc[found["prompt_id"]].reset_index(drop=True)
    return found[["prompt_id", "source", "temperature"]].assign(
        overlap=[rouge_l(p, n) for p, n in zip(positive["words"], found["words"], strict=True)],
        gap=positive["reference_logp"] - found["reference_logp"],
        gap_per_token=positive["per_token"] - found["per_token"],
    )


def measure(
    lists: pd.DataFrame, candidates: pd.DataFrame, reference: pd.DataFrame, other: str = "random"
) -> list[Hardness]:
    """Hardness per source of negatives, first over all temperatures, then, where there are several, at each."""
    out = []
    for source, group in pairs(lists, candidates, reference, other).groupby("source"):
        parts = [(None, group)]
        if group["temperature"].nunique() > 1:
            parts += list(group.groupby("temperature"))
        for temperature, part in parts:
            means = part.groupby("prompt_id")[list(MEASURES)].mean()
            estimates = {
                name: Estimate.of_mean(means[name].to_numpy(), share_interval if name == "overlap" else mean_interval)
                for name in MEASURES
            }
            out.append(Hardness(str(source), temperature, len(means), len(part), **estimates))
    return out
