"""Benchmarks: a name in `BENCHMARKS` is one class in one file and one line here.

    items ─► generate (any checkpoint) ─► score ─► aggregate

Items and outputs are tables of their own, so a new parser, filter or estimator never needs a new generation.
"""

from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd
from pydantic import ValidationError

from larpo.benchmarks.items import join_items
from larpo.config.evaluation import BenchmarkParams, GenerateParams
from larpo.config.judges import JudgeParams
from larpo.config.params import Params
from larpo.config.sections import Section
from larpo.errors import ParameterError, UserError, at, first_error, nearest
from larpo.registry import Registry

S = TypeVar("S", bound=Section)


class Benchmark(Protocol):
    """One whose `score` asks a model also has `judge` (its `JudgeParams`, None where the options need none) and
    `judge_name`: the key is checked before anything is generated.

    One with `judges_one` scores one output per item, which `generate.temperature` may sample, and reports that
    temperature. Others call it greedy.

    One that also reads outputs made elsewhere (`larpo score NAME FILE`) has `read(path)`, which returns items and
    outputs, or outputs that are scored already; `summary(items, evaluations)`, the part of `aggregate` that needs no
    lengths; and `read_options`: the command's options → the keys of `benchmarks.NAME` that they stand for.
    """

    def items(self) -> pd.DataFrame:
        """The items: a `prompts` table with a column `meta`, JSON text or null for what `score` needs beside
        the answer."""

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """Columns parsed (text or null), score (0 to 1) and, where others judged, judgement (JSON text), for
        `outputs` (prompt_id, sample, text, finish_reason, …) in its order and with its index."""

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """The metrics of an `evaluations` table: items, mean_length, truncated, unparsed; `scores`, name →
        value with its 95 % interval, the headline first; `greedy` and `pass` where answers are right or wrong;
        `remark`, a sentence on the scores, where one is due."""


BENCHMARKS = Registry(
    "benchmark",
    {
        "held_out": "larpo.benchmarks.held_out:HeldOut",
        "gsm8k": "larpo.benchmarks.gsm8k:GSM8K",
        "math": "larpo.benchmarks.math:Math",
        "mixeval": "larpo.benchmarks.mixeval.benchmark:MixEval",
        "mixeval_hard": "larpo.benchmarks.mixeval.benchmark:MixEvalHard",
        "alpaca_eval": "larpo.benchmarks.alpaca_eval.benchmark:AlpacaEval",
    },
)


def build_benchmark(params: Params, name: str) -> Benchmark:
    """The benchmark that `benchmarks.NAME` describes; refuses settings and data sources that cannot work."""
    entry: BenchmarkParams = params.entry("benchmarks", name)
    with at(f"benchmarks.{name}"):
        kind = BENCHMARKS.load(entry.benchmark, "benchmark")
        if entry.generate.temperature and not getattr(kind, "judges_one", False):
            raise ParameterError(
                "generate.temperature",
                f"{entry.generate.temperature:g}: {entry.benchmark} calls its first output greedy; expected 0, "
                "and samples at generate.temperatures",
            )
        return kind(params, entry)


def parse_options(kind: type[S], options: dict[str, Any]) -> S:
    """`benchmarks.NAME.options` as a benchmark's own settings; one line for a wrong one."""
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        with at("options"):
            raise first_error(error, list(kind.model_fields)) from None


def score_file(name: str, path: str | Path, **options: str) -> dict[str, Any]:
    """Metrics of outputs that were made elsewhere.

    Parameters
    ----------
    name
        A benchmark that can read them; the formats are those of its `read`.
    options
        Those of the benchmark's `read_options`.
    """
    kind = BENCHMARKS.load(name, "benchmark")
    if not hasattr(kind, "read"):
        raise UserError(f"benchmark {name!r} scores a run's own outputs only; expected one that reads a file")
    if not Path(path).exists():
        raise UserError(f"{path}: not found; expected the outputs to score")
    for key in options:
        if key not in kind.read_options:
            raise UserError(f"larpo score {name}: option {key!r} does not exist{nearest(key, list(kind.read_options))}")
    settings: dict[str, dict[str, Any]] = {"": {}, "options": {}, "judge": {"model": "none"}}
    for key, value in options.items():
        section, _, field = kind.read_options[key].rpartition(".")
        settings[section][field] = value
    with at(file=f"larpo score {name}"):
        judge = JudgeParams(**settings["judge"])
        entry = {"benchmark": name, "judge": judge.model, "options": settings["options"]} | settings[""]
        generate = GenerateParams(max_new_tokens=1)
        bench = kind(Params.model_construct(judges={judge.model: judge}), BenchmarkParams(generate=generate, **entry))
        items, outputs = bench.read(Path(path))
        scored = outputs if "score" in outputs else outputs.join(bench.score(items, outputs))
        return {"benchmark": name, "items": len(outputs)} | bench.summary(items, join_items(scored, items))
