"""Sampling of every family that training knows: responses beside others, to prompts beside others, have the
log-probabilities that the model gives one response at a time."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from larpo.config.sections import EngineParams
from larpo.engines import Sampling, build_engine
from larpo.errors import UserError
from larpo.training.packing import ResponseList
from tests.larpo.training import families
from tests.larpo.training.families import ONE_PER_ROW, PACKED, SIZE, family
from tests.larpo.training.test_logps import alone

PROMPTS = [[3, 7, 9, 11, 5], [4], [8, 5, 6, 7, 8, 9, 10, 11, 5, 3, 2, 12]]
RECURRENT = {"attention_window_size": 4, "block_types": ["recurrent", "attention"], "lru_width": 32, "head_dim": 8}
REFUSED = {  # a cache of another kind; a state that takes padding in
    "xlstm": {"vocab_size": 40, "hidden_size": 32, "num_blocks": 2, "num_heads": 4},
    "recurrent_gemma": SIZE | RECURRENT,
}


def engine_of(name: str, folder, tiny_policy):
    family(name).save_pretrained(folder)
    for part in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_policy / part, folder)
    return build_engine(EngineParams(), str(folder), seed=0)


@pytest.mark.parametrize("name", [*PACKED, *ONE_PER_ROW])
def test_every_family_is_sampled_as_it_computes(tmp_path, tiny_policy, name):
    engine, expected, found = engine_of(name, tmp_path, tiny_policy), [], []
    for prompt, many in zip(PROMPTS, engine.generate(PROMPTS, Sampling(3, 1.0, 9), 5), strict=True):
        expected += [alone(family(name, "eager"), [ResponseList(prompt, [c.token_ids])]) for c in many]
        found += [c.logp for c in many]
    assert len(found) == 9
    torch.testing.assert_close(torch.tensor(found).double(), torch.cat(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_sampled_so_is_refused_before(tmp_path, tiny_policy, monkeypatch, name):
    monkeypatch.setitem(families.PACKED, name, REFUSED[name])
    with pytest.raises(UserError, match=r"ForCausalLM does not decode here as it computes .*engine\.name") as caught:
        engine_of(name, tmp_path, tiny_policy)
    assert "\n" not in str(caught.value)


def test_a_cap_on_attention_is_loaded_with_the_attention_that_has_it(tmp_path):
    """Supervised fine-tuning and rewards compute with what is loaded; SDPA, the library's default, has no cap."""
    from larpo.models.load import load_model

    family("gemma2").save_pretrained(tmp_path)
    ids, expected = torch.tensor([PROMPTS[2]]), family("gemma2", "eager")
    found, default = load_model(str(tmp_path), "float32").eval(), AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        logits, uncapped, exact = (m(ids).logits for m in (found, default.eval(), expected))
    torch.testing.assert_close(logits, exact, atol=1e-6, rtol=0)
    assert float((uncapped - exact).abs().max()) > 0.1
