"""Lists of every family, packed or one response per row, give what one response at a time gives: values, gradients."""

import copy
import math

import pytest
import torch
from transformers import PreTrainedModel

from larpo.training import attention, forward
from larpo.training.attention import Kind, attend, band, by_batch, by_part, by_varlen
from larpo.training.forward import picked, way_of
from larpo.training.logps import response_logps
from larpo.training.packing import ResponseList, one_per_row, pack
from tests.larpo.training.families import ONE_PER_ROW, PACKED, family

LISTS = [  # unequal lengths; prompts shorter and longer than the families' window of 4
    ResponseList([3, 7, 9, 11], [[5, 6, 1], [8, 1], [12]]),
    ResponseList([4], [[9, 9, 9, 9, 2, 1], [10, 1]]),
    ResponseList([5, 6, 7, 8, 9, 10, 11, 5, 3], [[1], [2, 3, 1], [2, 3, 4, 1, 4, 5], [2, 3, 4]]),
]


def alone(model: PreTrainedModel, lists: list[ResponseList]) -> torch.Tensor:
    """Summed log-probabilities from the class's own forward pass over one response at a time, in float64."""
    values = []
    for entry in lists:
        for response in entry.response_ids:
            ids, start = torch.tensor([entry.prompt_ids + response]), len(entry.prompt_ids)
            logps = torch.log_softmax(type(model).forward(model, ids, use_cache=False).logits[0, :-1].double(), -1)
            values.append(logps[start - 1 :].gather(1, ids[0, start:, None]).sum())
    return torch.stack(values)


def together(model: PreTrainedModel, lists: list[ResponseList]) -> torch.Tensor:
    """The same of `response_logps`, without the padding of shorter lists."""
    logps, _ = response_logps(model, pack(lists))
    return torch.cat([row[: len(entry.response_ids)] for row, entry in zip(logps, lists, strict=True)])


@pytest.mark.parametrize("name", [*PACKED, *ONE_PER_ROW])
def test_every_family_equals_one_response_at_a_time_through_its_authors_attention(name):
    model, authors = family(name), family(name, "eager")
    values, expected = together(model, LISTS), alone(authors, LISTS)
    torch.testing.assert_close(values.double(), expected, atol=2e-5, rtol=0)
    way = way_of(model)
    assert way.packed == (name in PACKED), way
    assert way.packed or way.reason
    assert way.whole == (name == "llama4_text")  # only that one's head stands in the same module as its layers
    values.sum().backward()
    expected.sum().backward()
    for (key, a), b in zip(model.named_parameters(), authors.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


def test_padding_and_numbers_of_tokens():
    logps, lengths = response_logps(family("llama"), pack(LISTS))
    assert logps.shape == (3, 4) and float(logps[1, 2]) == 0.0
    assert lengths.tolist() == [[3, 2, 1, 0], [6, 2, 0, 0], [1, 3, 6, 3]]


def test_a_list_does_not_depend_on_its_neighbours():
    model = family("mistral")
    with torch.no_grad():
        apart = torch.cat([together(model, [entry]) for entry in LISTS])
        torch.testing.assert_close(together(model, LISTS), apart, atol=2e-6, rtol=1e-6)


def test_checkpointed_layers_and_chunks_of_the_head_change_nothing(monkeypatch):
    """Recomputed in the backward pass: the layers' attention needs the lists again, the head its rows."""
    gradients = []
    for model in (family("gemma2"), family("gemma2")):
        if gradients:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            monkeypatch.setitem(forward.CHUNK, "cpu", 40 * 4)
            monkeypatch.setattr(forward, "FEWEST", 4)
        together(model.train(), LISTS).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_picked_log_probability():
    logits, targets = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), torch.tensor([0, 6, 3, 3, 2])
    values, weights = picked(logits.float(), targets), torch.arange(1.0, 6.0)
    (gradient,) = torch.autograd.grad((values * weights).sum(), logits)
    exact = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(values.double(), exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad((exact * weights).sum(), logits)[0], atol=1e-6, rtol=0)


def test_uniform_model_gives_minus_length_times_log_vocabulary():
    """All weights 0 → all logits 0 → log p = −log 40 per token: 3 tokens give −3 · 3.6889 = −11.0666."""
    model = family("llama")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        logps, _ = response_logps(model, pack(LISTS))
    assert float(logps[0, 0]) == pytest.approx(-3 * math.log(40), abs=1e-5)
    assert float(logps[0, 0]) == pytest.approx(-11.0666, abs=1e-3)


def test_bfloat16_weights_still_sum_in_float32():
    """The returned sums carry a fraction that bfloat16 cannot hold near their magnitude."""
    model = family("llama").to(torch.bfloat16)
    long = ResponseList([3, 4], [[(7 * i) % 40 for i in range(90)], [1]])
    with torch.no_grad():
        logps, _ = response_logps(model, pack([long]))
    assert logps.dtype == torch.float32
    assert float(logps[0, 0]) != float(logps[0, 0].to(torch.bfloat16))


def test_rotary_angles_that_depend_on_the_longest_of_a_batch():
    """Phi-3's long and short factors switch at `original_max_position_embeddings`, for the whole batch: a list with
    one longer response is computed one response at a time."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 12}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
    settings = {"rope_parameters": rope, "original_max_position_embeddings": 12}
    model, authors = (family("phi3", x, **settings) for x in (None, "eager"))
    assert max(len(x.prompt_ids) + len(r) for x in LISTS for r in x.response_ids) > 12
    torch.testing.assert_close(together(model, LISTS).double(), alone(authors, LISTS), atol=2e-5, rtol=0)
    assert way_of(model).longest == 12


def test_where_a_part_sees_its_keys():
    """3 queries at the end of 5 keys: the earlier two and their own past; a window of 2: itself and one before."""
    shown = [["".join(str(int(v)) for v in row) for row in band(3, 5, w, torch.device("cpu"))] for w in (None, 2)]
    assert shown == [["11100", "11110", "11111"], ["01100", "00110", "00011"]]


def test_one_response_per_row():
    """Prompt ab, responses cdX and e: rows abcd? and ab, without the last tokens, which predict nothing."""
    rows, predict_from = one_per_row(pack([ResponseList([1, 2], [[3, 4, 9], [5]])]))
    assert rows.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert predict_from.tolist() == [1, 2, 3, 5]


def plain_varlen(query, key, value, ends_q, ends_k, most_q, most_k, *, window_size, scale, enable_gqa=False):
    """What `torch.nn.attention.varlen.varlen_attn` computes, which has no kernel for the CPU."""
    done = []
    for (a, b), (c, d) in zip(ends_q.unfold(0, 2, 1).tolist(), ends_k.unfold(0, 2, 1).tolist(), strict=True):
        assert b - a <= most_q and d - c <= most_k and enable_gqa == (query.shape[1] != key.shape[1])
        kind = Kind(None if window_size[0] < 0 else window_size[0] + 1, scale, None, None, 0.0)
        q, k, v = (x[i:j].transpose(0, 1)[None] for x, i, j in ((query, a, b), (key, c, d), (value, c, d)))
        done.append(attend(q, k, v, kind, {})[0].transpose(0, 1))
    return torch.cat(done)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("scores", [2**26, 4 * 8 * 16, 1])  # one batch of like sizes, some, one part each
def test_the_kernels_of_cuda_compute_what_that_of_the_cpu_does(monkeypatch, window, scores):
    """Values, and gradients of queries, keys, values and sinks."""
    monkeypatch.setattr(attention, "varlen", lambda: plain_varlen)
    monkeypatch.setattr(attention, "SCORES", scores)
    packed, sinks = pack(LISTS), torch.tensor([0.5, -1.0, 2.0, 0.0], requires_grad=True)
    n = packed.input_ids.shape[1]
    qkv = [torch.randn(1, h, n, 8, generator=torch.Generator().manual_seed(h), requires_grad=True) for h in (4, 2, 2)]
    weights, seen = torch.randn(1, 4, n, 8, generator=torch.Generator().manual_seed(0)), []
    for kernel, kind in (
        (by_varlen, Kind(window, 0.4, None, None, 0.0)),
        (by_batch, Kind(window, 0.4, 1.5, sinks, 0.0)),
    ):
        inputs = qkv if kind.plain else [*qkv, sinks]
        out, expected = (f(*qkv, kind, packed.layout()) for f in (kernel, by_part))
        gradients = [torch.autograd.grad((x * weights).sum(), inputs) for x in (out, expected)]
        for a, b in zip((out, *gradients[0]), (expected, *gradients[1]), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        seen.append(expected)
    assert float((seen[0] - seen[1]).abs().max()) > 0.1


def test_checkpointed_layers_in_the_way_of_cuda(monkeypatch):
    """Batches are recomputed inside layers that are recomputed, under autocast too."""
    results = []
    for kernel, settings in ((by_part, None), (by_batch, {"use_reentrant": False})):
        monkeypatch.setattr(attention, "lists_kernel", lambda *_, kernel=kernel: kernel)
        model = family("gpt_oss").train()
        if settings:
            model.gradient_checkpointing_enable(settings)
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            together(model, LISTS).sum().backward()
        results.append([p.grad for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_a_copy_and_a_checkpoint_are_models_as_before(tmp_path):
    model = family("llama")
    values = together(model, LISTS)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(together(twin, LISTS), values, atol=0, rtol=0)
    assert twin.forward.__self__ is twin
    model.save_pretrained(tmp_path)
    assert "larpo" not in (tmp_path / "config.json").read_text()


def test_empty_response_is_refused():
    with pytest.raises(ValueError, match="empty"):
        pack([ResponseList([1], [[2], []])])
