"""AlpacaEval: win rates against the package's own, judging through a real server, resume."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from larpo.benchmarks import build_benchmark, score_file
from larpo.benchmarks.alpaca_eval import judge_pairs
from larpo.benchmarks.alpaca_eval_scores import win_rates
from larpo.errors import UserError
from larpo.judges import JudgeClient
from larpo.params import JudgeParams
from tests.chat_server import ChatServer
from tests.conftest import ROOT
from tests.larpo.test_held_out import params

DATA = ROOT.parent / "shared/data/alpaca_eval"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="AlpacaEval's data is not beside the checkout")


def annotations(preferences: list[float | None]) -> pd.DataFrame:
    n = len(preferences)
    return pd.DataFrame(
        {
            "instruction": [f"i{i}" for i in range(n)],
            "output_1": ["x" * (10 + 3 * (i % 4)) for i in range(n)],
            "output_2": ["y" * (10 + i % 7) for i in range(n)],
            "preference": preferences,
        }
    )


def test_win_rate_by_hand():
    """Preferences 1, 2, 1.5, 1.8 and one missing: wins 0, 1, 0.5, 0.8; mean 2.3/4 = 57.5 %. Deviations −0.575, 0.425,
    −0.075, 0.225: squares 0.5675, variance 0.189167, standard error √(0.189167/4) = 21.747 points. A draw counts a half
    among the wins that are counted whole: (0 + 1 + 0.5 + 1)/4 = 62.5 %."""
    found = win_rates(annotations([1.0, 2.0, 1.5, 1.8, None]))
    assert found["win_rate"] == pytest.approx(57.5)
    assert found["standard_error"] == pytest.approx(21.747, abs=1e-3)
    assert found["discrete_win_rate"] == pytest.approx(62.5)
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"], found["n_total"]) == (2, 1, 1, 4)
    assert found["n_missing"] == 1
    assert "df_gamed.csv" in found["length_control"]
    assert "length_controlled_winrate" not in found
    json.dumps(found)


def published(tmp_path, rows: pd.DataFrame, name: str = "annotations.json"):
    path = tmp_path / name
    path.write_text(rows.to_json(orient="records"))
    return path


@pytest.fixture(scope="module")
def real() -> pd.DataFrame:
    """The reference's outputs against shortened ones of the same model, with preferences that favour length: a
    known law in the place of a judge."""
    rows = json.loads((DATA / "gpt4_1106_preview_model_outputs.json").read_text())
    frame = pd.DataFrame(
        {
            "instruction": [r["instruction"] for r in rows],
            "output_1": [r["output"] for r in rows],
            "output_2": [r["output"][: 40 + (37 * i) % 3000] for i, r in enumerate(rows)],
        }
    )
    delta = frame["output_1"].str.len() - frame["output_2"].str.len()
    frame["preference"] = 1 + 1 / (1 + np.exp(np.tanh(delta / delta.std()) * 1.5 + 0.4))
    return frame


LENGTH = {
    "df_gamed": str(DATA / "df_gamed_surrogate.csv"),
    "instruction_difficulty": str(DATA / "instruction_difficulty.csv"),
}


@needs_data
def test_length_control_is_the_packages_own(tmp_path, real):
    """The package's functions fed with the same frames by hand give the same number, and at equal lengths the law says
    1 / (1 + e^0.4) = 40.1 %; the win rate, pulled down by shorter outputs, is lower."""
    from alpaca_eval.metrics import glm_winrate as g

    found = score_file("alpaca_eval", published(tmp_path, real), **LENGTH)
    gamed = pd.read_csv(LENGTH["df_gamed"]).drop(columns="model")
    frame = real.copy()
    delta = frame["output_1"].str.len() - frame["output_2"].str.len()
    own = pd.DataFrame(
        {
            "preference": frame["preference"] - 1,
            "index": range(len(frame)),
            "std_delta_len": delta / delta.std(),
            "instruction_difficulty": gamed.drop_duplicates("index")["instruction_difficulty"].to_numpy(),
            "not_gamed_baseline": True,
        }
    )
    at_equal_length = own[["instruction_difficulty", "not_gamed_baseline"]].assign(std_delta_len=0)
    train, test = g.make_dmatrix_for_model(
        pd.concat([gamed, own]), at_equal_length, formula=g.GLM_INFO["length_controlled_v1"]["formula"]
    )
    weight = pd.concat([gamed, own])["not_gamed_baseline"].map({True: 1.0, False: 0.1})
    model = g.fit_LogisticRegressionCV(train, "preference", sample_weight=weight, n_splits=5)
    expected = 100 * model.predict_proba(test)[:, 1].mean()
    assert found["length_controlled_winrate"] == pytest.approx(expected, abs=1e-6)
    assert found["length_controlled_winrate"] == pytest.approx(100 / (1 + math.exp(0.4)), abs=3)
    assert found["win_rate"] < found["length_controlled_winrate"]
    assert next(iter(found["scores"])) == "lc_win_rate"


@needs_data
def test_moved_and_missing_rows_keep_their_difficulty(tmp_path, real):
    whole = score_file("alpaca_eval", published(tmp_path, real), **LENGTH)
    moved = published(tmp_path, real.sample(frac=1, random_state=3), "moved.json")
    found = score_file("alpaca_eval", moved, data=str(DATA / "instructions.jsonl"), **LENGTH)
    assert found["win_rate"] == pytest.approx(whole["win_rate"])
    # The folds of its cross-validation follow the order of the rows.
    assert found["length_controlled_winrate"] == pytest.approx(whole["length_controlled_winrate"], abs=0.2)
    part = published(tmp_path, real.iloc[:700], "part.json")
    with pytest.raises(UserError, match=r"700 rows, but 805 instructions.*name the instructions' file by data"):
        score_file("alpaca_eval", part, **LENGTH)
    some = score_file("alpaca_eval", part, data=str(DATA / "instructions.jsonl"), **LENGTH)
    assert some["n_total"] == 700
    null = real.assign(preference=real["preference"].where(real.index % 50 != 0))
    found = score_file("alpaca_eval", published(tmp_path, null, "null.json"), **LENGTH)
    assert (found["n_missing"], found["n_total"]) == (17, 788)
    assert found["length_controlled_winrate"] == pytest.approx(whole["length_controlled_winrate"], abs=1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"output_1": "a", "output_2": "b", "preference": 3}], ["row 0", "preference", "found 3"]),
        ([{"output_1": "a", "output_2": "b"}], ["row 0", "preference"]),
        ([{"output_1": "a", "preference": 1}], ["row 0", "output_2"]),
        ([{"output_1": "a", "output_2": "b", "preference": None}], ["no row has a preference"]),
    ],
)  # fmt: skip
def test_bad_annotations(tmp_path, rows, words):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError) as caught:
        score_file("alpaca_eval", path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    path.write_text(json.dumps([{"output_1": "a", "output_2": "b", "preference": 1}]))
    with pytest.raises(UserError, match=r"absent\.csv: not found"):
        score_file("alpaca_eval", path, df_gamed=str(tmp_path / "absent.csv"))


def outputs_in(body: dict) -> tuple[str, str]:
    """The two outputs as the judge's prompt shows them, m's first."""
    return tuple(re.findall(r'"output": """(.*?)"""', body["messages"][-1]["content"], re.DOTALL))


def prefers_longer(body: dict) -> dict:
    """A judge with logprobs: P(m) is a logistic function of the difference of lengths."""
    m, other = outputs_in(body)
    p = 1 / (1 + math.exp(-(len(m) - len(other)) / 5))
    top = [
        {"token": "m", "logprob": math.log(p), "bytes": None},
        {"token": "M", "logprob": math.log(1 - p), "bytes": None},
    ]
    content = [{"token": "m", "logprob": math.log(p), "bytes": None, "top_logprobs": top}]
    return {"message": {"role": "assistant", "content": "m"}, "logprobs": {"content": content}}


PAIRS = pd.DataFrame(
    {
        "instruction": [f"Say {i}." for i in range(12)],
        "output_1": "base",
        "output_2": ["b" * (i + 1) for i in range(12)],
    }
)


def judge(server: ChatServer, folder) -> JudgeClient:
    return JudgeClient(JudgeParams(model="judge", base_url=server.url, attempts=2), folder, "test", pause=0.01)


def test_preference_follows_the_outputs_whichever_stands_first(tmp_path):
    """P(the model's is better) = σ((len_2 − 4)/5) in both orders; some pairs are shown the other way round."""
    with ChatServer(prefers_longer) as server:
        found = judge_pairs(PAIRS, judge(server, tmp_path), "weighted_alpaca_eval_gpt4_turbo")
        first = [outputs_in(b)[0] == "base" for b in server.bodies]
        body = server.bodies[0]
    expected = [1 + 1 / (1 + math.exp(-((i + 1) - 4) / 5)) for i in range(12)]
    assert found["preference"].tolist() == pytest.approx(expected, abs=1e-9)
    assert 0 < sum(first) < 12
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 5)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert all(json.loads(j)["model"] == "judge" for j in found["judgement"])
    with ChatServer(lambda body: 1 / 0) as dead:
        again = judge_pairs(PAIRS, judge(dead, tmp_path), "weighted_alpaca_eval_gpt4_turbo")
        assert dead.bodies == []
    pd.testing.assert_frame_equal(again, found)


def test_an_unreadable_judgement_loses_no_other(tmp_path):
    def sometimes(body: dict) -> dict:
        if "bbbb" in body["messages"][-1]["content"] and "bbbbb" not in body["messages"][-1]["content"]:
            return {"message": {"role": "assistant", "content": "Neither"}, "logprobs": None}
        return prefers_longer(body)

    with ChatServer(sometimes) as server:
        found = judge_pairs(PAIRS, judge(server, tmp_path), "weighted_alpaca_eval_gpt4_turbo")
    assert found["preference"].isna().tolist() == [i == 3 for i in range(12)]
    assert "Neither" in found["judgement"][3]


def test_a_ranking_judge(tmp_path):
    def ranks(body: dict) -> str:
        text = body["messages"][-1]["content"]
        first, second = re.findall(r'"answer": """(.*?)"""', text, re.DOTALL)
        better = len(first) > len(second)
        return str([{"model": "model_1", "rank": 1 if better else 2}, {"model": "model_2", "rank": 2 if better else 1}])

    pairs = PAIRS[PAIRS["output_2"].str.len() != 4]
    with ChatServer(ranks) as server:
        found = judge_pairs(pairs, judge(server, tmp_path), "alpaca_eval_llama3_70b_fn")
    assert found["preference"].tolist() == [1, 1, 1, *[2] * 8]


def test_a_judge_that_calls_a_function(tmp_path):
    def calls(body: dict) -> dict:
        first, second = re.findall(r'"output": """(.*?)"""', body["messages"][-1]["content"], re.DOTALL)
        order = ["m", "M"] if len(first) > len(second) else ["M", "m"]
        ranks = {"ordered_models": [{"model": name, "rank": i} for i, name in enumerate(order, 1)]}
        function = {"name": body["tool_choice"]["function"]["name"], "arguments": json.dumps(ranks)}
        call = {"id": "c", "type": "function", "function": function}
        return {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}

    pairs = PAIRS[PAIRS["output_2"].str.len() != 4]
    with ChatServer(calls) as server:
        found = judge_pairs(pairs, judge(server, tmp_path), "alpaca_eval_gpt4_turbo_fn")
        assert server.bodies[0]["tools"][0]["function"]["name"] == "make_partial_leaderboard"
    assert found["preference"].tolist() == [1, 1, 1, *[2] * 8]


def test_the_benchmark_from_items_to_scores(tmp_path, monkeypatch):
    """Four instructions; the model's answers are longer by 5 characters: each wins with σ(1) = 73.1 %."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LARPO_JUDGEMENTS", str(tmp_path / "judgements"))
    rows = [{"instruction": f"Do {i}", "output": "base"} for i in range(4)]
    (tmp_path / "reference.json").write_text(json.dumps(rows))
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"instruction": r["instruction"]}) for r in rows))
    with ChatServer(prefers_longer) as server:
        entry = {
            "benchmark": "alpaca_eval", "generate": {"max_new_tokens": 9}, "data": str(tmp_path / "asked.jsonl"),
            "judge": "j", "options": {"reference": str(tmp_path / "reference.json")},
        }  # fmt: skip
        some = params(benchmarks={"ae": entry}, judges={"j": {"model": "judge", "base_url": server.url}})
        bench = build_benchmark(some, "ae")
        items = bench.items()
        assert items["messages"][2] == [{"role": "user", "content": "Do 2"}]
        outputs = pd.DataFrame(
            {"prompt_id": items["prompt_id"][::-1].tolist(), "temperature": 0.0, "sample": -1, "turn": 0,
             "text": "b" * 9, "n_tokens": 9, "finish_reason": "stop"}
        )  # fmt: skip
        frame = outputs.join(bench.score(items, outputs)).merge(items[["prompt_id", "messages", "answer"]])
        found = bench.aggregate(items, frame)
    assert frame["score"].tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 4, abs=1e-6)
    assert found["scores"]["win_rate"]["value"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    assert (found["items"], found["mean_characters"], found["baseline_mean_characters"]) == (4, 9.0, 4.0)
    assert (tmp_path / "judgements").is_dir()
    with pytest.raises(UserError, match="samples"):
        bench.score(items, outputs.assign(sample=0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {}}, ["benchmarks.ae.options.reference", "missing"]),
        ({"options": {"reference": "absent.json"}}, ["benchmarks.ae.options.reference", "absent.json", "not found"]),
        ({"judge": None}, ["benchmarks.ae.judge", "missing"]),
        ({"annotator": "weighted_alpaca_eval_gpt4_turb"}, ["annotator", "'weighted_alpaca_eval_gpt4_turbo'"]),
    ],
)  # fmt: skip
def test_refusals_before_anything_is_generated(tmp_path, change, words):
    (tmp_path / "r.json").write_text('[{"instruction": "a", "output": "b"}]')
    options = {"reference": str(tmp_path / "r.json")} | {k: v for k, v in change.items() if k == "annotator"}
    entry = {"benchmark": "alpaca_eval", "generate": {"max_new_tokens": 9}, "judge": "j", "options": options}
    entry |= {k: v for k, v in change.items() if k != "annotator"}
    with pytest.raises(UserError) as caught:
        build_benchmark(params(benchmarks={"ae": entry}, judges={"j": {"model": "x"}}), "ae")
    for word in words:
        assert word in str(caught.value)
