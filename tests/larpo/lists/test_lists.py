"""Candidate lists: recipes, ties, memory, and what is dropped."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo import tables
from larpo.config.sections import ListsParams
from larpo.lists.pool import Pool, pool_of
from larpo.lists.recipes import RECIPES, Built, build_lists, responses_needed


def candidates(rows: list[tuple]) -> pd.DataFrame:
    """A `candidates` table from (prompt, reward) or (prompt, reward, changes); ids are r0, r1, … and every
    response has tokens of its own unless `changes` says otherwise."""
    full = []
    for i, (prompt, reward, *changes) in enumerate(rows):
        row = {
            "prompt_id": prompt,
            "response_id": f"r{i}",
            "iteration": 1,
            "temperature": 1.0,
            "seed": 0,
            "text": "",
            "prompt_token_ids": [1],
            "token_ids": [i + 2],
            "finish_reason": "stop",
            "origin": "policy",
            "reward": float(reward),
            "correct": reward > 0,
            "reward_name": "final_number",
        }
        full.append(row | (changes[0] if changes else {}))
    return pd.DataFrame(full)


def build(rows: list[tuple] | pd.DataFrame, seed: int = 0, **params) -> Built:
    return build_lists(pool(rows), ListsParams(**params), seed)


def pool(rows: list[tuple] | pd.DataFrame) -> Pool:
    frame = rows if isinstance(rows, pd.DataFrame) else candidates(rows)
    return pool_of([tables.check(frame, "candidates", "test")])


def shown(built: Built, prompt: str = "a") -> list[tuple[str, float, str]]:
    part = built.lists[built.lists["prompt_id"] == prompt]
    assert part["rank"].tolist() == list(range(len(part)))
    return list(zip(part["response_id"], part["reward"], part["role"], strict=True))


FIVE = [("a", 0.1), ("a", 0.9), ("a", 0.5), ("a", 0.7), ("a", 0.3)]
"""Ranking: r1 (0.9), r3 (0.7), r2 (0.5), r4 (0.3), r0 (0.1)."""
P, N = "positive", "negative"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"recipe": "top_rest"}, [("r1", 0.9, P), ("r3", 0.7, N), ("r2", 0.5, N), ("r4", 0.3, N), ("r0", 0.1, N)]),
        (
            {"recipe": "top_rest", "top": 2},
            [("r1", 0.9, P), ("r3", 0.7, P), ("r2", 0.5, N), ("r4", 0.3, N), ("r0", 0.1, N)],
        ),
        ({"recipe": "top_bottom"}, [("r1", 0.9, P), ("r0", 0.1, N)]),
        ({"recipe": "top_bottom", "bottom": 3}, [("r1", 0.9, P), ("r2", 0.5, N), ("r4", 0.3, N), ("r0", 0.1, N)]),
        (
            {"recipe": "top_bottom", "top": 2, "bottom": 2},
            [("r1", 0.9, P), ("r3", 0.7, P), ("r4", 0.3, N), ("r0", 0.1, N)],
        ),
        ({"recipe": "best_worst", "top": 3, "bottom": 3}, [("r1", 0.9, P), ("r0", 0.1, N)]),
        ({"recipe": "all"}, [("r1", 0.9, P), ("r3", 0.7, P), ("r2", 0.5, P), ("r4", 0.3, N), ("r0", 0.1, N)]),
    ],
)
def test_recipes(params, expected):
    """Five rewards 0.9 > 0.7 > 0.5 > 0.3 > 0.1; top and bottom count from the two ends. `all` splits
    5 = 3 + 2; `best_worst` takes 1 + 1 whatever top and bottom are."""
    built = build(FIVE, **params)
    assert shown(built) == expected
    assert built.dropped_responses == built.dropped_prompts == {}


def test_random_correct_incorrect_takes_one_of_each_and_every_seed_draws_anew():
    """3 correct and 3 incorrect: 3 · 3 = 9 possible pairs; 200 seeds find them all (chance that one of 9 equally
    likely pairs is missed: 9 · (8/9)^200 < 1e-9)."""
    rows = [("a", 1), ("a", 0), ("a", 1), ("a", 0), ("a", 1), ("a", 0)]
    seen = set()
    for seed in range(200):
        first, second = shown(build(rows, seed, recipe="random_correct_incorrect"))
        assert first[1:] == (1.0, P)
        assert second[1:] == (0.0, N)
        seen.add((first[0], second[0]))
    assert len(seen) == 9


def test_random_correct_incorrect_needs_a_verifiable_reward():
    frame = candidates([("a", 1), ("a", 0)]).assign(correct=pd.Series([None, None], dtype=object))
    built = build(frame, recipe="random_correct_incorrect")
    assert built.lists.empty
    assert built.dropped_responses == {"not_verifiable": 2}
    assert built.dropped_prompts == {"too_few_positives": 1}


@pytest.mark.parametrize(
    ("params", "needed"),
    [
        ({"recipe": "top_rest", "top": 3}, 4),
        ({"recipe": "top_bottom", "top": 2, "bottom": 3}, 5),
        ({"recipe": "best_worst", "top": 9}, 2),
        ({"recipe": "random_correct_incorrect"}, 2),
        ({"recipe": "all"}, 2),
    ],
)
def test_responses_needed_is_exact(params, needed):
    """With that many different responses there is a list, with one less there is none."""
    assert responses_needed(ListsParams(**params)) == needed
    rows = [("a", float(i)) for i in range(needed)]
    assert not build(rows, **params).lists.empty
    built = build(rows[1:], **params)
    assert built.lists.empty
    # Its one response is correct, so what a draw of one each lacks is the other.
    reason = "too_few_negatives" if params["recipe"] == "random_correct_incorrect" else "too_few_candidates"
    assert built.dropped_prompts == {reason: 1}


def test_truncated_drop_and_keep():
    """Of rewards 1, 0, −1 the last is cut off: dropped, the list is 1 > 0; kept, it is 1 > −1."""
    rows = [("a", 1), ("a", 0), ("a", -1, {"finish_reason": "length"})]
    dropped = build(rows, recipe="best_worst", truncated="drop")
    assert [r for _, r, _ in shown(dropped)] == [1, 0]
    assert dropped.dropped_responses == {"truncated": 1}
    kept = build(rows, recipe="best_worst", truncated="keep")
    assert [r for _, r, _ in shown(kept)] == [1, -1]
    assert kept.dropped_responses == {}


def test_empty_responses_never_enter():
    rows = [("a", 2, {"token_ids": []}), ("a", 1), ("a", 0)]
    built = build(rows, recipe="best_worst")
    assert [i for i, _, _ in shown(built)] == ["r1", "r2"]
    assert built.dropped_responses == {"empty": 1}


def test_of_identical_responses_the_newest_stays():
    """r0, r1, r2 share tokens (iterations 1, 3, 2): r1 stays and 2 are dropped. The same tokens as an answer to
    another prompt are another response."""
    same = [9, 1]
    rows = [
        ("a", 1, {"token_ids": same, "iteration": 1}),
        ("a", 1, {"token_ids": same, "iteration": 3}),
        ("a", 1, {"token_ids": same, "iteration": 2}),
        ("a", 0, {"iteration": 1}),
        ("b", 1, {"token_ids": same}),
        ("b", 0),
    ]
    built = build(rows, recipe="all")
    assert [i for i, _, _ in shown(built)] == ["r1", "r3"]
    assert [i for i, _, _ in shown(built, "b")] == ["r4", "r5"]
    assert built.dropped_responses == {"identical": 2}
    assert len(build(rows, recipe="all", unique=False).lists) == 6


def test_memory_makes_lists_that_no_iteration_has_alone():
    """Iteration 1 has only right responses to prompt a, iteration 2 only wrong ones."""
    rows = [("a", 1, {"iteration": 1})] * 2 + [("a", 0, {"iteration": 2})] * 2
    frame = candidates(rows)
    for s in (1, 2):
        built = build(frame[frame["iteration"] == s], recipe="top_bottom")
        assert built.lists.empty
        assert built.dropped_prompts == {"all_rewards_equal": 1}
    both = build(frame, recipe="top_bottom", top=2, bottom=2)
    assert [r for _, r, _ in shown(both)] == [1, 1, 0, 0]


def test_no_candidates_give_an_empty_table():
    frame = candidates([("a", 1)]).iloc[:0]
    for recipe in RECIPES:
        built = build(frame, recipe=recipe)
        tables.check(built.lists, "lists", "test")
        assert built.lists.empty


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
        st.fixed_dictionaries(
            {
                "iteration": st.integers(1, 3),
                "finish_reason": st.sampled_from(["stop", "stop", "length"]),
                "token_ids": st.lists(st.integers(0, 2), max_size=2),
            }
        ),
    ),
    min_size=1,
    max_size=24,
)
PARAMS = st.builds(
    ListsParams,
    recipe=st.sampled_from(sorted(RECIPES)),
    top=st.integers(1, 3),
    bottom=st.integers(1, 3),
    truncated=st.sampled_from(["drop", "keep"]),
    unique=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(ROWS, PARAMS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_properties(rows, params, seed, random):
    frame = candidates(rows)
    built = build_lists(pool(frame), params, seed)
    tables.check(built.lists, "lists", "test")

    # every prompt is a list or counted; every response is used, dropped, or left by its prompt's recipe
    assert built.lists["prompt_id"].nunique() + sum(built.dropped_prompts.values()) == frame["prompt_id"].nunique()
    assert len(built.lists) + sum(built.dropped_responses.values()) <= len(frame)

    reward = frame.set_index("response_id")["reward"]
    for prompt, group in built.lists.groupby("prompt_id"):
        values = group["reward"].to_numpy()
        assert (np.diff(values) <= 0).all()
        assert values[0] > values[-1]
        assert group["rank"].tolist() == list(range(len(group)))
        # one role per response, positives first
        assert group["response_id"].is_unique
        assert group["role"].tolist() == sorted(group["role"], reverse=True)
        assert set(group["role"]) == {"positive", "negative"}
        assert (reward[group["response_id"]].to_numpy() == values).all()
        assert set(group["response_id"]) <= set(frame.loc[frame["prompt_id"] == prompt, "response_id"])

    # neither the rows' order nor their index decides anything
    order = list(range(len(frame)))
    random.shuffle(order)
    shuffled = build_lists(pool(frame.iloc[order]), params, seed)
    pd.testing.assert_frame_equal(built.lists, shuffled.lists)
    assert (built.dropped_responses, built.dropped_prompts) == (shuffled.dropped_responses, shuffled.dropped_prompts)

    # another seed may exchange equals only
    other = build_lists(pool(frame), params, seed + 1)
    if params.recipe != "random_correct_incorrect":
        columns = ["prompt_id", "rank", "reward", "role"]
        pd.testing.assert_frame_equal(built.lists[columns], other.lists[columns])
    assert other.dropped_prompts == built.dropped_prompts
    assert other.dropped_responses == built.dropped_responses


def test_every_row_is_accounted_for():
    """8 rows: 1 truncated, 1 empty, 1 identical, leaving 5. Prompt a keeps 3 (a list of 2, 1 not chosen), b keeps 1
    (too few), c keeps 1 of 2 equal ones (too few): 1 + 1 + 1 dropped, 2 used, 3 not chosen: 8."""
    rows = [
        ("a", 1),
        ("a", 0.5),
        ("a", 0),
        ("a", 1, {"finish_reason": "length"}),
        ("a", 1, {"token_ids": []}),
        ("b", 1),
        ("c", 1, {"token_ids": [7]}),
        ("c", 1, {"token_ids": [7]}),
    ]
    built = build(rows, recipe="best_worst", truncated="drop")
    assert built.dropped_responses == {"truncated": 1, "empty": 1, "identical": 1}
    assert built.dropped_prompts == {"too_few_candidates": 2}
    assert len(built.lists) == 2


def test_a_tie_is_broken_by_the_seed_and_by_nothing_else():
    """Five equals behind one best: over 60 seeds each is chosen as the worst at least once (5 · 0.8^60 < 1e-5), and
    the draw does not favour an iteration."""
    rows = [("a", 1)] + [("a", 0, {"iteration": i}) for i in range(1, 6)]
    last = [shown(build(rows, seed, recipe="best_worst"))[1][0] for seed in range(60)]
    assert set(last) == {"r1", "r2", "r3", "r4", "r5"}
    assert last == [shown(build(rows, seed, recipe="best_worst"))[1][0] for seed in range(60)]


CUT = {"finish_reason": "length"}


@pytest.mark.parametrize(
    ("rows", "counted"),
    [
        ([("a", 1), ("a", 0)], {}),
        ([("a", 0), ("a", -1, CUT)], {"lists_ranked_by_cut_off": 1}),  # a wrong answer above half of one
        ([("a", 1), ("a", 0), ("a", -1, CUT)], {}),  # the finished ones differ
        ([("a", 0), ("a", -1, CUT), ("a", -0.5, CUT)], {}),  # the cut-off ones do
        ([("a", 0, CUT), ("a", -1, CUT)], {"lists_all_cut_off": 1}),
        (
            [("a", 0), ("a", -1, CUT), ("b", 0, CUT), ("b", -1, CUT)],
            {"lists_all_cut_off": 1, "lists_ranked_by_cut_off": 1},
        ),
    ],
)
def test_lists_that_penalties_alone_rank_are_counted(rows, counted):
    assert build(rows, recipe="all", truncated="keep").cut_off == counted
