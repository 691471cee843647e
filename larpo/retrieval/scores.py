"""What a retrieved passage is worth: hits by answer string or by gold passage, and Recall@N.

An answer counts as found when a passage holds it as DPR tests it (Karpukhin et al. 2020): as a sequence of whole tokens
of the passage's text, whatever the case; the title does not count.
"""

import unicodedata
from typing import Any

import pandas as pd
import regex

from larpo.statistics import wilson

# DPR's SimpleTokenizer: a run of letters, digits and marks, or one other visible character.
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def answer_tokens(text: str) -> list[str]:
    """DPR's tokens of a text: Unicode NFD, lower case."""
    return _TOKEN.findall(unicodedata.normalize("NFD", text).lower())


def has_answer(passage: list[str], answers: list[list[str]]) -> bool:
    """Whether some answer's tokens stand side by side in the passage's tokens (`has_answer` of DPR, match "string")."""
    where: dict[str, list[int]] = {}
    for i, token in enumerate(passage):
        where.setdefault(token, []).append(i)
    return any(
        answer and any(passage[i : i + len(answer)] == answer for i in where.get(answer[0], ())) for answer in answers
    )


def judge_hits(found: pd.DataFrame, queries: pd.DataFrame, texts: dict[str, str]) -> pd.DataFrame:
    """Columns hit_answer and hit_gold (None where a query names no gold) for rows of query_id and passage_id."""
    tokens = {key: answer_tokens(text) for key, text in texts.items()}
    answers = {
        q: [answer_tokens(a) for a in some] for q, some in zip(queries["query_id"], queries["answers"], strict=True)
    }
    gold = dict(zip(queries["query_id"], queries["gold"], strict=True))
    pairs = list(zip(found["query_id"], found["passage_id"], strict=True))
    return found.assign(
        hit_answer=[has_answer(tokens[p], answers[q]) for q, p in pairs],
        hit_gold=pd.Series([None if gold[q] is None else p in gold[q] for q, p in pairs], dtype=object).to_numpy(),
    )


def recall_at(found: pd.DataFrame, ns: list[int]) -> dict[str, Any]:
    """Recall@N: the share of queries with a hit among their first N passages, with 95 % Wilson intervals.

    By answer string, and by gold passage over the queries that name some (None where none does).
    """
    out: dict[str, Any] = {"queries": int(found["query_id"].nunique())}
    for name, column in (("answer", "hit_answer"), ("gold", "hit_gold")):
        rows = found[found[column].notna()]
        total = int(rows["query_id"].nunique())
        if not total:
            out[name] = None
            continue
        # Rank of a query's first hit; queries without one have none.
        first = rows[rows[column].astype(bool)].groupby("query_id")["rank"].min().to_numpy()
        out[name] = {}
        for n in sorted(ns):
            hits = int((first < n).sum())
            low, high = wilson(hits, total)
            out[name][str(n)] = {"value": hits / total, "low": low, "high": high}
    return out
