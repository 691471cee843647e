"""What stops a run that would train another model than the one it sampled, or no model at all."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from larpo.config.params import parse_params
from larpo.errors import ParameterError, UserError
from larpo.load import check_params
from larpo.training import attention
from larpo.training.changes import share_changed
from larpo.training.determinism import deterministic
from larpo.training.exactness import check_exact
from larpo.training.forward import authors, check_backward, token_logps, way_of
from larpo.training.packing import pack
from tests.larpo.config.test_params import changed
from tests.larpo.training.families import family
from tests.larpo.training.test_logps import LISTS


@pytest.mark.parametrize("name", ["gemma2", "lfm2"])
def test_an_exact_model_passes_and_is_described(name):
    model = family(name).train()
    notes = check_exact(model, LISTS, "train@1")
    assert 0 <= notes["exactness"] < 1e-5 and model.training
    packed = name == "gemma2"
    assert notes["computed"].startswith("packed lists" if packed else "one response per row (convolutions")


def test_a_model_that_is_computed_otherwise_stops_the_run(monkeypatch):
    """State that leaks from one response into the next; a window that is left out."""
    leaking, windowed = family("falcon_h1"), family("mistral")
    leaking.larpo_way = replace(way_of(leaking), packed=True)
    way_of(windowed)
    whole = attention.attend
    monkeypatch.setattr(attention, "attend", lambda q, k, v, kind, m: whole(q, k, v, replace(kind, window=None), m))
    for model in (leaking, windowed):
        with pytest.raises(UserError, match=r"train@1: .* nats per token from one response at a time"):
            check_exact(model, LISTS, "train@1")


def test_share_of_the_weights_that_changed(tmp_path):
    """bfloat16 at a rate of 1e-5: steps below half of the distance to the next number are lost; float32 keeps them."""
    model = family("llama, tied")
    total = sum(p.numel() for p in model.parameters())
    for dtype, expected in ((torch.float32, 0.9), (torch.bfloat16, 0.1)):
        model.to(dtype).save_pretrained(tmp_path / "before")
        with torch.no_grad():
            for p in model.parameters():
                p += 1e-5
        model.save_pretrained(tmp_path / "after")
        share = share_changed(tmp_path / "before", tmp_path / "after")
        assert (share > expected) == (dtype == torch.float32)
    assert share_changed(tmp_path / "after", tmp_path / "after") == 0.0
    next(model.parameters()).data[3, 5] += 1
    model.save_pretrained(tmp_path / "one")
    assert share_changed(tmp_path / "after", tmp_path / "one") == pytest.approx(1 / total)


def test_an_operation_without_a_deterministic_kernel_is_named():
    with deterministic(0, "train"):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(0, "train", on=False):
        assert not torch.are_deterministic_algorithms_enabled()
    error = RuntimeError("some_cuda_op does not have a deterministic implementation, but you set …")
    words = r"train.deterministic: some_cuda_op has no kernel.*train.deterministic=false"
    with pytest.raises(UserError, match=words), deterministic(0, "train"):
        raise error


@pytest.mark.parametrize(
    ("dotted", "value", "words"),
    [
        ("policy.dtype", "bfloat16", "policy.dtype: steps of training vanish in bfloat16; expected float32"),
        ("train.trainer_options", {"label_smoothing_factor": 0.1}, "'label_smoothing_factor' cannot be set here"),
        ("train.trainer_options", {"neftune_noise_alpha": 5}, "'neftune_noise_alpha' cannot be set here: noise"),
        ("train.trainer_options", {"dataloader_drop_last": True}, "'dataloader_drop_last' cannot be set here"),
    ],
)
def test_settings_that_would_do_harm_are_refused_by_name(dotted, value, words):
    with pytest.raises(ParameterError, match=words):
        check_params(parse_params(changed(dotted, value)))


class Baked(LlamaForCausalLM):
    """Chooses its attention when it is built; what is not `eager` takes the keys' scale for another."""

    _can_set_attn_implementation_cached_value = False

    def __init__(self, config, wrong=1.1):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.scaling *= 1.0 if config._attn_implementation == "eager" else wrong


@pytest.mark.parametrize("name", ["falcon", "baked"])
def test_two_attentions_of_a_model_that_do_not_agree_are_refused(name):
    """Falcon's `eager` adds ALiBi twice (transformers 5): SDPA must not be compared with itself."""
    model = family("falcon", alibi=True) if name == "falcon" else Baked(family("llama").config).eval()
    with pytest.raises(UserError, match=r"has two attentions for it, sdpa and eager, that differ by .* policy\.model"):
        way_of(model)


def test_an_attention_chosen_when_built_is_compared_with_another_model():
    """Which has the same weights: nothing is copied."""
    model = family("falcon")
    with authors(model) as other:
        assert other is not model and other.config._attn_implementation == "eager"
        assert all(a.data_ptr() == b.data_ptr() for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert way_of(model).implementation == model.config._attn_implementation == "sdpa"
    assert check_exact(model, LISTS, "train@1")["exactness"] < 1e-5


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_a_kernel_that_fails_ends_no_run(monkeypatch, capsys, failing):
    """In half precision on CUDA torch's own kernel is tried, both ways; without it the numbers are the same."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if failing == "forward":
                raise AssertionError("all unwrapped values must be …")
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError("all unwrapped values must be …")

    def kernel(query, value, kind, lists):
        return (lambda *a: Fails.apply(attention.by_part(*a))) if lists.fused else attention.by_part

    monkeypatch.setattr(attention, "lists_kernel", kernel)
    model, packed = family("llama"), pack(LISTS)
    expected = token_logps(model, packed)
    model.larpo_way = replace(model.larpo_way, fused=True)
    if failing == "backward":
        check_backward(model, packed)
    torch.testing.assert_close(token_logps(model, packed), expected, atol=0, rtol=0)
    assert not model.larpo_way.fused
    assert capsys.readouterr().out.count("a kernel of torch failed (AssertionError: all unwrapped") == 1
