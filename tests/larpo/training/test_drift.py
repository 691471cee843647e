"""The sampler's log-probabilities against the trainer's: engine → lists → reference, on real tiny models."""

import dataclasses
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from larpo import tables
from larpo.audit.science.expected import log_probabilities
from larpo.config.sections import EngineParams
from larpo.engines import Sampling, build_engine
from larpo.errors import UserError
from larpo.training.drift import Drift, from_sampler
from larpo.training.logps import response_logps
from larpo.training.packing import ResponseList, pack
from tests.conftest import tiny_params
from tests.larpo.training.families import family

PROMPTS = [[2, 7, 8, 1, 4], [3, 9, 1, 4], [3, 5, 6, 7, 15, 8, 9, 17, 1, 4]]


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory, tiny_policy):
    """A checkpoint whose attention has a soft cap that bites."""
    folder = tmp_path_factory.mktemp("gemma2") / "policy"
    family("gemma2").save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(folder)
    return folder


def drift_of(
    checkpoint: Path, sampling: Sampling, engine: dict | None = None, trained: Path | None = None, **reference
) -> Drift:
    """The engine's samples as lists, against the trainer's float32 log-probabilities."""
    settings = {"name": "transformers", "batch_size": 2} | (engine or {})
    found = build_engine(EngineParams(**settings), str(checkpoint), 0).generate(PROMPTS, sampling, seed=1)
    lists = [ResponseList(ids, [c.token_ids for c in many]) for ids, many in zip(PROMPTS, found, strict=True)]
    model = AutoModelForCausalLM.from_pretrained(trained or checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        logps, lengths = response_logps(model, pack(lists))
    rows = pd.DataFrame(
        {
            "prompt_id": [str(b) for b, many in enumerate(found) for _ in many],
            "iteration": 1,
            "logp": [c.logp for many in found for c in many],
            "reference_logp": logps.flatten().tolist(),
            "n_tokens": lengths.flatten().tolist(),
        }
    )
    params = tiny_params(engine=settings, reference=reference)
    return from_sampler(params, "1", rows.assign(answers=rows["prompt_id"]))


@pytest.mark.parametrize("sampling", [Sampling(8, 0.7, 10), Sampling(8, 1.5, 10, 0.5), Sampling(1, 0.0, 10)])
def test_log_probabilities_are_the_models_own_whatever_is_drawn_from(tiny_policy, sampling):
    """Neither temperature nor top-p is in them, and the end token is."""
    drift = drift_of(tiny_policy, sampling)
    assert drift.responses == 3 * sampling.n and drift.largest < 1e-5 and drift.bounded and drift.beyond == 0
    drift.check("reference@1")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_engines_drift_within_their_tolerance(tiny_policy, gemma2, dtype):
    for checkpoint in (tiny_policy, gemma2):
        drift = drift_of(checkpoint, Sampling(32, 1.0, 10), {"dtype": dtype})
        assert 1e-4 < drift.mean < drift.tolerance / 2 and drift.bounded, drift
    strict = drift_of(tiny_policy, Sampling(32, 1.0, 10), {"dtype": dtype}, drift_tolerance=1e-4)
    with pytest.raises(UserError, match=r"reference@1: .* change engine\.dtype or the attention in engine\.options"):
        strict.check("reference@1")


def test_attention_that_leaves_the_soft_cap_out_stops_the_run(gemma2):
    """SDPA, the library's default for Gemma-2: the engine takes the exact one by itself, and one that is told to use
    SDPA is caught."""
    sampling = Sampling(8, 1.0, 10)
    assert drift_of(gemma2, sampling).largest < 1e-5
    capless = drift_of(gemma2, sampling, {"options": {"attn_implementation": "sdpa"}})
    assert capless.mean > 0.05
    with pytest.raises(
        UserError, match=r"^reference@1: the sampler's log-probabilities are not the trainer's"
    ) as caught:
        capless.check("reference@1")
    assert "\n" not in str(caught.value)


def test_other_weights_than_sampled_stop_the_run(tiny_policy, tmp_path):
    """Every weight scaled by 1.002: nothing that a look at texts or rewards would show."""
    shutil.copytree(tiny_policy, changed := tmp_path / "policy")
    model = AutoModelForCausalLM.from_pretrained(changed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.002
    model.save_pretrained(changed)
    drift = drift_of(tiny_policy, Sampling(8, 1.0, 10), trained=changed)
    assert 1e-3 < drift.mean < 0.1 and not drift.bounded


@pytest.mark.parametrize(
    ("beyond", "largest", "bounded"),
    [(0.0, 1e-4, True), (0.01, 9e-4, True), (0.011, 9e-4, False), (0.001, 1.1e-3, False), (0.0, math.nan, False)],
)
def test_bounds(beyond, largest, bounded):
    drift = Drift(1000, 1e-5, largest, beyond, 1e-4)
    assert drift.bounded == bounded
    wider = dataclasses.replace(drift, tolerance=1.0)
    assert wider.bounded == (bounded or (largest > 1e-3 and beyond <= 0.01))


def test_only_what_the_reference_itself_sampled_is_compared():
    """Not a memory's responses, nor those to another prompt, nor solutions."""
    rows = pd.DataFrame(
        {
            "prompt_id": list("aaaa"),
            "answers": list("aaba"),
            "iteration": [2, 1, 2, 2],
            "logp": [-3.0, -3.0, -3.0, None],
            "reference_logp": [-3.002, -9.0, -9.0, -9.0],
            "n_tokens": 2,
        }
    )
    drift = from_sampler(tiny_params(), "2", rows)
    assert (drift.responses, drift.tolerance) == (1, 1e-4) and drift.mean == pytest.approx(1e-3)
    assert from_sampler(tiny_params(), "2", rows[1:]).startswith("not measured, the lists hold no response")
    assert from_sampler(tiny_params(reference={"model": "initial"}), "2", rows) == (
        "not measured, policy 1 sampled and the reference is policy 0"
    )
    assert from_sampler(tiny_params(reference={"drift_tolerance": 0.5}), "2", rows).tolerance == 0.5


def responses(logps: list[float | None]) -> pd.DataFrame:
    n = len(logps)
    same = {"iteration": 1, "temperature": 1.0, "seed": 1, "text": "", "finish_reason": "stop"}
    frame = pd.DataFrame({"prompt_id": "p", "response_id": [f"r{i}" for i in range(n)]}).assign(**same)
    origin = ["policy"] * (n - 1) + ["gold"]
    return frame.assign(prompt_token_ids=[[1]] * n, token_ids=[[2]] * n, origin=origin, logp=logps)


@pytest.mark.parametrize(
    ("logps", "row"),
    [
        ([-1.0, 0.0, None], None),
        ([None, None, None], None),
        ([-1.0, 0.1, None], 1),
        ([-1.0, -1.0, -1.0], 2),
        ([None, -1.0, None], 0),
        ([None, None, -1.0], 2),
    ],
)
def test_the_audit_checks_the_columns_shape(logps, row):
    lines = log_probabilities("f", responses(logps))
    assert [line.partition(":")[0] for line in lines] == ([] if row is None else [f"f, row {row}"])


def test_tables_of_older_runs_have_no_such_column(tmp_path, monkeypatch):
    """They read as null, and an engine that reports nothing writes the same."""
    path, frame = tmp_path / "r.parquet", responses([None, None, None])
    with monkeypatch.context() as old:
        schema = tables.SCHEMAS["responses"]
        old.setitem(tables.SCHEMAS, "responses", schema.remove(schema.get_field_index("logp")))
        tables.write(frame.drop(columns="logp"), "responses", path)
    again = tables.read("responses", path)
    assert again["logp"].isna().all() and again["logp"].dtype == float
    with pytest.raises(UserError, match=r"column 'logp' expects a finite number"):
        tables.write(responses([-math.inf, -1.0, None]), "responses", path)
