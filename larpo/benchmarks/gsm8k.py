"""GSM8K (Cobbe et al. 2021): grade-school word problems whose answer is one number.

Three metrics of the same outputs. Both filters of lm-evaluation-harness's task `gsm8k`: *strict* reads the number after
`####`, *flexible* the last number; both compare text. *answer* is our own: the final answer of the text, by its value.
`options.filter` names the one whose answers the table holds.
"""

import re
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from larpo.benchmarks import problems
from larpo.benchmarks.verifiable import interval
from larpo.rewards.answers import final_number, number, same_number

FILTERS = {
    # name: (pattern, which match counts)
    "flexible": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
    "strict": (re.compile(r"#### (\-?[0-9\.\,]+)"), 0),
}
METRICS = (*FILTERS, "answer")
# What the harness removes from prediction and target before it compares them, in this order.
IGNORED = [re.compile(pattern) for pattern in (r",", r"\$", r"(?s).*#### ", r"\.$")]


def extract(text: str, name: str) -> str | None:
    """What a filter reads from a response; None where it finds nothing."""
    pattern, which = FILTERS[name]
    matches = pattern.findall(text)
    if not matches:
        return None
    match = matches[which]
    return (match if isinstance(match, str) else next(filter(None, match))).strip()


def normalised(text: str) -> str:
    """A prediction or target as the harness compares it."""
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def answer_in(text: str, name: str) -> str | None:
    """What is compared, so that "1,000." and "1000" have one vote; None also where nothing is left of it."""
    if name == "answer":
        return final_number(text)
    return normalised(extract(text, name) or "") or None


def correct(text: str, answer: str, name: str) -> bool:
    """Whether the response's answer under a filter is the gold one (`answer` with or without its working)."""
    if name == "answer":
        return same_number(final_number(text), number(answer.rpartition("####")[2]))
    extracted = extract(text, name)
    return normalised("[invalid]" if extracted is None else extracted) == normalised(answer)


class Options(problems.Options):
    filter: Literal["strict", "flexible", "answer"] = "flexible"


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class Row(problems.Problem):
    question: Text
    answer: Text

    def texts(self) -> tuple[str, str, str]:
        # The calculator annotations <<2+3=5>> are training aids, no part of a solution.
        return self.question, normalised(self.answer), re.sub(r"<<[^>]*>>", "", self.answer)


class GSM8K(problems.Problems):
    name, hub, config = "gsm8k", "openai/gsm8k", "main"
    instruction = (
        "Solve the problem step by step. Then write the final answer on a line of its own as #### followed by the "
        "number."
    )
    expected = "GSM8K rows with question and answer"
    row, options_kind = Row, Options

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """See `larpo.benchmarks.Benchmark`. A response that was cut off is read like any other, as the harness
        does; the share of such responses is among the metrics."""
        answers = outputs["prompt_id"].map(items.set_index("prompt_id")["answer"])
        name = self.options.filter
        parsed = [answer_in(text, name) for text in outputs["text"]]
        scores = [float(correct(text, answer, name)) for text, answer in zip(outputs["text"], answers, strict=True)]
        return pd.DataFrame({"parsed": parsed, "score": scores}, index=outputs.index)

    def summary(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """Accuracy and share of unread responses by each metric."""
        pairs = list(zip(evaluations["text"], evaluations["answer"], strict=True))
        return {
            "scores": {name: interval([correct(*pair, name) for pair in pairs]) for name in METRICS},
            "unparsed": {
                name: float(np.mean([answer_in(text, name) is None for text, _ in pairs])) for name in METRICS
            },
        }
