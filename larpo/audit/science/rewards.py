"""Rewards computed again from the texts: of every response by a rule, of a few prompts' by a model."""

import numpy as np
import pandas as pd

from larpo import tables
from larpo.audit.compare.rules import LOGP
from larpo.audit.compare.values import EXACT, different_rows
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude
from larpo.config.sections import ScoreParams
from larpo.models.resolve import Model
from larpo.rewards import MODELS, build_reward, parts, penalised

PART = "science"
MODEL = "data/reward"
AT_ONCE = 8
"""Rows of a table that go by the prompt or the list: so many fewer of these are drawn."""


def by_model(score: ScoreParams) -> bool:
    return any(part in MODELS for part, _ in parts(score))


def drawn(run: AuditedRun, path: str, ids: pd.Series) -> list[str]:
    """Some of the different ids in a table, by lot."""
    return run.draw.some(path, [sorted(ids.unique())], max(1, run.draw.rows // AT_ONCE))


def rewards(run: AuditedRun, name: str) -> Check:
    score, failures, count = run.params.score, [], 0
    for s in run.params.iterations:
        path = f"data/score/{s}.parquet"
        recorded = tables.read("rewards", path)
        responses = tables.read("responses", f"data/sample/{s}.parquet")
        if recorded["response_id"].tolist() != responses["response_id"].tolist():
            failures.append(f"{path}: its responses are not those of data/sample/{s}.parquet, in their order")
            continue
        prompts = tables.read("prompts", f"data/prompts/{s}.parquet")
        columns = ["reward", "correct", "reward_name"]
        lines, scored = different_rewards(run, path, recorded, responses, prompts, columns)
        failures += lines
        count += scored
    some = f"{run.draw.rows // AT_ONCE} prompts an iteration, by lot" if by_model(score) else "every response"
    return conclude(PART, name, count, f"{score.reward}, {some}, computed again from the texts", failures)


def different_rewards(
    run: AuditedRun,
    path: str,
    recorded: pd.DataFrame,
    responses: pd.DataFrame,
    prompts: pd.DataFrame,
    columns: list[str],
) -> tuple[list[str], int]:
    """Lines on rows of `recorded`, the rewards of `responses`, that differ, and how many rows were computed again."""
    score = run.params.score
    rows = responses.index
    if by_model(score):
        rows = rows[responses["prompt_id"].isin(drawn(run, path, responses["prompt_id"]))]
    again = rewards_again(score, prompts, responses.loc[rows], run.checkpoint(MODEL)).assign(reward_name=score.reward)
    tolerance = LOGP if by_model(score) else EXACT
    return different_rows(path, recorded.loc[rows], again, columns, tolerance), len(rows)


def rewards_again(
    score: ScoreParams, prompts: pd.DataFrame, responses: pd.DataFrame, model: Model | None
) -> pd.DataFrame:
    """reward and correct for each of `responses` (prompt_id, text, token_ids, finish_reason), penalties taken off.

    `model` is the folder of the node `reward`.
    """
    reward = build_reward(score.reward, score.options, model)
    joined = responses.merge(
        prompts[["prompt_id", "messages", "answer"]], on="prompt_id", how="left", validate="many_to_one"
    )
    cut = (joined["finish_reason"] == "length").to_numpy()
    # Rewards that compare the responses to one prompt expect them together.
    order = np.argsort(pd.factorize(joined["prompt_id"])[0], kind="stable")
    some = joined.iloc[order]
    scored = reward.score(
        some["messages"].tolist(),
        some["answer"].tolist(),
        some["text"].tolist(),
        groups=some["prompt_id"].tolist(),
        cut=cut[order].tolist(),
    )
    scored = scored[["reward", "correct"]].set_axis(order).sort_index()
    scored["reward"] = penalised(scored, score, joined["token_ids"].map(len).to_numpy(dtype=float), cut)
    return scored
