"""MixEval and MixEval-Hard (Ni et al. 2024), release 2024-06-01: questions with reference answers, and with options.

The overall score is the mean over all items, as upstream prints it (there from halves rounded to three decimals; both
halves of a release are equally large).
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from larpo.benchmarks import parse_options
from larpo.benchmarks.items import build_items, build_outputs, greedy
from larpo.benchmarks.judge import JudgeClient, as_json, store_folder
from larpo.benchmarks.mixeval.items import Item, Key, read_release, read_responses
from larpo.benchmarks.mixeval.judge import ask_judge
from larpo.benchmarks.mixeval.rules import chosen_option, free_form_candidates, free_form_correct, letters
from larpo.benchmarks.verifiable import interval, shares
from larpo.config.evaluation import BenchmarkParams
from larpo.config.judges import JudgeParams
from larpo.config.params import Params
from larpo.config.sections import Section
from larpo.errors import at
from larpo.hashing import digest
from larpo.sources import rows

HUB = "MixEval/MixEval"
PARSER = "gpt-3.5-turbo-0125"
"""Upstream's model parser."""
SHORTLY = "Answer the question shortly."
STEP_BY_STEP = "Answer the question. \nLet's think step by step."
BY_LETTER = "Answer with the option letter from the given choices directly."
REASONED = ("BBH", "GSM8k", "MATH")
"""Sources of free-form problems that are asked for their working."""


def prompt(item: Item) -> str:
    """An item as it is put to a model, word for word as upstream does."""
    context = str(item.context)
    given = context.strip(" ") != "" and context.lower() not in ("none", "null")
    if item.problem_type == "free-form":
        asked = f"{item.prompt}\n{STEP_BY_STEP if item.benchmark_name in REASONED else SHORTLY}"
        return f"Question: {context}\n{asked}" if given else f"Question: {asked}"
    asked = f"{item.prompt}\n{item.listed()}\n{BY_LETTER}"
    return f"{context}\n{asked}" if given else asked


def score_by_rule(item: Item, response: str) -> tuple[str | None, float, None]:
    """(what was parsed, score 0 or 1, no judgement) of a response; nothing is parsed from an empty one."""
    if item.problem_type == "multiple-choice":
        letter = chosen_option(response, item.options)
        return letter, float(letter == item.answer()), None
    candidates = free_form_candidates(response)
    parsed = " | ".join(dict.fromkeys(map(str, candidates))) if response.strip() else None
    return parsed, float(free_form_correct(candidates, item.target)), None


def score_by_model(item: Item, verdict: dict[str, Any]) -> tuple[str | None, float, str]:
    """(what the model read, score, its reply as JSON text)."""
    value = verdict["value"]
    score = value if isinstance(value, float) else float(value is not None and value == item.answer())
    return None if value is None else str(value), score, as_json(verdict["reply"])


def drawn_score(item: Item, parser: str, rng: random.Random) -> float:
    """Upstream's stand-in for a response it cannot read: a random option, or (model parser) a random score."""
    if item.problem_type == "multiple-choice":
        return float(rng.choice(letters(item.options)) == item.answer())
    return 0.0 if parser == "rule" else round(rng.random(), 1)


def totals(items: list[Item], scores: np.ndarray) -> dict[str, Any]:
    """Overall, per problem type and per source benchmark, each with its 95 % interval.

    A source with both types (AGIEval) is told apart by them; upstream prints its multiple-choice half alone, under the
    plain name.
    """
    frame = pd.DataFrame([(i.problem_type, i.benchmark_name) for i in items], columns=["kind", "source"])
    both = frame.groupby("source")["kind"].transform("nunique") > 1
    frame["source"] = frame["source"].where(~both, frame["source"] + " " + frame["kind"])
    frame["score"] = scores
    halves = frame.groupby("kind")["score"]
    kinds = {kind.replace("-", "_"): interval(half) for kind, half in halves}
    return {
        "scores": {"overall": interval(frame["score"])} | kinds,
        "sources": {name: interval(part) | {"items": len(part)} for name, part in frame.groupby("source")["score"]},
        # What upstream prints: the mean of both halves, each rounded to three decimals as Python rounds (pandas does it
        # otherwise where a fourth decimal is a 5).
        "upstream_overall": sum(round(sum(half) / len(half), 3) for _, half in halves) / len(halves),
    }


class Options(Section):
    parser: Literal["rule", "model"] = "rule"
    unparsed: Literal["wrong", "random"] = Field(
        "wrong", description="a response that no parser can read; `random` is upstream's choice, for comparison"
    )
    seed: int = Field(42, description="of those draws; with upstream's 42, its rule parser's for the same responses")


class MixEval:
    hard = False
    judges_one = True
    read_options = {key: f"options.{key}" for key in ("parser", "unparsed", "seed")} | {
        "data": "data",
        "judge_model": "judge.model",
        "judge_url": "judge.base_url",
    }

    def __init__(self, params: Params, entry: BenchmarkParams):
        self.entry, self.options = entry, parse_options(Options, entry.options)
        with at("data"):
            self.source = HUB if entry.data is None else rows.check_exists(entry.data)
        # The rules ask nobody, whatever judge is named; a model parser without one is upstream's.
        self.judge, self.judge_name = None, entry.judge or PARSER
        if self.options.parser == "model":
            self.judge = params.judges[entry.judge] if entry.judge else JudgeParams(model=PARSER)

    def items(self) -> pd.DataFrame:
        """One conversation per item; `answer` is its first target, or the letter of the right option."""
        with at("data"):
            release = read_release(self.source, self.hard)
        return self._table((digest("mixeval", self.hard, *key), key, item) for key, item in release.items())

    def read(self, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See `read_responses`; items of the release without a response are among the items."""
        with at("data"):
            release = {} if self.entry.data is None else read_release(self.source, self.hard)
        answered = read_responses(path, release)
        items = {key: item for key, (item, _) in answered.items()} | release
        numbered = ((str(i), key, item) for i, (key, item) in enumerate(items.items()))
        return self._table(numbered), build_outputs(response for _, response in answered.values())

    def _table(self, found: Iterable[tuple[str, Key, Item]]) -> pd.DataFrame:
        table = []
        for prompt_id, (_, key), item in found:
            meta = json.dumps({"id": key} | item.model_dump(), sort_keys=True, ensure_ascii=False)
            table.append((prompt_id, "mixeval", [{"role": "user", "content": prompt(item)}], item.answer(), meta))
        return build_items(table, self.entry.items)

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        asked, texts = _items_of(items, outputs), outputs["text"].tolist()
        if self.judge is None:
            scored = [score_by_rule(item, text) for item, text in zip(asked, texts, strict=True)]
        else:
            verdicts = ask_judge(asked, texts, JudgeClient(self.judge, store_folder(), self.judge_name))
            scored = [score_by_model(item, verdict) for item, verdict in zip(asked, verdicts, strict=True)]
        if self.options.unparsed == "random":
            rng, parser = random.Random(self.options.seed), self.options.parser
            scored = [
                (parsed, score if parsed is not None else drawn_score(item, parser, rng), reply)
                for item, (parsed, score, reply) in zip(asked, scored, strict=True)
            ]
        return pd.DataFrame(scored, columns=["parsed", "score", "judgement"], index=outputs.index)

    def summary(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        about = {"parser": self.options.parser, "unparsed": float(evaluations["parsed"].isna().mean())}
        left_out = {} if self.entry.data is None else {"items_without_response": len(items) - len(evaluations)}
        return about | totals(_items_of(items, evaluations), evaluations["score"].to_numpy()) | left_out

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """Scores of the one output per item, and the temperature that it was sampled at; 0: greedy."""
        first = greedy(evaluations)
        found = totals(_items_of(items, first), first["score"].to_numpy())
        return {"items": len(first), "temperature": first["temperature"].iloc[0].item()} | found | shares(first)


class MixEvalHard(MixEval):
    hard = True


def _items_of(items: pd.DataFrame, outputs: pd.DataFrame) -> list[Item]:
    """The item of each output."""
    known = {p: Item.model_validate_json(m) for p, m in zip(items["prompt_id"], items["meta"], strict=True)}
    return [known[p] for p in outputs["prompt_id"]]
