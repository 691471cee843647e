"""A project's own reward, named by its dotted path: nodes run and record it, the audit of its run does not run it."""

import hashlib
import html
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.bad_input.harness import invoke, param
from tests.conftest import larpo_command

CODE = """import pandas as pd


class Brief:
    needs_answers = False
    verifiable = True

    def score(self, messages, answers, texts, *, groups=None, cut=None):
        rewards = [-float(len(text)) for text in texts]
        return pd.DataFrame({"reward": rewards, "correct": [len(text) < 5 for text in texts]})

    def taken(self):
        return {}

    def facts(self):
        return {"reward": "brief"}
"""


@pytest.fixture
def project(finished_project, tmp_path, monkeypatch):
    made = finished_project.copy(tmp_path / "project")
    monkeypatch.chdir(made.folder)
    Path("own_reward.py").write_text(CODE)
    param("score.reward", "own_reward:Brief")()
    yield made
    sys.modules.pop("own_reward", None)


def test_a_node_records_it_and_an_audit_leaves_it_alone(project):
    larpo_command(project.folder, "audit", "--no-again")
    assert "own_reward" not in sys.modules
    page = html.unescape(Path("report/audit.html").read_text("utf-8"))
    assert "reward own_reward:Brief is code of the run's own, which is not run here" in page
    shutil.rmtree(".git")
    assert invoke(["score", "1"])[0] == 0
    notes = json.loads(Path("data/score/1.manifest.json").read_text())["notes"]
    assert notes["own_code"] == {"own_reward": hashlib.sha256(CODE.encode()).hexdigest()}


def test_a_wrong_one_is_one_line(project):
    param("score.reward", "own_reward:Breif")()
    status, line = invoke(["score", "1"])
    assert status == 2 and line.count("\n") == 1
    assert "params.yaml: score.reward: reward own_reward:Breif: cannot be loaded (module 'own_reward' has no" in line
