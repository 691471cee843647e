"""AlpacaEval's win rates: by hand, against the package's own, on files as they are published."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from larpo.benchmarks import score_file
from larpo.benchmarks.alpaca_eval.benchmark import as_scores
from larpo.benchmarks.alpaca_eval.scores import win_rates
from tests.larpo.benchmarks.kit import DATA, bench, needs_data, refused, write


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
    assert "none of AlpacaEval's 805" in found["length_control"]
    assert "length_controlled_winrate" not in found
    json.dumps(found)
    alone = win_rates(annotations([2.0]))
    assert (alone["win_rate"], alone["standard_error"]) == (100.0, None), "JSON knows no NaN"
    assert as_scores(alone)["win_rate"] == {"value": 1.0, "low": 0.0, "high": 1.0}


def published(folder, rows: pd.DataFrame, **options) -> dict:
    """Scores of rows in a file as AlpacaEval publishes them."""
    path = folder / "annotations.json"
    path.write_text(rows.to_json(orient="records"))
    return score_file("alpaca_eval", path, **options)


@pytest.fixture(scope="module")
def real() -> pd.DataFrame:
    """The reference's outputs against shortened ones of the same model, with preferences that favour length: a
    known law in the place of a judge."""
    rows = json.loads((DATA / "alpaca_eval/gpt4_1106_preview_model_outputs.json").read_text())
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
    "df_gamed": str(DATA / "alpaca_eval/df_gamed_surrogate.csv"),
    "instruction_difficulty": str(DATA / "alpaca_eval/instruction_difficulty.csv"),
}


@needs_data
def test_length_control_is_the_packages_own(tmp_path, real):
    """The package's functions fed with the same frames by hand give the same number, and at equal lengths the law says
    1 / (1 + e^0.4) = 40.1 %; the win rate, pulled down by shorter outputs, is lower."""
    from alpaca_eval.metrics import glm_winrate as g

    found = published(tmp_path, real, **LENGTH)
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
def test_moved_missing_and_changed_rows_keep_their_difficulty(tmp_path, real):
    """Instructions are known by their text: in any order the same figures to the last bit; of 700 rows the 700
    difficulties; and where one is none of the 805 there are none."""
    whole = published(tmp_path, real, **LENGTH)
    moved = real.sample(frac=1, random_state=3)
    changed = real.assign(instruction=real["instruction"].where(real.index != 5, "changed"))
    for rows, options in (
        (moved, LENGTH),
        (moved, {"data": str(DATA / "alpaca_eval/instructions.jsonl"), **LENGTH}),
        (moved, {"df_gamed": LENGTH["df_gamed"]}),  # its own column of difficulties is the same
        (real.drop(columns="instruction"), LENGTH),
    ):
        assert published(tmp_path, rows, **options) == whole
    part = real.sample(n=700, random_state=1)
    some = published(tmp_path, part, **LENGTH)
    assert some == published(tmp_path, part.sort_index(), **LENGTH) and some["n_total"] == 700
    assert some["length_controlled_winrate"] == pytest.approx(whole["length_controlled_winrate"], abs=3)
    null = published(tmp_path, real.assign(preference=real["preference"].where(real.index % 50 != 0)), **LENGTH)
    assert (null["n_missing"], null["n_total"]) == (17, 788)
    assert null["length_controlled_winrate"] == pytest.approx(whole["length_controlled_winrate"], abs=1)
    # The gamed baselines' rows in any order.
    gamed = pd.read_csv(LENGTH["df_gamed"]).sort_values(["index", "model"])
    gamed.to_csv(tmp_path / "gamed.csv", index=False)
    found = published(tmp_path, moved, df_gamed=str(tmp_path / "gamed.csv"))
    assert found["length_controlled_winrate"] == pytest.approx(whole["length_controlled_winrate"], abs=1e-9)
    own = real.assign(instruction=[f"Own {i}." for i in range(len(real))])
    for rows, words in (
        (changed, "1 of 805 instructions are none of AlpacaEval's 805 (the first: 'changed')"),
        (changed.iloc[::-1], "1 of 805 instructions"),
        (own, "805 of 805 instructions are none"),
        (own.iloc[:700], "700 of 700 instructions are none"),
        (real.assign(instruction=real["instruction"].where(real.index != 5)), "1 of 805 instructions"),
        (real.drop(columns="instruction").iloc[:700], "700 rows without instructions"),
    ):
        found = published(tmp_path, rows, **LENGTH)
        assert words in found["length_control"] and "length_controlled_winrate" not in found
        assert list(found["scores"]) == ["win_rate"]
    refused(
        ["row 805: the instruction of row 0 again"], published, tmp_path, pd.concat([real, real.iloc[:1]]), **LENGTH
    )
    refused(["absent.csv: not found"], published, tmp_path, real, df_gamed=str(tmp_path / "absent.csv"))


@needs_data
def test_rows_as_published(tmp_path, real):
    """All columns of a published file, NaN as Python writes it, a failed generation, and shares instead of 1 to 2."""
    rows = real.assign(
        generator_1="gpt4_1106_preview",
        generator_2="m",
        dataset="koala",
        annotator="weighted_alpaca_eval_gpt4_turbo",
        raw_completion=[{"logprobs": None}] * len(real),
        time_per_example=0.5,
    ).to_dict("records")
    rows[3] |= {"preference": float("nan")}
    rows[4] |= {"preference": None, "output_2": None, "raw_completion": None}
    path = tmp_path / "published.json"
    path.write_text(json.dumps(rows, indent=4))
    assert "NaN" in path.read_text()
    found = score_file("alpaca_eval", path, **LENGTH)
    assert (found["n_total"], found["n_missing"], found["items"]) == (803, 2, 805)
    kept = [r["preference"] for i, r in enumerate(rows) if i not in (3, 4)]
    assert found["win_rate"] == pytest.approx(100 * (np.mean(kept) - 1), abs=1e-9)
    assert 0 < found["length_controlled_winrate"] < 100
    shares = [r | {"preference": None if r["preference"] is None else r["preference"] - 1} for r in rows]
    path.write_text(json.dumps(shares))
    again = score_file("alpaca_eval", path, **LENGTH)
    assert again["win_rate"] == pytest.approx(found["win_rate"], abs=1e-9)
    assert again["length_controlled_winrate"] == pytest.approx(found["length_controlled_winrate"], abs=1e-6)
    # The baseline against itself: a draw, as the package has it.
    itself = real.assign(generator_1="b", generator_2="b", output_2=real["output_1"], preference=1.5)
    found = published(tmp_path, itself, **LENGTH)
    assert (found["win_rate"], found["length_controlled_winrate"], found["n_draws"]) == (50.0, 50.0, 805)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"output_1": "a", "output_2": "b", "preference": 3}], ["row 0", "preference", "found 3"]),
        ([{"output_1": "a", "output_2": "b"}], ["row 0", "preference"]),
        ([{"output_1": "a", "preference": 1}], ["row 0", "output_2"]),
        ([{"output_1": "a", "output_2": "b", "preference": None}], ["no row has a preference"]),
        ([{"output_1": "a", "output_2": None, "preference": 1}], ["row 0", "output_2"]),
        ([{"output_1": "a", "output_2": "b", "preference": p} for p in (1.5, 0.4)], ["row 1", "0.4", "one scale"]),
        (
            [{"output_1": "a", "output_2": "b", "preference": 1, "generator_2": g} for g in "xy"],
            ["outputs of 2 models (x, y"],
        ),
    ],
)
def test_bad_annotations(tmp_path, rows, words):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    refused(words, score_file, "alpaca_eval", tmp_path / "a.json")


def test_a_baseline_stands_in_for_output_1(tmp_path):
    rows = [{"instruction": i, "output_2": "b", "preference": 2} for i in "xy"]
    baseline = write(tmp_path / "baseline.jsonl", [{"instruction": i, "output": "ab"} for i in "xy"])
    found = score_file("alpaca_eval", write(tmp_path / "rows.jsonl", rows), baseline=str(baseline))
    assert (found["baseline_mean_characters"], found["win_rate"]) == (2.0, 100.0)


@needs_data
def test_recomputing_needs_no_instructions_and_no_network(tmp_path, real):
    """The benchmark with its data on the hub, which is out of reach here: items and evaluations suffice."""
    benchmark = bench("alpaca_eval", judge="j", options=LENGTH)
    refused(["options.reference: cannot fetch", ".json of the hub", "name a local copy"], benchmark.items)
    chosen = real.sample(n=300, random_state=2)
    frame = pd.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in chosen.index],
            "messages": [[{"role": "user", "content": t}] for t in chosen["instruction"]],
            "answer": chosen["output_1"],
            "text": chosen["output_2"],
            "temperature": 0.0,
            "n_tokens": 1,
            "finish_reason": "stop",
            "parsed": [f"{p:.6f}" for p in chosen["preference"]],
        }
    )
    items = pd.DataFrame({"prompt_id": frame["prompt_id"], "meta": [json.dumps({"index": i}) for i in chosen.index]})
    found = benchmark.aggregate(items, frame)
    direct = published(tmp_path, chosen, **LENGTH)
    assert found["scores"]["lc_win_rate"]["value"] == pytest.approx(direct["scores"]["lc_win_rate"]["value"], abs=1e-5)
