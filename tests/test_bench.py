"""The benchmark's own arithmetic, and that both sides of it do the same work; its figures are in docs/results.md."""

import json
import os
import subprocess
import sys

import pytest

from bench.run import CASES, Case, Side, table
from tests.conftest import ROOT


def test_medians_become_a_table_with_ratios():
    case = Case("Q", (Side("a", ""), Side("b", "")), (("response tokens/s", "a", "b", 2.2), ("1 / GiB", "a", "c", 1)))
    numbers = {"seconds": 2.0, "response tokens/s": 30.0, "GiB": 4.0, "1 / GiB": 0.25}
    text = table(case, {"a": numbers, "b": numbers | {"seconds": 6.0, "response tokens/s": 10.0}})
    assert "| a | 2.00 | 30.0 | 4.00 |" in text and "| b | 6.00 | 10.0 | 4.00 |" in text
    assert "response tokens/s, a to b: **3.00** (goal: at least 2.2)" in text
    assert "to c" not in text, "a side that was left out has no ratio"


def test_goals_name_sides_that_there_are():
    for name, case in CASES.items():
        sides = {side.name for side in case.sides}
        assert all({side, other} <= sides for _, side, other, _ in case.goals), name


MEASURE = """
import runpy, sys
for line in sys.argv[1:]:
    sys.argv = ["bench/measure.py", *line.split()]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_measurements():
    """Two steps on one list of two; TRL's side checks that it reads the tokens that ours does. In one process: most of
    the time goes into imports."""
    shape = "--lists 1 --responses 2 --prompt 6 --response 5 --steps 2"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *(f"{a} {shape}" for a in ("step --side ours", "step --side trl", "forward"))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    every = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and "seconds" in line]
    assert len(every) == 3, done.stdout
    for found in every:
        assert len(found["seconds"]) == 2 and found["peak_gib"] > 1 and 6 <= found["response_tokens"] <= 14
