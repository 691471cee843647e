"""Nodes `sample` and `reference`: log-probabilities kept, compared, bounded, and the same bytes after a kill."""

from pathlib import Path

import pytest
import yaml

import tasks.candidates
import tasks.lists
import tasks.policy
import tasks.prompts
import tasks.reference
import tasks.reward
import tasks.sample
import tasks.score
from larpo import tables
from larpo.engines.transformers_engine import TransformersEngine
from larpo.errors import ParameterError, UserError
from tests.tasks.conftest import change, record

SAMPLE, CANDIDATES = Path("data/sample/1.parquet"), Path("data/candidates/1.parquet")


def test_kept_measured_and_bounded_through_the_nodes(workspace, monkeypatch, capsys):
    tasks.policy.main()
    tasks.reward.main()
    tasks.prompts.main("1")

    # Killed at its third batch, resumed, and the same bytes as without.
    whole, calls = TransformersEngine.generate, []

    def killed(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(TransformersEngine, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        tasks.sample.main("1")
    tasks.sample.main("1")
    assert record("data/sample/1.manifest.json")["resumed"]
    resumed = SAMPLE.read_bytes()
    monkeypatch.setattr(TransformersEngine, "generate", whole)
    tasks.sample.main("1")
    assert SAMPLE.read_bytes() == resumed and not record("data/sample/1.manifest.json")["resumed"]
    logp = tables.read("responses", SAMPLE)["logp"]
    assert (logp < 0).all() and logp.nunique() > 50

    for node in (tasks.score, tasks.candidates, tasks.lists, tasks.reference):
        node.main("1")
    drift = record("data/reference/1.manifest.json")["notes"]["drift"]
    assert drift["responses"] > 10 and drift["largest"] < 1e-5 and (drift["beyond"], drift["tolerance"]) == (0, 1e-4)
    assert "reference@1: drift from the sampler: " in capsys.readouterr().out

    made = Path("data/reference/1.parquet")
    plain = tables.read("reference", made)
    reference = yaml.safe_load(Path("params.yaml").read_text())["reference"]
    change(reference={"tokens_per_batch": 150})  # two or three lists, longest first; rows stay where they were
    tasks.reference.main("1")
    by_tokens = tables.read("reference", made)
    assert by_tokens.drop(columns="reference_logp").equals(plain.drop(columns="reference_logp"))
    assert by_tokens["reference_logp"].to_numpy() == pytest.approx(plain["reference_logp"].to_numpy(), abs=1e-4)
    change(reference=reference)

    def forge(by):
        frame = tables.read("candidates", CANDIDATES)
        tables.write(frame.assign(logp=frame["logp"] - by * frame["token_ids"].map(len)), "candidates", CANDIDATES)

    made.unlink()
    forge(0.02)
    with pytest.raises(
        UserError, match=r"reference@1: .*2\.0e-02 nats per token in the mean.*100\.0% .* beyond 0\.0001"
    ):
        tasks.reference.main("1")
    assert not made.exists()
    change(reference={"drift_tolerance": 0.03})
    tasks.reference.main("1")
    assert record("data/reference/1.manifest.json")["notes"]["drift"]["mean"] == pytest.approx(0.02, abs=1e-4)


def test_logits_that_are_not_finite_are_refused(workspace, monkeypatch):
    tasks.policy.main()
    tasks.prompts.main("1")
    whole = TransformersEngine._completion
    monkeypatch.setattr(
        TransformersEngine, "_completion", lambda self, row, logps, seed: whole(self, row, [float("nan")], seed)
    )
    with pytest.raises(ParameterError, match=r"engine\.dtype: the model's logits are not finite in float32"):
        tasks.sample.main("1")
    assert not SAMPLE.exists()
