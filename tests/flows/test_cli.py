"""The command `larpo score` as a user calls it."""

import json
import subprocess
import sys

from tests.conftest import ROOT


def larpo(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_scores_are_json(tmp_path):
    path = tmp_path / "o.jsonl"
    row = {"problem_type": "multiple-choice", "id": 0, "response": "?", "options": ["x", "y"], "target": [0]}
    path.write_text(json.dumps(row))
    done = larpo("score", "mixeval", str(path), "--unparsed=random", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unparsed"] == 1.0


def test_help_names_every_format():
    said = larpo("score", "--help").stdout
    for word in ("gsm8k", "math", "mixeval_hard", "alpaca_eval", "--df-gamed", "problem_type"):
        assert word in said
