"""What a run says it asked and got, held against what its parameters ask for: ids, texts, tokens and rows."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from larpo.config.evaluation import GenerateParams
from larpo.hashing import digest, seed_of


def response_ids(responses: pd.DataFrame) -> list[str]:
    """A response's id is the hash of its prompt, iteration, temperature, place among its prompt's and tokens."""
    places = responses.groupby("prompt_id", sort=False).cumcount().tolist()
    facts = [responses[c].tolist() for c in ("prompt_id", "iteration", "origin", "temperature", "token_ids")]
    return [
        digest("response", prompt, str(iteration), "gold" if origin == "gold" else temperature, place, ids.tolist())
        for prompt, iteration, origin, temperature, ids, place in zip(*facts, places, strict=True)
    ]


def batch_seeds(count: int, seed: int, tag: str, batch_size: int, per_prompt: bool) -> list[int]:
    """The seed of each of `count` prompts: that of its batch, or one of its own (vLLM)."""
    of_batch = [seed_of(seed, tag, start) for start in range(0, count, batch_size)]
    if not per_prompt:
        return [of_batch[i // batch_size] for i in range(count)]
    return [seed_of(of_batch[i // batch_size], i % batch_size) for i in range(count)]


def sampled_rows(
    prompts: Sequence[str], iteration: int, temperatures: Sequence[float], n: int, seeds: Sequence[Sequence[int]]
) -> pd.DataFrame:
    """The rows of a `responses` table that a policy samples: n per prompt and temperature, in their order.

    Parameters
    ----------
    seeds
        Per temperature one seed per prompt.
    """
    rows = [
        (prompt, iteration, temperature, seeds[t][i], "policy")
        for i, prompt in enumerate(prompts)
        for t, temperature in enumerate(temperatures)
        for _ in range(n)
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "iteration", "temperature", "seed", "origin"])


def output_rows(items: Sequence[str], generate: GenerateParams) -> pd.DataFrame:
    """The rows of an `outputs` table: per item the greedy answer (or the one that is sampled in its place), its
    revisions, and samples at each temperature."""
    chosen = set(sorted(items)[: generate.sampled_items])
    rows = []
    for item in items:
        rows += [(item, generate.temperature, -1, turn) for turn in range(generate.refinements + 1)]
        if item in chosen:
            rows += [(item, t, sample, 0) for t in generate.temperatures for sample in range(generate.samples)]
    return pd.DataFrame(rows, columns=["prompt_id", "temperature", "sample", "turn"])


def endings(where: str, rows: pd.DataFrame, ends: Sequence[int], most: int, exact: bool) -> list[str]:
    """Lines on rows of the file `where` that ended otherwise than they say: `stop` ends with the first end token;
    `length` has none, and `most` tokens (no more, where not `exact`: a model's context may be shorter)."""
    lines = []
    for row, ids, reason in zip(rows.index, rows["token_ids"], rows["finish_reason"], strict=True):
        ended = np.flatnonzero(np.isin(ids, list(ends)))
        whole = len(ended) == 1 and ended[0] == len(ids) - 1
        cut = not len(ended) and (len(ids) == most or not exact)
        if len(ids) > most or not (whole if reason == "stop" else reason == "length" and cut):
            end = f"the first end token is at {ended[0]}" if len(ended) else "no end token"
            lines.append(
                f"{where}, row {row}: finish_reason is {reason!r}; it has {len(ids)} tokens of at most {most}, {end}"
            )
    return lines


def log_probabilities(where: str, responses: pd.DataFrame) -> list[str]:
    """Lines on rows of the file `where` whose `logp` cannot be the engine's: that of a solution, which nobody sampled;
    one above 0; one that is absent beside others (an engine reports all, or none)."""
    logp, gold = responses["logp"], responses["origin"] == "gold"
    reported = logp[~gold].notna().any()
    wrong = logp.gt(0) | logp.notna().where(gold, logp.isna() & reported)
    return [
        f"{where}, row {row}: logp is {logp[row]}; expected {'none' if gold[row] else 'at most 0'}"
        for row in responses.index[wrong]
    ]
