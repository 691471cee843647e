"""What benchmarks with right and wrong answers share: accuracy, Pass@N, and inference strategies (Table 5)."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from larpo.config.evaluation import BenchmarkParams
from larpo.errors import ParameterError
from larpo.statistics import best_of_n, majority_vote, pass_at_n, share_interval, wilson


def check_ns(ns: list[int] | None, entry: BenchmarkParams) -> None:
    """Refuse an N of Pass@N where an item has fewer samples."""
    if ns and max(ns) > entry.generate.samples:
        raise ParameterError(
            "options.ns", f"{max(ns)} asked for, generate.samples is {entry.generate.samples}; expected at most that"
        )


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean of (P,) values in [0, 1], one per item, with its 95 % interval; Wilson's where all are 0 or 1."""
    values = np.asarray(values, dtype=float)
    if np.isin(values, [0.0, 1.0]).all():
        low, high = wilson(round(values.sum()), len(values))
    else:
        low, high = share_interval(values)
    return {"value": float(values.mean()), "low": low, "high": high}


def budgets(samples: int) -> list[int]:
    """N = 1, 2, 4, … and the number of samples itself."""
    return [2**i for i in range(32) if 2**i < samples] + [samples]


Votes = Callable[[Iterable[str | None]], dict[str, str]]


def aggregate(evaluations: pd.DataFrame, ns: list[int] | None = None, votes: Votes | None = None) -> dict[str, Any]:
    """Greedy accuracy, Pass@N (= Recall@N) per temperature, strategies, lengths and failures.

    Parameters
    ----------
    evaluations
        An `evaluations` table; `score` is 0 or 1.
    ns
        Every N that Pass@N is reported at; None: powers of two and the number of samples. One set of samples
        serves all of them (the unbiased estimator), which is what Figures 2b and 5 of the paper plot.
    votes
        What each different parsed answer counts as in the majority vote (`larpo.rewards.mathematics.vote_keys`); None:
        its text.

    Returns
    -------
    JSON-able metrics. `pass` is that of the first temperature, `temperatures` holds all; shares and lengths are over
    the samples of the first temperature, or over the greedy outputs where nothing was sampled.
    """
    first = evaluations[evaluations["turn"] == 0]
    greedy, sampled = first[first["sample"] < 0], first[first["sample"] >= 0]
    accuracy = interval(greedy["score"].to_numpy())
    out: dict[str, Any] = {
        "items": len(greedy),
        "greedy": {"accuracy": accuracy["value"], "low": accuracy["low"], "high": accuracy["high"]},
        "strategies": [
            {"strategy": "greedy", "n": 1, **accuracy, "tokens": float(greedy["n_tokens"].mean())},
            *_refinements(evaluations),
        ],
    }
    by_temperature = {}
    if votes is not None:
        sampled = sampled.assign(parsed=sampled["parsed"].map(votes(sampled["parsed"]), na_action="ignore"))
    for temperature, rows in sampled.groupby("temperature", sort=False):
        group = rows.groupby("prompt_id", sort=True)["score"]
        n, c = group.size().to_numpy(), group.sum().to_numpy().round().astype(int)
        chosen = budgets(int(n.min())) if ns is None else [x for x in ns if x <= n.min()]
        by_temperature[f"{temperature:g}"] = {str(x): interval_of_pass(pass_at_n(n, c, x)) for x in chosen}
        out["strategies"] += _voting(rows, chosen, float(temperature))
    if by_temperature:
        main = sampled[sampled["temperature"] == sampled["temperature"].iloc[0]]
        out |= {
            "sampled_items": int(main["prompt_id"].nunique()),
            "samples": int(main.groupby("prompt_id").size().min()),
            "temperature": float(main["temperature"].iloc[0]),
            "pass": next(iter(by_temperature.values())),
            "temperatures": by_temperature,
        }
    return out | shares(main if by_temperature else greedy)


def interval_of_pass(values: np.ndarray) -> dict[str, float]:
    """Mean of (P,) unbiased Pass@N estimates, with a 95 % interval over items."""
    low, high = share_interval(values)
    return {"value": float(values.mean()), "low": low, "high": high}


def shares(rows: pd.DataFrame) -> dict[str, float]:
    """Mean length in tokens, shares of outputs that were cut off and that no parser could read."""
    return {
        "mean_length": float(rows["n_tokens"].mean()),
        "truncated": float((rows["finish_reason"] == "length").mean()),
        "unparsed": float(rows["parsed"].isna().mean()),
    }


def _refinements(evaluations: pd.DataFrame) -> list[dict[str, Any]]:
    """Iterative refinement: accuracy after each revision of the greedy answer; tokens of all turns so far."""
    greedy = evaluations[evaluations["sample"] < 0].sort_values("turn", kind="stable")
    tokens = greedy.groupby("prompt_id")["n_tokens"].cumsum()
    return [
        {
            "strategy": "refinement",
            "n": int(turn) + 1,
            **interval(rows["score"].to_numpy()),
            "tokens": float(tokens.loc[rows.index].mean()),
        }
        for turn, rows in greedy.groupby("turn")
        if turn > 0
    ]


def _voting(rows: pd.DataFrame, ns: list[int], temperature: float) -> list[dict[str, Any]]:
    """Best-of-N by the rule reward, which knows the answer (so it is Pass@N, an upper bound of what a reward
    model could choose), and majority vote; tokens of N samples."""
    tokens = float(rows["n_tokens"].mean())
    items = [item for _, item in rows.sort_values("sample", kind="stable").groupby("prompt_id", sort=True)]
    out = []
    for n in ns:
        best = [best_of_n(i["score"].to_numpy(), i["score"].to_numpy(), n) for i in items]
        # A response that was cut off names no final answer, so it has no vote.
        votes = [i["parsed"].where(i["finish_reason"] != "length").tolist() for i in items]
        majority = [majority_vote(v, i["score"].tolist(), n) for v, i in zip(votes, items, strict=True)]
        for name, values in (("best_of_n", best), ("majority_vote", majority)):
            estimate = interval_of_pass(np.array(values))
            out.append({"strategy": name, "n": n, "temperature": temperature, **estimate, "tokens": n * tokens})
    return out
