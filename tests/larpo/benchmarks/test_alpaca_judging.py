"""AlpacaEval's judges through a real server: order, parsers, a small model that judges, faults, resume."""

import json
import math
import re

import pandas as pd
import pytest

from larpo.benchmarks import build_benchmark
from larpo.benchmarks.alpaca_eval.judge import judge_pairs
from tests.chat_server import ChatServer
from tests.larpo.benchmarks.kit import bench, greedy_outputs, judge, params, refused, write

LLM = "weighted_alpaca_eval_gpt4_turbo"


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


def test_preference_follows_the_outputs_whichever_stands_first(tmp_path):
    """P(the model's is better) = σ((len_2 − 4)/5) in both orders; some pairs are shown the other way round."""
    with ChatServer(prefers_longer) as server:
        found = judge_pairs(PAIRS, judge(server, tmp_path), LLM)
        first = [outputs_in(b)[0] == "base" for b in server.bodies]
        body = server.bodies[0]
    expected = [1 + 1 / (1 + math.exp(-((i + 1) - 4) / 5)) for i in range(12)]
    assert found["preference"].tolist() == pytest.approx(expected, abs=1e-9)
    assert 0 < sum(first) < 12
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 5)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert all(json.loads(j)["model"] == "m/judge" for j in found["judgement"])
    with ChatServer(lambda body: 1 / 0) as dead:
        again = judge_pairs(PAIRS, judge(dead, tmp_path), LLM)
        assert dead.bodies == []
    pd.testing.assert_frame_equal(again, found)


def test_an_unreadable_judgement_loses_no_other(tmp_path):
    def sometimes(body: dict) -> dict:
        if body["messages"][-1]["content"].count('"""b"""'):
            preferred = prefers_longer(body)
            top = preferred["logprobs"]["content"][0]["top_logprobs"]
            top.append({"token": "\ud835", "logprob": -20.0, "bytes": None})
            return preferred
        if "bbbb" in body["messages"][-1]["content"] and "bbbbb" not in body["messages"][-1]["content"]:
            return {"message": {"role": "assistant", "content": "Neither"}, "logprobs": None}
        return prefers_longer(body)

    with ChatServer(sometimes) as server:
        found = judge_pairs(PAIRS, judge(server, tmp_path), LLM)
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
    monkeypatch.setenv("LARPO_JUDGEMENTS", str(tmp_path / "judgements"))
    rows = [{"instruction": f"Do {i}", "output": "base"} for i in range(4)]
    path = str(write(tmp_path / "rows.jsonl", rows))
    settings = {"data": path, "judge": "j", "options": {"reference": path}}
    with ChatServer(prefers_longer) as server:
        benchmark = bench("alpaca_eval", server, **settings)
        items = benchmark.items()
        assert items["messages"][2] == [{"role": "user", "content": "Do 2"}]
        outputs = greedy_outputs(items, ["b" * 9] * 4)
        frame = outputs.join(benchmark.score(items, outputs)).merge(items[["prompt_id", "messages", "answer"]])
        metrics = benchmark.aggregate(items, frame)
    assert frame["score"].tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 4, abs=1e-6)
    assert metrics["scores"]["win_rate"]["value"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    assert metrics["alpaca_eval"]["win_rate"] == pytest.approx(100 / (1 + math.exp(-1)), abs=1e-4)
    assert "4 of 4 instructions are none of AlpacaEval's 805" in metrics["alpaca_eval"]["length_control"]
    assert metrics["remark"] == f"Length control {metrics['alpaca_eval']['length_control']}."
    assert metrics["temperature"] == 0.0 and list(metrics["scores"]) == ["win_rate"]
    assert (metrics["items"], metrics["mean_characters"], metrics["baseline_mean_characters"]) == (4, 9.0, 4.0)
    assert (tmp_path / "judgements").is_dir()
    monkeypatch.setenv("LARPO_JUDGEMENTS", str(tmp_path / "others"))
    with ChatServer(lambda body: "m") as server:  # a server without logprobs
        silent = bench("alpaca_eval", server, **settings)
        refused(["judges.j", "without the log-probabilities", "4 replies"], silent.score, items, outputs)
    monkeypatch.setenv("LARPO_JUDGEMENTS", str(tmp_path / "words"))
    with ChatServer(lambda body: "I would say: \ud835.") as server:
        worded = bench(
            "alpaca_eval", server, **settings | {"options": {"reference": path, "annotator": "alpaca_eval_gpt4"}}
        )
        refused(["alpaca_eval_gpt4 can read none of 4 replies of judge j"], worded.score, items, outputs)


@pytest.mark.parametrize(
    "judge", [{"drop": ["logprobs"]}, {"drop": ["top_logprobs"]}, {"options": {"logprobs": False}}]
)
def test_an_annotator_that_reads_logprobs_needs_a_judge_that_is_asked_for_them(tmp_path, judge):
    path = str(write(tmp_path / "rows.jsonl", [{"instruction": "Do", "output": "base"}]))
    judges = {"j": {"model": "m", "base_url": "http://127.0.0.1:1/v1"} | judge}

    def build(annotator: str) -> object:
        entry = {"benchmark": "alpaca_eval", "data": path, "judge": "j", "generate": {"max_new_tokens": 4}}
        entry["options"] = {"reference": path, "annotator": annotator}
        return build_benchmark(params(benchmarks={"b": entry}, judges=judges), "b")

    refused(["benchmarks.b.options.annotator", "logprobs", "alpaca_eval_gpt4_turbo_fn"], build, LLM)
    assert build("alpaca_eval_gpt4_turbo_fn") is not None


class SmallModel:
    """A judge that is a language model: a random two-layer Llama over bytes, which says one of five characters."""

    SAYS = b"mM01 "

    def __init__(self):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=256,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=8192,
                initializer_range=0.5,
            )
        ).eval()

    def logprobs(self, body: dict) -> dict[str, float]:
        import torch

        text = "".join(m["content"] for m in body["messages"]).encode()
        with torch.no_grad():
            last = self.model(torch.tensor([list(text)])).logits[0, -1, list(self.SAYS)]
        values = last.double().log_softmax(0).tolist()
        return dict(sorted(zip(self.SAYS.decode(), values, strict=True), key=lambda pair: -pair[1]))

    def __call__(self, body: dict) -> dict:
        found = self.logprobs(body)
        top = [{"token": t, "logprob": p, "bytes": None} for t, p in list(found.items())[: body["top_logprobs"]]]
        content = [top[0] | {"top_logprobs": top}]
        return {"message": {"role": "assistant", "content": top[0]["token"]}, "logprobs": {"content": content}}


def test_a_real_model_judges_through_faults(tmp_path):
    """The preference is what the model itself says of m against M, through a rate limit, an error, a dropped
    connection and a reply that never ends in time; then, from the store, without the model."""
    model = SmallModel()
    faults = [{"status": 429, "retry_after": 0.01}, {"status": 500}, {"drop": True}, {"sleep": 3}, {"body": "{}"}]
    settings = {"model": "small", "attempts": 7, "timeout": 2, "concurrency": 3}
    with ChatServer(model, faults=faults) as server:
        found = judge_pairs(PAIRS, judge(server, tmp_path, **settings), LLM)
        assert len(server.bodies) == len(PAIRS) + len(faults)
    expected = {}
    for body in server.bodies:
        said = model.logprobs(body)
        m, other = math.exp(said["m"]), math.exp(said["M"])
        first, second = outputs_in(body)
        expected[second if first == "base" else first] = 1 + (other if first == "base" else m) / (m + other)
    assert found["preference"].tolist() == pytest.approx([expected[o] for o in PAIRS["output_2"]], abs=1e-9)
    assert found["preference"].nunique() == len(PAIRS)
    pd.testing.assert_frame_equal(judge_pairs(PAIRS, judge(server, tmp_path, **settings), LLM), found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generate": {"max_new_tokens": 9, "samples": 4}}, ["benchmarks.b.generate", "judges one output"]),
        ({"generate": {"max_new_tokens": 9, "refinements": 1}}, ["benchmarks.b.generate", "judges one output"]),
        ({"options": {"reference": "absent.json"}}, ["benchmarks.b.options.reference", "absent.json", "not found"]),
        ({"judge": None}, ["benchmarks.b.judge", "missing"]),
        ({"options": {"annotator": "weighted_alpaca_eval_gpt4_turb"}}, ["b.options.annotator", f"'{LLM}'"]),
    ],
)
def test_refusals_before_anything_is_generated(change, words):
    refused(words, lambda: bench("alpaca_eval", **({"judge": "j"} | change)))
