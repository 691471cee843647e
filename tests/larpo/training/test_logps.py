"""The packed row of lists computes what a loop over single responses computes."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig

from larpo.training.logps import response_logps
from larpo.training.packing import ResponseList, pack

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    # final_logit_softcapping: a head that is more than a matrix product
    "gemma2": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=5.0, query_pre_attn_scalar=8),
    # learned absolute positions: every response must start right behind its prompt
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}
LISTS = [
    ResponseList([3, 7, 9, 11], [[5, 6, 1], [8, 1], [12]]),
    ResponseList([4], [[9, 9, 9, 9, 2, 1], [10, 1]]),
    ResponseList([5, 6, 7, 8, 9, 10, 11], [[1], [2, 3, 1], [2, 3, 4, 1], [2, 3, 4]]),
]


def model_of(name: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()


def naive_logp(model, prompt: list[int], response: list[int]) -> float:
    """One forward pass per token: no batch, no mask, no packing."""
    total = 0.0
    for t, token in enumerate(response):
        logits = model(torch.tensor([prompt + response[:t]])).logits[0, -1].double()
        total += float(torch.log_softmax(logits, -1)[token])
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_lists_equal_one_token_at_a_time(name):
    model = model_of(name)
    with torch.no_grad():
        logps, lengths = response_logps(model, pack(LISTS))
        for b, entry in enumerate(LISTS):
            for j, response in enumerate(entry.response_ids):
                assert float(logps[b, j]) == pytest.approx(naive_logp(model, entry.prompt_ids, response), abs=2e-5)
                assert int(lengths[b, j]) == len(response)
    # shorter lists are padded with zeros
    assert logps.shape == (3, 4) and float(logps[1, 2]) == 0.0 and int(lengths[0, 3]) == 0


def test_a_list_does_not_depend_on_its_neighbours():
    model = model_of("llama")
    with torch.no_grad():
        together, _ = response_logps(model, pack(LISTS))
        for b, entry in enumerate(LISTS):
            alone, _ = response_logps(model, pack([entry]))
            torch.testing.assert_close(together[b, : len(entry.response_ids)], alone[0], atol=2e-6, rtol=1e-6)


def test_gradients_equal_separate_sequences():
    model = model_of("llama")
    response_logps(model, pack(LISTS))[0].sum().backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for entry in LISTS:
        for response in entry.response_ids:
            ids = torch.tensor([entry.prompt_ids + response])
            logps = torch.log_softmax(model(ids).logits[0, :-1], -1)
            start = len(entry.prompt_ids) - 1
            logps[start:].gather(1, ids[0, start + 1 :, None]).sum().backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(packed[n], p.grad, atol=1e-4, rtol=1e-4)


def test_uniform_model_gives_minus_length_times_log_vocabulary():
    """All weights 0 → all logits 0 → log p = −log 40 per token: 3 tokens give −3 · 3.6889 = −11.0666."""
    model = model_of("llama")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        logps, _ = response_logps(model, pack(LISTS))
    assert float(logps[0, 0]) == pytest.approx(-3 * math.log(40), abs=1e-5)
    assert float(logps[0, 0]) == pytest.approx(-11.0666, abs=1e-3)


def test_bfloat16_weights_still_sum_in_float32():
    """The returned sums carry a fraction that bfloat16 cannot hold near their magnitude."""
    model = model_of("llama").to(torch.bfloat16)
    long = ResponseList([3, 4], [[(7 * i) % 40 for i in range(90)], [1]])
    with torch.no_grad():
        logps, _ = response_logps(model, pack([long]))
    assert logps.dtype == torch.float32
    assert float(logps[0, 0]) != float(logps[0, 0].to(torch.bfloat16))


def test_mask_shows_own_prompt_and_own_past_only():
    """Row: a b | c d | e f (prompt ab, responses cdX and efX whose last tokens are not computed)."""
    mask = attention_mask(pack([ResponseList([1, 2], [[3, 4, 9], [5, 6, 9]])]), torch.float32)[0, 0] == 0
    expected = ["100000", "110000", "111000", "111100", "110010", "110011"]
    assert ["".join(str(int(v)) for v in row) for row in mask] == expected


def test_empty_response_is_refused():
    with pytest.raises(ValueError, match="empty"):
        pack([ResponseList([1], [[2], []])])
