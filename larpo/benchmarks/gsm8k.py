"""GSM8K (Cobbe et al. 2021): grade-school word problems whose answer is one number.

Both filters of lm-evaluation-harness's task `gsm8k` are reported, on the same outputs: *strict* reads the number after
`####`, *flexible* the last number. `options.filter` names the one whose answers the table holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import Field

from larpo.benchmarks import check_ns, check_source, load_rows, parse_options, read_rows, response_text
from larpo.benchmarks.verifiable import aggregate, interval
from larpo.config.params import Params
from larpo.config.sections import BenchmarkParams, Section
from larpo.errors import ParameterError, UserError
from larpo.hashing import digest, unit_interval

T = TypeVar("T")
HUB = "openai/gsm8k"
INSTRUCTION = (
    "Solve the problem step by step. Then write the final answer on a line of its own as #### followed by the number."
)
FILTERS = {
    # name: (pattern, which match counts)
    "strict": (re.compile(r"#### (\-?[0-9\.\,]+)"), 0),
    "flexible": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
}
# What the harness removes from prediction and target before it compares them, in this order.
IGNORED = [re.compile(pattern) for pattern in (r",", r"\$", r"(?s).*#### ", r"\.$")]


class Options(Section):
    filter: Literal["strict", "flexible"] = "flexible"
    shots: int = Field(0, ge=0, description="worked examples put before the question, as turns of the conversation")
    examples: str | None = Field(None, description="file that the examples are taken from; null: the hub's train split")
    system: str | None = None
    ns: list[Annotated[int, Field(ge=1)]] | None = Field(None, description="N of Pass@N; null: 1, 2, 4, … and all")


def extract(text: str, name: str) -> str | None:
    """What a filter reads from a response; None where it finds nothing."""
    pattern, which = FILTERS[name]
    found = pattern.findall(text)
    if not found:
        return None
    match = found[which]
    return (match if isinstance(match, str) else next(filter(None, match))).strip()


def answer_in(text: str, name: str) -> str | None:
    """The same as it is compared, so that "1,000." and "1000" have one vote; None also where nothing is left of it."""
    found = extract(text, name)
    return None if found is None else normalised(found) or None


def normalised(text: str) -> str:
    """A prediction or target as the harness compares it."""
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def correct(text: str, answer: str, name: str) -> bool:
    """Whether the response's answer under a filter is the gold one (`answer` with or without its working)."""
    found = extract(text, name)
    return normalised("[invalid]" if found is None else found) == normalised(answer)


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": f"{text}\n\n{INSTRUCTION}"}


def problems(rows: list[dict[str, Any]], where: str) -> list[tuple[str, str]]:
    for i, row in enumerate(rows):
        for key in ("question", "answer"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise UserError(f"{where}, row {i}: expected text under {key!r}, found {row.get(key)!r}")
    return [(row["question"], row["answer"]) for row in rows]


class GSM8K:
    def __init__(self, params: Params, entry: BenchmarkParams):
        self.entry, self.options = entry, parse_options(Options, entry.options)
        self.source = check_source(entry.data, HUB)
        self.example_source = check_source(self.options.examples, HUB, "options.examples")
        check_ns(self.options.ns, entry)

    def items(self) -> pd.DataFrame:
        """One conversation per problem; `answer` is the bare gold number."""
        what = "GSM8K rows with question and answer"
        found = problems(load_rows(self.source, self.entry.split, what, "main"), self.source)
        before = [{"role": "system", "content": self.options.system}] if self.options.system else []
        if self.options.shots:
            examples = problems(load_rows(self.example_source, "train", what, "main"), self.example_source)
            for asked, answer in first_examples(examples, self.options.shots):
                # The calculator annotations <<2+3=5>> are training aids, no part of a solution.
                worked = re.sub(r"<<[^>]*>>", "", answer)
                before += [question(asked), {"role": "assistant", "content": worked}]
        rows = [
            (digest("gsm8k", asked), "gsm8k", [*before, question(asked)], normalised(answer), None)
            for asked, answer in found
        ]
        frame = pd.DataFrame(rows, columns=["prompt_id", "source", "messages", "answer", "meta"])
        return choose(frame.drop_duplicates("prompt_id", ignore_index=True), self.entry.items)

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """See `larpo.benchmarks.Benchmark`. A response that was cut off is read like any other, as the harness
        does; the share of such responses is among the metrics."""
        answers = outputs["prompt_id"].map(items.set_index("prompt_id")["answer"])
        name = self.options.filter
        return pd.DataFrame(
            {
                "parsed": [answer_in(t, name) for t in outputs["text"]],
                "score": [float(correct(t, a, name)) for t, a in zip(outputs["text"], answers, strict=True)],
            },
            index=outputs.index,
        )

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """Accuracy, Pass@N and strategies under `options.filter`; greedy accuracy under both filters."""
        greedy = evaluations[(evaluations["sample"] < 0) & (evaluations["turn"] == 0)]
        found = {"scores": both_filters(greedy["text"].tolist(), greedy["answer"].tolist())}
        return found | {"template": self.template()} | aggregate(evaluations, self.options.ns)

    def template(self) -> dict[str, Any]:
        """How a problem is put, which moves scores as much as a model may."""
        asked = question("{question}")["content"]
        return {"system": self.options.system, "shots": self.options.shots, "user": asked}


def both_filters(texts: list[str], answers: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy with its 95 % interval under each filter."""
    return {
        name: interval([correct(t, a, name) for t, a in zip(texts, answers, strict=True)])
        for name in ("flexible", "strict")
    }


def first_examples(examples: list[T], shots: int) -> list[T]:
    if len(examples) < shots:
        raise ParameterError("options.shots", f"{shots} asked for, the examples are {len(examples)}")
    return examples[:shots]


def choose(items: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """`count` items by a hash of their ids, in the source's order; all of them when `count` is None."""
    if count is None:
        return items
    if count > len(items):
        raise ParameterError("items", f"{count} asked for, the source has {len(items)}; expected at most that")
    order = items["prompt_id"].map(lambda p: unit_interval("choose", p)).sort_values(kind="stable")
    return items.loc[sorted(order.index[:count])].reset_index(drop=True)


def score_file(path: str | Path) -> dict[str, Any]:
    """Score GSM8K outputs: JSON Lines with `question`, `answer` (gold, with or without its working) and `response`.

    Returns
    -------
    `scores`: accuracy under both filters with 95 % Wilson intervals; `items`; `unparsed` per filter.
    """
    rows = read_rows(path, "GSM8K rows with question, answer and response")
    for i, row in enumerate(rows):
        if not isinstance(row.get("answer"), str):
            raise UserError(f"{path}, row {i}: expected text under 'answer', found {row.get('answer')!r}")
    texts = [response_text(row, f"{path}, row {i}") for i, row in enumerate(rows)]
    return {
        "benchmark": "gsm8k",
        "items": len(rows),
        "scores": both_filters(texts, [row["answer"] for row in rows]),
        "unparsed": {name: sum(answer_in(t, name) is None for t in texts) / len(texts) for name in FILTERS},
    }
