"""What a chat template is given besides messages: variables, and the day that belongs to the run."""

import datetime

import pytest
from transformers.utils import chat_template_utils

from larpo.config.policy import PolicyParams
from larpo.errors import UserError
from larpo.models.chat import RECORD, apply_template, record_choices, render_prompts, turn_end
from larpo.models.load import load_tokenizer

ASKED = [{"role": "user", "content": "1+1="}]
BODY = "{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}<assistant>"
# As Llama-3.2 writes it, as Granite, as Llama-3.1 (which knows no clock), and as Qwen3 switches its thoughts off.
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{{ date_string }}" + BODY
)
GRANITE = "{{ strftime_now('%B %d, %Y') }}{% generation %}" + BODY + "{% endgeneration %}"
LLAMA31 = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}" + BODY
QWEN = BODY + "{% if enable_thinking is defined and enable_thinking is false %}--{% endif %}"


def tokenizer_of(folder, tiny_policy, template, **params):
    """The tokenizer of the policy that is trained from what the node `policy` makes of the tiny one."""
    tokenizer = load_tokenizer(tiny_policy)
    tokenizer.chat_template = template
    recorded = record_choices(tokenizer, PolicyParams(model="m", **params))
    tokenizer.save_pretrained(folder / "0")
    load_tokenizer(str(folder / "0")).save_pretrained(folder / "1")
    carried = load_tokenizer(str(folder / "1"))
    assert carried.init_kwargs.get(RECORD, {}) == recorded
    return carried


def clock(monkeypatch, day):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize(
    ("template", "date", "wanted"),
    [
        (LLAMA, None, "26 Jul 2024"),
        (LLAMA, "2025-01-31", "31 Jan 2025"),
        (GRANITE, None, "July 26, 2024"),
        (GRANITE, "2025-01-31", "January 31, 2025"),
        (LLAMA31, None, "26 Jul 2024"),
        (LLAMA31, "2025-01-31", "31 Jan 2025"),
    ],
)
def test_the_day_belongs_to_the_run(tmp_path, tiny_policy, monkeypatch, template, date, wanted):
    """Whatever day it is: for a run that is resumed tomorrow, one that is repeated, an audit."""
    tokenizer = tokenizer_of(tmp_path, tiny_policy, template, date=date)
    for today in ("2026-11-26", "2026-11-27"):
        clock(monkeypatch, today)
        if template is not LLAMA31:
            assert today[-2:] in tokenizer.apply_chat_template(ASKED, tokenize=False)  # transformers asks the clock
        assert apply_template(tokenizer, ASKED, "here") == f"{wanted}<user>1+1=<assistant>"


def test_a_checkpoint_without_a_record_has_the_same_day_always(tiny_policy, monkeypatch):
    """A reward model's template, or a policy's of another make."""
    tokenizer = load_tokenizer(tiny_policy)
    tokenizer.chat_template = GRANITE
    clock(monkeypatch, "2026-11-27")
    assert apply_template(tokenizer, ASKED, "here").startswith("July 26, 2024")


def test_variables_reach_every_rendering(tmp_path, tiny_policy):
    plain = tokenizer_of(tmp_path / "plain", tiny_policy, QWEN)
    off = tokenizer_of(tmp_path / "off", tiny_policy, QWEN, chat_template_kwargs={"enable_thinking": False})
    minus = off.convert_tokens_to_ids("-")
    assert render_prompts(off, [ASKED])[0] == [*render_prompts(plain, [ASKED])[0], minus, minus]
    assert turn_end(off, [minus]) == minus


def test_nothing_is_recorded_where_nothing_is_asked(tmp_path, tiny_policy):
    """The bytes of a policy whose template writes no date stay as they were, and a stranger's record is not taken."""
    tokenizer = load_tokenizer(tiny_policy)
    tokenizer.init_kwargs[RECORD] = {"kwargs": {"enable_thinking": False}}
    assert record_choices(tokenizer, PolicyParams(model="m")) == {} and RECORD not in tokenizer.init_kwargs


@pytest.mark.parametrize(
    ("template", "params", "words"),
    [
        (QWEN, {"chat_template_kwargs": {"enable_thinkng": False}}, "did you mean 'enable_thinking'?"),
        (BODY, {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking: the chat"),
        (BODY, {"chat_template_kwargs": {"role": "x"}}, "chat_template_kwargs.role: the chat template never reads it"),
        (QWEN, {"date": "2025-01-31"}, "policy.date: the chat template writes no date"),
    ],
)
def test_what_the_template_would_ignore_is_refused(tiny_policy, template, params, words):
    tokenizer = load_tokenizer(tiny_policy)
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        record_choices(tokenizer, PolicyParams(model="m", **params))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"chat_template_kwargs": {"tokenize": True}}, "'tokenize' cannot be set here"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "'add_generation_prompt' cannot be set here"),
        ({"chat_template_kwargs": {"strftime_now": 1}}, "policy.date says the day"),
        ({"date": "31.1.2025"}, "expected a day as YYYY-MM-DD"),
        ({"date": "20250131"}, "expected a day as YYYY-MM-DD"),
        ({"date": "2025-02-30"}, "expected a day as YYYY-MM-DD"),
    ],
)
def test_what_may_not_stand_there(params, words):
    with pytest.raises(ValueError, match=words):
        PolicyParams(model="m", **params)
