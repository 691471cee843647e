"""Preference pairs from every form they are published in; what is dropped and counted; Bradley-Terry by hand."""

import gzip
import json
from math import log

import pandas as pd
import pytest
import torch

from larpo.config.reward import PairsParams
from larpo.config.sections import SourceParams
from larpo.errors import UserError
from larpo.sources.pairs import Pair, read_pairs
from larpo.sources.prompts import draw, is_held_out
from larpo.training.pair_trainer import bradley_terry
from tests.conftest import ROOT

ASKED = [{"role": "user", "content": "hi"}]


def write(path, rows) -> PairsParams:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text(text)
    return PairsParams(data=str(path))


def answered(text: str) -> list[dict[str, str]]:
    return [*ASKED, {"role": "assistant", "content": text}]


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json", "p.parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "good", "rejected": "bad"},
        {"prompt": "hi", "chosen": answered("good"), "rejected": answered("bad")},
        {"prompt": ASKED, "chosen": answered("good")[1:], "rejected": answered("bad")[1:]},
        {"chosen": answered("good"), "rejected": answered("bad")},
        {"chosen": "\n\nHuman: hi\n\nAssistant: good", "rejected": "\n\nHuman: hi\n\nAssistant: bad"},
        {"input": "hi", "output_1": "bad", "output_2": "good", "label": 2},
    ],
)
def test_every_form_is_the_same_pair(tmp_path, name, row):
    assert read_pairs(write(tmp_path / name, [row]), "reward.checks.x") == ([Pair(ASKED, "good", "bad")], {})


def test_a_dialogue_of_several_turns(tmp_path):
    """Words of the first speaker that hold "Human:" inside a line are words; two turns of one speaker are joined."""
    head = "\n\nHuman: a Human: b\n\nHuman: more\n\nAssistant: c\n\nHuman: d\n\nAssistant: "
    pairs, _ = read_pairs(write(tmp_path / "p.jsonl", [{"chosen": head + "x", "rejected": head + "y"}]), "k")
    assert pairs == [
        Pair(
            [
                {"role": "user", "content": "a Human: b\n\nmore"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "d"},
            ],
            "x",
            "y",
        )
    ]


def test_rows_without_a_preference_are_dropped_and_counted(tmp_path):
    rows = [
        {"prompt": "hi", "chosen": "a", "rejected": "b", "metadata": {"score_chosen": 7.0, "score_rejected": 5.0}},
        {"prompt": "hi", "chosen": "a", "rejected": "b", "metadata": {"score_chosen": 7.0, "score_rejected": 7.0}},
        {"prompt": "hi", "chosen": "a", "rejected": "a", "metadata": None},
        {"prompt": "hi", "chosen": "a", "rejected": " ", "metadata": None},
    ]
    pairs, dropped = read_pairs(write(tmp_path / "p.jsonl", rows), "k")
    assert pairs == [Pair(ASKED, "a", "b")] and dropped == {"tie": 1, "equal": 1, "empty": 1}
    dialogues = [
        {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: ho\n\nAssistant: b"},
    ]
    dialogues.append({"chosen": dialogues[0]["chosen"], "rejected": dialogues[0]["rejected"] + "\n\nHuman: well?"})
    assert read_pairs(write(tmp_path / "d.jsonl", dialogues), "k")[1] == {"other_prompt": 1, "unfinished": 1}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "hi", "choosen": "a", "rejected": "b"}], "no column 'chosen'"),
        ([{"chosen": "Human: hi", "rejected": "b"}], "line 1: expected a dialogue"),
        ([{"prompt": "hi", "chosen": 3, "rejected": 4}], "expected a prompt and two responses"),
        ([{"prompt": "hi", "chosen": "a", "rejected": "a"}], "no pair that states a preference"),
    ],
)
def test_wrong_rows_are_one_line(tmp_path, rows, words):
    with pytest.raises(UserError, match=words) as caught:
        read_pairs(write(tmp_path / "p.jsonl", rows), "reward.train.data")
    assert "\n" not in str(caught.value)


def test_missing_data_names_the_key(tmp_path):
    with pytest.raises(UserError, match=r"params.yaml: reward\.train\.data\.data: .*no\.jsonl: not found"):
        read_pairs(PairsParams(data=str(tmp_path / "no.jsonl")), "reward.train.data")


def test_examples_and_split_are_by_hash(tmp_path):
    rows = [{"prompt": f"question {i}", "chosen": f"a{i}", "rejected": "b"} for i in range(300)]
    params = write(tmp_path / "p.jsonl", rows)
    some, left = read_pairs(params.model_copy(update={"examples": 100}), "k")
    assert (
        len(some) == 100
        and left == {"not_chosen": 200}
        and some == read_pairs(params.model_copy(update={"examples": 100}), "k")[0]
    )
    held = sum(p.held_out(0.3) for p in read_pairs(params, "k")[0])
    assert 60 < held < 120, "about 90 of 300"
    # Case and white space do not move a prompt across; the other response neither.
    a, b = (Pair([{"role": "user", "content": text}], "x", "y") for text in ("What  is it?", "what is IT?"))
    assert all(a.held_out(s / 10) == b.held_out(s / 10) for s in range(1, 10))


def test_bradley_terry_by_hand():
    """−log σ(0) = log 2; −log σ(log 3) = −log(3/4) = log(4/3); −log σ(−log 3) = log 4."""
    found = bradley_terry(torch.tensor([0.0, log(3), -log(3)], dtype=torch.float64))
    assert found.tolist() == pytest.approx([log(2), log(4 / 3), log(4)])


@pytest.mark.parametrize(
    ("file", "dropped"),
    [
        ("hh_rlhf/helpful-base.test.jsonl.gz", {"equal": 2}),
        ("hh_rlhf/helpful-online.test.jsonl.gz", {"equal": 2}),
        ("ultrafeedback/eval.jsonl.gz", {"tie": 25}),
        ("preference_gold/llmbar/Natural.json", {}),
    ],
)
def test_published_pairs(file, dropped):
    path = ROOT.parent / "shared/data" / file
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found, lost = read_pairs(PairsParams(data=str(path)), "k")
    rows = {"base": 2354, "online": 1137, "eval": 200, "Natural": 100}[path.name.split(".")[0].split("-")[-1]]
    assert len(found) + sum(lost.values()) == rows
    assert dropped.items() <= lost.items()


def test_pairs_of_sums_are_the_same_every_time_and_share_the_prompts_split():
    """What the pairs' own share holds out is what the prompts' source holds out: no evaluation prompt is trained on."""
    params = PairsParams.model_validate({"source": "sums", "sums": {"errors": ["careless"]}, "examples": 500})
    pairs, dropped = read_pairs(params, "reward.train.data")
    assert read_pairs(params, "reward.train.data") == (pairs, dropped)
    assert len(pairs) == 500 and dropped == {"not_chosen": 3645 - 500}
    assert all(int(p.chosen) - int(p.rejected) == 10 for p in pairs), "the carry is what the rejected one forgot"
    source = SourceParams(source="sums", held_out=0.3)
    assert [p.held_out(0.3) for p in pairs] == [is_held_out(source, p.messages) for p in pairs]
    asked = {m[-1]["content"] for m in draw(source, 400, 0, held_out=True)["messages"]}
    trained = {p.messages[-1]["content"] for p in pairs if not p.held_out(0.3)}
    assert 300 < len(trained) < 400 and not asked & trained


@pytest.mark.parametrize("raw", [{"source": "sums", "data": "a/b"}, {"source": "dataset"}, {}])
def test_pairs_come_from_a_dataset_or_from_sums(raw):
    with pytest.raises(ValueError, match="data: expected a hub id or a file with source dataset and null with sums"):
        PairsParams.model_validate(raw)
