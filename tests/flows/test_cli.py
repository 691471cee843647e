"""The command `larpo score` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT


def larpo(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_scores_are_json_and_options_are_checked(tmp_path):
    path = tmp_path / "o.jsonl"
    row = {"problem_type": "multiple-choice", "id": 0, "response": "?", "options": ["x", "y"], "target": [0]}
    path.write_text(json.dumps(row))
    done = larpo("score", "mixeval", str(path), "--unparsed=random", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unparsed"] == 1.0
    for arguments, words in [
        (("mixeval", str(path), "--sed", "3"), "option 'sed' does not exist; did you mean 'seed'"),
        (("mixeval", str(path), "--seed", "x"), "--seed: expected a whole number, found 'x'"),
        (("mixeval", str(path), "--seed"), "--seed expects a value"),
        (("mixevil", str(path)), "'mixevil' does not exist; did you mean 'mixeval'"),
        (("held_out", str(path)), "scores a run's own outputs only"),
        (("gsm8k", str(tmp_path / "absent")), "absent: not found"),
    ]:
        done = larpo("score", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
        assert words in done.stderr, done.stderr


def test_help_names_every_format():
    said = larpo("score", "--help").stdout
    for word in ("gsm8k", "math", "mixeval_hard", "alpaca_eval", "--df-gamed", "problem_type"):
        assert word in said
