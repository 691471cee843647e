"""Benchmarks: a name in `BENCHMARKS` is one class in one file (items, score, aggregate) and one line."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import pandas as pd

from larpo.errors import UserError
from larpo.params import BenchmarkParams, Params, nearest


class Benchmark(Protocol):
    def items(self) -> pd.DataFrame:
        """The items, a `prompts` table."""

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """Columns parsed and score for `outputs` (prompt_id, text, finish_reason), in its order."""

    def aggregate(self, evaluations: pd.DataFrame) -> dict[str, Any]:
        """The metrics of an `evaluations` table."""


BENCHMARKS: dict[str, str] = {"held_out": "larpo.benchmarks.held_out:HeldOut"}
"""name → module:class"""


def build_benchmark(params: Params, name: str) -> Benchmark:
    """The benchmark that `benchmarks.NAME` of params.yaml describes."""
    if name not in params.benchmarks:
        raise UserError(f"params.yaml: benchmarks.{name} does not exist{nearest(name, list(params.benchmarks))}")
    entry: BenchmarkParams = params.benchmarks[name]
    module, _, cls = BENCHMARKS[entry.benchmark].partition(":")
    return getattr(importlib.import_module(module), cls)(params, entry)
