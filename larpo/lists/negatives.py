"""Negatives that answer another prompt (Section 3.2): a random one, or the one most similar in meaning.

They are sampled responses, never gold ones: the kinds of negatives then differ in nothing but the prompt that they
answer. None was scored for the list's own prompt, so one may be right by chance where answers are short.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from larpo.config.sections import EncoderParams
from larpo.errors import UserError
from larpo.hashing import seed_of

CHUNK = 1024  # prompts whose similarities to all others are in memory at once


class Related:
    """Cosine similarity of prompts by their texts' unit vectors.

    Parameters
    ----------
    ids, texts
        (P,) prompt ids and what was encoded. Prompts of equal text count as one: neither is another's neighbour.
    vectors
        (P, d) float32, each of length 1.
    """

    def __init__(self, ids: list[str], texts: list[str], vectors: np.ndarray):
        self.place = {key: i for i, key in enumerate(ids)}
        self.text = pd.factorize(np.asarray(texts, dtype=object))[0]
        self.vectors = np.asarray(vectors, dtype=np.float32)

    def nearest(self, wanted: list[str], among: list[str]) -> list[str | None]:
        """For each wanted prompt the other one of highest cosine; a tie goes to the smaller id, None: no other."""
        if unknown := [key for key in [*wanted, *among] if key not in self.place]:
            raise UserError(
                f"negatives=related: prompt {unknown[0]} and {len(unknown) - 1} others are not in the iteration's "
                "prompts table; set lists.memory=current or prompts.draw=same"
            )
        among = sorted(among)
        columns = np.array([self.place[key] for key in among], dtype=int)
        rows = np.array([self.place[key] for key in wanted], dtype=int)
        found: list[str | None] = []
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            cosine = self.vectors[part] @ self.vectors[columns].T
            cosine[self.text[part][:, None] == self.text[columns][None, :]] = -np.inf
            best = cosine.argmax(axis=1) if len(columns) else np.zeros(len(part), int)
            found += [among[j] if len(columns) and np.isfinite(cosine[i, j]) else None for i, j in enumerate(best)]
        return found


def draw(
    positives: pd.DataFrame, pool: pd.DataFrame, count: int, ids: np.ndarray, seed: int, related: Related | None
) -> pd.DataFrame:
    """`count` responses of other prompts for each prompt that has positives.

    Without `related` each is drawn uniformly from all responses of all other prompts, with it from those of the
    nearest other prompt. No response is drawn twice for a list, nor one with the very tokens of a positive of it.

    Parameters
    ----------
    positives, pool
        Rows with prompt (a place among `ids`, rising), response_id, tokens (which identifies the token ids) and tie.
    ids
        Prompt ids, in rising order.
    seed
        With the prompt's id it decides the draw, whatever the rows' order.

    Returns
    -------
    Rows of `pool` with `prompt` that of the list, fewer than `count` of them where there are no more.
    """
    pool = pool.iloc[np.lexsort([pool["tie"], pool["prompt"]])]
    first = np.searchsorted(pool["prompt"], np.arange(len(ids) + 1)).tolist()
    wanted, starts = np.unique(positives["prompt"].to_numpy(), return_index=True)
    own = np.split(positives["tokens"].to_numpy(), starts)[1:]
    there = np.unique(pool["prompt"].to_numpy())
    nearest = related.nearest(list(ids[wanted]), list(ids[there])) if related else [None] * len(wanted)
    place = {key: i for i, key in enumerate(ids)}
    tokens, taken, owners = pool["tokens"].to_numpy(), [], []
    for prompt, banned, source in zip(wanted.tolist(), own, nearest, strict=True):
        if related is None:
            start, length = first[prompt], first[prompt + 1] - first[prompt]
            places, available = _all_but(start, length), len(pool) - length
        else:
            start, end = (first[place[source]], first[place[source] + 1]) if source is not None else (0, 0)
            places, available = _from(start), end - start
        rng = np.random.default_rng(seed_of(seed, "negatives", ids[prompt]))
        rows = _pick(rng, available, places, tokens, set(banned.tolist()), count)
        taken += rows
        owners += [prompt] * len(rows)
    return pool.iloc[taken].assign(prompt=owners)


def _all_but(start: int, length: int) -> Callable[[int], int]:
    """Places 0, 1, … of what is left when `length` rows from `start` are taken out."""
    return lambda i: i if i < start else i + length


def _from(start: int) -> Callable[[int], int]:
    return lambda i: start + i


def _pick(
    rng: np.random.Generator, available: int, places: Callable[[int], int], tokens: np.ndarray, banned: set, count: int
) -> list[int]:
    """Uniform draws without replacement until `count` are not banned, or nothing is left."""
    taken: list[int] = []
    seen: set[int] = set()
    while len(taken) < count and len(seen) < available:
        i = int(rng.integers(available))
        if i not in seen:
            seen.add(i)
            if tokens[places(i)] not in banned:
                taken.append(places(i))
    return taken


def related(prompts: pd.DataFrame, model: str) -> Related:
    """Similarity of the prompts by the meaning of their last messages."""
    from larpo.retrieval.encoder import Encoder  # loads torch, which checking parameters does without

    texts = [messages[-1]["content"] for messages in prompts["messages"]]
    vectors = Encoder(EncoderParams(model=model), "lists.related_model").queries(texts)
    return Related(prompts["prompt_id"].tolist(), texts, vectors)
