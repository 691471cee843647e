"""MATH (Hendrycks et al. 2021) and its subset MATH-500: problems whose answer is a mathematical expression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from larpo.benchmarks import check_ns, check_source, load_rows, parse_options, read_rows, response_text
from larpo.benchmarks.gsm8k import choose, first_examples
from larpo.benchmarks.verifiable import aggregate, interval
from larpo.config.params import Params
from larpo.config.sections import BenchmarkParams, Section
from larpo.errors import ParameterError, UserError
from larpo.hashing import digest

HUB = "HuggingFaceH4/MATH-500"
INSTRUCTION = r"Reason step by step, and put the final answer within \boxed{}."


class Options(Section):
    shots: int = Field(0, ge=0, description="worked examples put before the problem, as turns of the conversation")
    examples: str | None = Field(None, description="file with problem and solution that the examples are taken from")
    system: str | None = None
    ns: list[Annotated[int, Field(ge=1)]] | None = Field(None, description="N of Pass@N; null: 1, 2, 4, … and all")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` or `\fbox{…}` with balanced braces, or of `\boxed x`; None without one."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("oxed" if text.startswith("\\boxed", start) else "box")[2]
    if rest.startswith(" "):
        return rest.strip().split("$")[0].strip() or None
    if not rest.startswith("{"):
        return None
    depth = 0
    for i, c in enumerate(rest):
        escaped = i > 0 and rest[i - 1] == "\\"
        depth += (c == "{" and not escaped) - (c == "}" and not escaped)
        if depth == 0:
            return rest[1:i].strip() or None
    return None  # cut off inside the box


def equivalent(found: str | None, gold: str) -> bool:
    """Whether two answers are the same: as text without white space, or as mathematics (`math-verify`)."""
    if found is None:
        return False
    if "".join(found.split()) == "".join(gold.split()):
        return True
    from math_verify import parse, verify

    # Its time limit needs the main thread's signals; nodes and commands score there.
    a, b = (parse(f"\\boxed{{{x}}}") for x in (gold, found))
    return bool(a) and bool(b) and bool(verify(a, b))


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": f"{text}\n\n{INSTRUCTION}"}


def gold_answer(row: dict[str, Any], where: str, i: int) -> str:
    answer = row.get("answer")
    answer = answer if isinstance(answer, str) else last_boxed(str(row.get("solution", "")))
    if not isinstance(row.get("problem"), str) or answer is None:
        raise UserError(f"{where}, row {i}: expected `problem` and `answer` (or a `solution` with a \\boxed one)")
    return answer


class Math:
    def __init__(self, params: Params, entry: BenchmarkParams):
        self.entry, self.options = entry, parse_options(Options, entry.options)
        self.source = check_source(entry.data, HUB)
        if self.options.shots and not self.options.examples:
            raise ParameterError("options.examples", "shots need a file of worked examples; name one")
        if self.options.examples:
            check_source(self.options.examples, HUB, "options.examples")
        check_ns(self.options.ns, entry)

    def items(self) -> pd.DataFrame:
        """One conversation per problem; `answer` is the gold expression in LaTeX."""
        what = "MATH rows with problem and answer"
        before = [{"role": "system", "content": self.options.system}] if self.options.system else []
        if self.options.shots:
            examples = first_examples(load_rows(self.options.examples, "train", what), self.options.shots)
            for i, row in enumerate(examples):
                if not isinstance(row.get("problem"), str) or not isinstance(row.get("solution"), str):
                    raise UserError(f"{self.options.examples}, row {i}: expected text under `problem` and `solution`")
                before += [question(row["problem"]), {"role": "assistant", "content": row["solution"]}]
        rows = []
        for i, row in enumerate(load_rows(self.source, self.entry.split, what)):
            gold = gold_answer(row, self.source, i)
            rows.append((digest("math", row["problem"]), "math", [*before, question(row["problem"])], gold, None))
        frame = pd.DataFrame(rows, columns=["prompt_id", "source", "messages", "answer", "meta"])
        return choose(frame.drop_duplicates("prompt_id", ignore_index=True), self.entry.items)

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """See `larpo.benchmarks.Benchmark`; an answer outside a box is not parsed."""
        answers = outputs["prompt_id"].map(items.set_index("prompt_id")["answer"])
        parsed = [last_boxed(text) for text in outputs["text"]]
        # Samples repeat their answers, and comparing two expressions takes milliseconds.
        pairs = {pair: equivalent(*pair) for pair in set(zip(parsed, answers, strict=True))}
        scores = [float(pairs[pair]) for pair in zip(parsed, answers, strict=True)]
        return pd.DataFrame({"parsed": parsed, "score": scores}, index=outputs.index)

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        found = aggregate(evaluations, self.options.ns)
        greedy = found["greedy"]
        template = {
            "system": self.options.system,
            "shots": self.options.shots,
            "user": question("{problem}")["content"],
        }
        boxed = {"value": greedy["accuracy"], "low": greedy["low"], "high": greedy["high"]}
        return {"scores": {"boxed": boxed}, "template": template} | found


def score_file(path: str | Path) -> dict[str, Any]:
    """Score MATH outputs: JSON Lines with `problem`, `answer` (or `solution`) and `response`."""
    rows = read_rows(path, "MATH rows with problem, answer and response")
    golds = [gold_answer(row, str(path), i) for i, row in enumerate(rows)]
    parsed = [last_boxed(response_text(row, f"{path}, row {i}")) for i, row in enumerate(rows)]
    values = [equivalent(p, g) for p, g in zip(parsed, golds, strict=True)]
    return {
        "benchmark": "math",
        "items": len(rows),
        "scores": {"boxed": interval(values)},
        "unparsed": sum(p is None for p in parsed) / len(rows),
    }
