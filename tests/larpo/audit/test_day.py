"""A run that is stopped and goes on the next day, with a template that writes the date: one day in all its prompts."""

import datetime
from types import SimpleNamespace

import pandas as pd
import pytest
from transformers.utils import chat_template_utils

import tasks.frame.generator
from larpo.audit.science.sampling import _prompts_of
from larpo.config.policy import PolicyParams
from larpo.config.sections import EngineParams
from larpo.engines import Completion, Sampling
from larpo.models.chat import record_choices
from larpo.models.load import load_tokenizer
from larpo.models.resolve import Checkpoint
from tasks.frame.generator import Generator

TEMPLATE = "{{ strftime_now('%d %m %Y') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


class Engine:
    """Answers 1; dies at its call number `dies`."""

    def __init__(self, dies=99):
        self.left = dies

    def generate(self, prompts, sampling, seed):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return [[Completion([6, 1], "stop", seed)] for _ in prompts]


def test_resumed_the_next_day_and_audited(tmp_path, tiny_policy, monkeypatch):
    folder, days = tmp_path / "policy", ["2026-11-26", "2026-11-27", "2026-11-28"]
    tokenizer = load_tokenizer(tiny_policy)
    tokenizer.chat_template = TEMPLATE
    assert record_choices(tokenizer, PolicyParams(model="m")) == {"date": "2024-07-26"}
    tokenizer.save_pretrained(folder)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(days[0])

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    monkeypatch.setattr(tasks.frame.generator, "SECONDS", 0)  # each prompt is a part
    (tmp_path / "scratch").mkdir()
    node = SimpleNamespace(
        params=SimpleNamespace(engine=EngineParams(batch_size=2)),
        scratch=tmp_path / "scratch",
        stage="sample@1",
        seed=0,
        note=lambda **_: None,
    )
    messages = [[{"role": "user", "content": f"{i}+1="}] for i in range(6)]
    prompts = pd.DataFrame({"prompt_id": [f"p{i}" for i in range(6)], "messages": messages})

    def run(engine):
        generator = Generator(node, Checkpoint(str(folder)))
        generator._engine = engine
        return generator.run(prompts, Sampling(1, 1.0, 4), "t1")

    with pytest.raises(KeyboardInterrupt):
        run(Engine(dies=1))
    days.pop(0)
    second = Engine()
    made = run(second)
    assert second.left == 97  # one batch of three was there
    days.pop(0)
    whole = load_tokenizer(str(folder))
    assert whole.decode(made["prompt_token_ids"][0]).replace(" ", "").startswith("26072024")
    recorded = made.assign(prompt_token_ids=made["prompt_token_ids"].map(pd.array))
    assert _prompts_of("data/sample/1.parquet", recorded, prompts, whole) == []
    whole.init_kwargs.pop("larpo_chat_template")  # a stranger's checkpoint: the same day, as long as nobody asks
    assert _prompts_of("data/sample/1.parquet", recorded, prompts, whole) == []
    whole.init_kwargs["larpo_chat_template"] = {"date": days[0]}
    assert "row 0: prompt_token_ids are not those" in _prompts_of("data/sample/1.parquet", recorded, prompts, whole)[0]
