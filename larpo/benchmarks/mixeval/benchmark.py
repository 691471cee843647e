"""MixEval and MixEval-Hard (Ni et al. 2024), release 2024-06-01: questions with reference answers, and with options.

The overall score is the mean over all items, as upstream prints it (there from halves rounded to three decimals; both
halves of a release are equally large).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from larpo.benchmarks import check_source, parse_options, read_rows, response_text
from larpo.benchmarks.gsm8k import choose
from larpo.benchmarks.judge import JudgeClient, store_folder
from larpo.benchmarks.mixeval.parsers import ask_judge, chosen_option, free_form_candidates, free_form_correct, letters
from larpo.benchmarks.verifiable import interval, shares
from larpo.config.params import Params
from larpo.config.sections import BenchmarkParams, JudgeParams, Section
from larpo.errors import ParameterError, UserError
from larpo.hashing import digest

HUB = "MixEval/MixEval"
PARSER = "gpt-3.5-turbo-0125"
"""Upstream's model parser."""
KINDS = ("free-form", "multiple-choice")
SHORTLY = "Answer the question shortly."
STEP_BY_STEP = "Answer the question. \nLet's think step by step."
BY_LETTER = "Answer with the option letter from the given choices directly."
REASONED = ("BBH", "GSM8k", "MATH")
"""Sources of free-form problems that are asked for their working."""


class Options(Section):
    parser: Literal["rule", "model"] = "rule"
    unparsed: Literal["wrong", "random"] = "wrong"
    """A response that no parser can read counts as wrong; `random` is upstream's choice, for comparison."""
    seed: int = 42
    """Of those draws; with upstream's 42, its rule parser's draws for the same responses in the same order."""


def prompt(item: dict[str, Any]) -> str:
    """An item as it is put to a model, word for word as upstream does."""
    context = str(item.get("context"))
    given = context.strip(" ") != "" and context.lower() not in ("none", "null")
    if item["problem_type"] == "free-form":
        asked = f"{item['prompt']}\n{STEP_BY_STEP if item['benchmark_name'] in REASONED else SHORTLY}"
        return f"Question: {context}\n{asked}" if given else f"Question: {asked}"
    options = "\n".join(f"{x}. {o}" for x, o in zip(letters(item["options"]), item["options"], strict=True))
    asked = f"{item['prompt']}\n{options}\n{BY_LETTER}"
    return f"{context}\n{asked}" if given else asked


def check_item(item: dict[str, Any], where: str) -> dict[str, Any]:
    """Refuse an item that cannot be scored."""
    kind, target, options = item.get("problem_type"), item.get("target"), item.get("options")
    if kind not in KINDS:
        raise UserError(f"{where}: problem_type: expected one of {', '.join(KINDS)}, found {kind!r}")
    if kind == "free-form":
        if not isinstance(target, list) or not target:
            raise UserError(f"{where}: target: expected a list of acceptable answers, found {target!r}")
    elif not isinstance(options, list) or len(options) < 2:
        raise UserError(f"{where}: options: expected a list of at least two, found {options!r}")
    elif not (
        isinstance(target, list)
        and len(target) == 1
        and isinstance(target[0], int)
        and target[0] in range(len(options))
    ):
        raise UserError(f"{where}: target: expected a list of one index into the options, found {target!r}")
    return item


def read_items(data: str, hard: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """(problem type, id) → item, of a release's folder (with free-form.json and multiple-choice.json, or with the
    folders mixeval and mixeval-hard that have them), or of the hub."""
    name = "mixeval-hard" if hard else "mixeval"
    folder = Path(data)
    if not folder.exists():
        return _hub_items(data, hard)
    if not (folder / "free-form.json").is_file() and (folder / name).is_dir():
        folder = folder / name
    found = {}
    for kind in KINDS:
        path = folder / f"{kind}.json"
        if not path.is_file():
            raise UserError(f"{path}: not found; expected a folder with free-form.json and multiple-choice.json")
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from None
        for key, item in content.items():
            found[kind, str(key)] = check_item(item, f"{path}, item {key}")
    return found


def _hub_items(data: str, hard: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """The hub's copy: one configuration per benchmark, one split per problem type, columns as in the files."""
    import datasets

    config = "MixEval_Hard" if hard else "MixEval"
    found = {}
    for kind, split in zip(KINDS, ("free_form", "multiple_choice"), strict=True):
        try:
            rows = datasets.load_dataset(data, config, split=split)
        except Exception as error:  # noqa: BLE001 - the errors of files and of the hub have no common base
            reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
            raise ParameterError("data", f"cannot load {data!r}, {config}, {split} ({reason[:200]})") from None
        for i, row in enumerate(rows):
            item = dict(row)
            if kind == "multiple-choice" and isinstance(item.get("target"), list):
                # One column for both types may hold the index as text.
                item["target"] = [int(t) if isinstance(t, str) and t.isdigit() else t for t in item["target"]]
            found[kind, str(item.get("id", i))] = check_item(item, f"{data}, {split}, row {i}")
    return found


def read_response(item: dict[str, Any], response: str) -> tuple[str | None, float]:
    """(what was parsed, score 0 or 1) of a response by the rules; nothing is parsed from an empty one."""
    if item["problem_type"] == "free-form":
        candidates = free_form_candidates(response)
        found = " | ".join(dict.fromkeys(map(str, candidates))) if response.strip() else None
        return found, float(free_form_correct(candidates, item["target"]))
    letter = chosen_option(response, item["options"])
    return letter, float(letter == letters(item["options"])[item["target"][0]])


def evaluate(
    items: list[dict[str, Any]], responses: list[str], options: Options, judge: JudgeClient | None
) -> pd.DataFrame:
    """Columns parsed (None: no parser could read it), score and, with a model as the parser, judgement (JSON text)."""
    if options.parser == "rule":
        pairs = [read_response(item, response) for item, response in zip(items, responses, strict=True)]
        frame = pd.DataFrame(pairs, columns=["parsed", "score"]).assign(judgement=None)
    else:
        told = ask_judge(items, responses, judge)
        rows = []
        for item, one in zip(items, told, strict=True):
            value, score = one["value"], 0.0
            if isinstance(value, float):
                score = value
            elif value is not None:
                score = float(value == letters(item["options"])[item["target"][0]])
            reply = json.dumps(one["reply"], sort_keys=True, ensure_ascii=False)
            rows.append((None if value is None else str(value), score, reply))
        frame = pd.DataFrame(rows, columns=["parsed", "score", "judgement"])
    frame["parsed"] = frame["parsed"].astype(object).where(frame["parsed"].notna(), None)
    if options.unparsed == "random":
        rng = random.Random(options.seed)
        for i, item in enumerate(items):
            if frame["parsed"][i] is None:
                frame.loc[i, "score"] = drawn_score(item, options.parser, rng)
    return frame


def drawn_score(item: dict[str, Any], parser: str, rng: random.Random) -> float:
    """Upstream's stand-in for a response it cannot read: a random option, or (model parser) a random score."""
    if item["problem_type"] == "multiple-choice":
        return float(rng.choice(letters(item["options"])) == letters(item["options"])[item["target"][0]])
    return 0.0 if parser == "rule" else round(rng.random(), 1)


def summary(kinds: list[str], sources: list[str], scores: np.ndarray) -> dict[str, Any]:
    """Overall, per problem type and per source benchmark, each with its 95 % interval.

    A source with both types (AGIEval) is told apart by them; upstream prints its multiple-choice half alone, under the
    plain name.
    """
    frame = pd.DataFrame({"kind": kinds, "source": sources, "score": scores})
    both = frame.groupby("source")["kind"].transform("nunique") > 1
    frame["source"] = frame["source"].where(~both, frame["source"] + " " + frame["kind"])
    halves = frame.groupby("kind")["score"]
    return {
        "scores": {"overall": interval(frame["score"])}
        | {kind.replace("-", "_"): interval(rows) for kind, rows in halves},
        "sources": {name: interval(rows) | {"items": len(rows)} for name, rows in frame.groupby("source")["score"]},
        # What upstream prints: the mean of both halves, each rounded to three decimals as Python rounds (pandas does it
        # otherwise where a fourth decimal is a 5).
        "upstream_overall": sum(round(sum(rows) / len(rows), 3) for _, rows in halves) / len(halves),
    }


class MixEval:
    hard = False

    def __init__(self, params: Params, entry: BenchmarkParams):
        self.entry, self.options = entry, parse_options(Options, entry.options)
        self.source = check_source(entry.data, HUB)
        # The rules ask nobody, whatever judge is named; a model parser without one is upstream's.
        self.judge, self.judge_name = None, entry.judge or PARSER
        if self.options.parser == "model":
            self.judge = params.judges[entry.judge] if entry.judge else JudgeParams(model=PARSER)

    def items(self) -> pd.DataFrame:
        """One conversation per item; `answer` is its first target, or the letter of the right option."""
        rows = []
        for (kind, key), item in read_items(self.source, self.hard).items():
            target = item["target"][0]
            answer = str(target) if kind == "free-form" else letters(item["options"])[target]
            asked = [{"role": "user", "content": prompt(item)}]
            meta = json.dumps({"id": key} | item, sort_keys=True, ensure_ascii=False)
            rows.append((digest("mixeval", self.hard, kind, key), "mixeval", asked, answer, meta))
        return choose(
            pd.DataFrame(rows, columns=["prompt_id", "source", "messages", "answer", "meta"]), self.entry.items
        )

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        known = {p: json.loads(m) for p, m in zip(items["prompt_id"], items["meta"], strict=True)}
        judge = JudgeClient(self.judge, store_folder(), self.judge_name) if self.judge else None
        found = evaluate([known[p] for p in outputs["prompt_id"]], outputs["text"].tolist(), self.options, judge)
        return found.set_axis(outputs.index)

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """Scores of the greedy outputs."""
        greedy = evaluations[(evaluations["sample"] < 0) & (evaluations["turn"] == 0)]
        known = {p: json.loads(m) for p, m in zip(items["prompt_id"], items["meta"], strict=True)}
        facts = [known[p] for p in greedy["prompt_id"]]
        found = summary(
            [f["problem_type"] for f in facts], [f["benchmark_name"] for f in facts], greedy["score"].to_numpy()
        )
        return {"items": len(greedy)} | found | shares(greedy)


class MixEvalHard(MixEval):
    hard = True


def score_file(
    path: str | Path,
    data: str | None = None,
    hard: bool = False,
    parser: str = "rule",
    unparsed: str = "wrong",
    seed: int = 42,
    judge_model: str = PARSER,
    judge_url: str | None = None,
) -> dict[str, Any]:
    """Score MixEval responses: JSON Lines with `id` and `response`, or a folder with a file per problem type.

    A row may carry its item (target, problem_type, options, benchmark_name, prompt); else the item is looked up by
    problem type and id in `data`, a folder of the release. Without problem_type in a row, the file's name says it
    (free-form, freeform, multiple-choice, multichoice).

    Parameters
    ----------
    parser
        `rule`, or `model`: then `judge_model` at `judge_url` (None: OpenAI's) reads the responses; replies are kept in
        judgements/.
    """
    options = parse_options(Options, {"parser": parser, "unparsed": unparsed, "seed": seed})
    path = Path(path)
    files = response_files(path) if path.is_dir() else [path]
    release = read_items(data, hard) if data is not None else {}
    items, responses, seen = [], [], set()
    for file in files:
        for i, row in enumerate(read_rows(file, "rows with id and response")):
            where = f"{file}, row {i}"
            response = response_text(row, where)
            item = _item_of(row, file, release, where)
            key = (item["problem_type"], str(row.get("id", f"{file}:{i}")))
            if key in seen:
                raise UserError(f"{where}: {key[0]} item {key[1]} appears twice; expected each once")
            seen.add(key)
            items.append(item)
            responses.append(response)
    judge = None
    if options.parser == "model":
        judge = JudgeClient(JudgeParams(model=judge_model, base_url=judge_url), store_folder(), judge_model)
    frame = evaluate(items, responses, options, judge)
    found = summary([i["problem_type"] for i in items], [i["benchmark_name"] for i in items], frame["score"].to_numpy())
    left_out = {"items_without_response": len(set(release) - seen)} if release else {}
    return (
        {"benchmark": "mixeval_hard" if hard else "mixeval", "parser": parser, "items": len(items)}
        | found
        | {"unparsed": float(frame["parsed"].isna().mean())}
        | left_out
    )


def response_files(folder: Path) -> list[Path]:
    """The files of a folder that hold responses, free-form first: not upstream's judgements and states beside them."""
    found = [
        (KINDS.index(kind), p)
        for p in sorted(folder.iterdir())
        if ".json" in p.suffixes or ".jsonl" in p.suffixes
        if not p.name.startswith(("judge_results", "status"))
        if (kind := _kind_of(p))
    ]
    if not found:
        raise UserError(f"{folder}: no responses; expected free-form.jsonl and multiple-choice.jsonl")
    return [p for _, p in sorted(found)]


def _kind_of(file: Path) -> str | None:
    """The problem type that a file's name says."""
    name = file.name.lower().replace("-", "").replace("_", "")
    if "multiplechoice" in name or "multichoice" in name:
        return "multiple-choice"
    return "free-form" if "freeform" in name else None


def _item_of(row: dict[str, Any], file: Path, release: dict, where: str) -> dict[str, Any]:
    """The item that a row answers: the release's where it is known, else what the row itself carries."""
    kind = row.get("problem_type")
    if kind is None:
        if row.get("options") is not None:
            kind = "multiple-choice"
        elif (named := _kind_of(file)) is not None:
            kind = named
        elif "target" in row:
            kind = "free-form"
        else:
            raise UserError(
                f"{where}: no problem_type, and the file's name does not say it (an id stands for two items); add "
                "problem_type to the rows, or name the file free-form.jsonl or multiple-choice.jsonl"
            )
    if release:
        item = release.get((kind, str(row.get("id"))))
        if item is None:
            raise UserError(f"{where}: no {kind} item {row.get('id')!r} in the folder that data names")
        if row.get("prompt") not in (None, item["prompt"]):
            raise UserError(
                f"{where}: prompt {row['prompt'][:60]!r} is not that of {kind} item {row.get('id')} in the folder that "
                "data names; is it another release, or the other of mixeval and mixeval_hard?"
            )
        return item
    if "target" not in row:
        raise UserError(f"{where}: no target; name the release's folder by data (--data), or add the item to the row")
    return check_item({"benchmark_name": "unnamed", "prompt": ""} | row | {"problem_type": kind}, where)
