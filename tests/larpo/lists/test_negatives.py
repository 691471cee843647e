"""Where positives and negatives come from (Section 3.2): gold and correct positives, other prompts' responses."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo import tables
from larpo.config.params import parse_params
from larpo.config.sections import ListsParams
from larpo.errors import UserError
from larpo.lists.negatives import Related
from larpo.lists.recipes import MARGIN, RECIPES, build_lists, positives_of, responses_needed
from larpo.load import check_params
from tests.conftest import tiny_params
from tests.larpo.lists.test_lists import build, candidates, pool, shown
from tests.report_run import params as run_params

GOLD = {"origin": "gold", "temperature": None, "seed": None}
P, N = "positive", "negative"
ROWS = [
    ("a", 1),
    ("a", 0),
    ("a", 0),
    ("a", 1, GOLD),
    ("b", 0),
    ("b", 0),
    ("b", 1, GOLD),
    ("c", 1),
    ("c", 1),
    ("c", 1, GOLD),
]
"""a has one correct and two incorrect responses, b only incorrect, c only correct ones; each has a gold solution:
a: r0 right, r1 and r2 wrong, r3 gold; b: r4, r5 wrong, r6 gold; c: r7, r8 right, r9 gold."""


def test_matched_prompts_and_positives_whatever_the_negatives():
    """At T = 1 and 0.7. a has an incorrect response at both, b at 1 alone, c at neither: a alone makes a list, with r0
    as its positive, whether the negative is of T = 1, of 0.7, or another prompt's response."""
    cool = {"temperature": 0.7}
    rows = [("a", 1), ("a", 0), ("a", 0, cool), ("b", 1), ("b", 0), ("b", 1, cool), ("c", 1), ("c", 1, cool)]
    own = {"recipe": "best_worst", "positive": "correct", "matched": True}
    negatives = {}
    for changes in ({"negative_temperature": 1.0}, {"negative_temperature": 0.7}, {"negatives": "random"}):
        lists = build(rows, **own, **changes).lists
        assert lists["prompt_id"].tolist() == ["a", "a"] and lists["response_id"].iloc[0] == "r0"
        negatives[next(iter(changes.values()))] = lists["response_id"].iloc[1]
    assert negatives[1.0] == "r1" and negatives[0.7] == "r2" and negatives["random"] in {f"r{i}" for i in range(3, 8)}
    assert len(build(rows, recipe="best_worst", positive="correct").lists) == 4, "a and b"


def angles(degrees: dict[str, float], texts: list[str] | None = None) -> Related:
    """Prompts as unit vectors in the plane: the nearest one has the nearest angle."""
    rad = np.radians(list(degrees.values()))
    return Related(list(degrees), texts or list(degrees), np.stack([np.cos(rad), np.sin(rad)], axis=1))


def test_gold_against_incorrect():
    """Prompt c has no incorrect response; without unverifiable rows nothing is dropped but it."""
    built = build(ROWS, recipe="top_bottom", bottom=2, positive="gold")
    assert next((i, role) for i, _, role in shown(built, "a")) == ("r3", P)
    assert {i for i, _, role in shown(built, "a") if role == N} == {"r1", "r2"}
    assert {i for i, _, _ in shown(built, "b")} == {"r6", "r4", "r5"}
    assert built.dropped_prompts == {"too_few_negatives": 1}
    assert built.dropped_responses == {}


def test_correct_against_incorrect():
    """Only a has both; gold solutions are no candidates: 3 rows dropped."""
    built = build(ROWS, recipe="best_worst", positive="correct")
    assert shown(built, "a")[0] == ("r0", 1.0, P)
    assert built.lists["prompt_id"].unique().tolist() == ["a"]
    assert built.dropped_responses == {"gold": 3}
    assert built.dropped_prompts == {"too_few_positives": 1, "too_few_negatives": 1}


def test_ranked_never_takes_gold():
    built = build(ROWS, recipe="all")
    assert built.dropped_responses == {"gold": 3}
    assert set(built.lists["response_id"]) == {"r0", "r1", "r2"}


def test_gold_that_the_reward_calls_wrong():
    """Its reward 0 is not above that of the incorrect one, so own negatives give no list; a negative of another
    prompt is worth 0 − 1."""
    rows = [("a", 0, GOLD | {"correct": False}), ("a", 0), ("b", 0)]
    assert build(rows, recipe="best_worst", positive="gold").dropped_prompts == {
        "too_few_positives": 1,
        "positive_not_above_negatives": 1,
    }
    built = build(rows, recipe="best_worst", positive="gold", negatives="random")
    assert shown(built, "a") == [("r0", 0.0, P), ("r2", -MARGIN, N)]


def test_incorrect_of_a_higher_reward_makes_no_list():
    """A reward model may like a wrong response better: 0.4 (correct) is not above 0.9."""
    rows = [("a", 0.4), ("a", 0.9, {"correct": False})]
    built = build(rows, recipe="best_worst", positive="correct")
    assert built.lists.empty
    assert built.dropped_prompts == {"positive_not_above_negatives": 1}


def test_random_is_uniform_over_the_responses_of_all_other_prompts():
    """Prompt a may draw any of b's and c's four samples (never gold): over 100 seeds all four are seen, each between
    8 and 42 times (25 expected, standard deviation 4.3: 4 of them)."""
    seen = [
        shown(build(ROWS, seed, recipe="best_worst", positive="gold", negatives="random"), "a")[1][0]
        for seed in range(100)
    ]
    counts = pd.Series(seen).value_counts()
    assert set(counts.index) == {"r4", "r5", "r7", "r8"}
    assert counts.between(8, 42).all()


def test_related_is_the_nearest_prompt():
    """Angles 0°, 10°, 40°: a and b are each other's nearest, c's is b."""
    related = angles({"a": 0, "b": 10, "c": 40})
    built = build_lists(
        pool(ROWS), ListsParams(recipe="top_bottom", bottom=2, positive="gold", negatives="related"), 0, related
    )
    sources = {p: set(g["response_id"]) for p, g in built.lists[built.lists["role"] == N].groupby("prompt_id")}
    assert sources["b"] < {"r0", "r1", "r2"} and len(sources["b"]) == 2
    assert sources["a"] == sources["c"] == {"r4", "r5"}
    assert built.dropped_prompts == {}


def test_equal_texts_are_not_related_and_ties_go_to_the_smaller_id():
    """b has a's text under another id; c and d are mirror images, equally near to a."""
    related = angles({"a": 0, "b": 0, "c": 20, "d": -20}, ["x", "x", "y", "z"])
    assert related.nearest(["a", "c"], ["d", "b", "c", "a"]) == ["c", "a"]
    assert related.nearest(["a"], ["a", "b"]) == [None]
    with pytest.raises(UserError, match="prompt e and 0 others are not in"):
        related.nearest(["a"], ["a", "e"])


def test_a_negative_is_never_the_positive_in_the_same_tokens():
    """b's first answer reads as a's solution does; a must take the other."""
    rows = [("a", 1, GOLD | {"token_ids": [7, 1]}), ("a", 0), ("b", 0, {"token_ids": [7, 1]}), ("b", 0)]
    for negatives in ("random", "related"):
        made = ListsParams(recipe="best_worst", positive="gold", negatives=negatives)
        for seed in range(20):
            built = build_lists(pool(rows), made, seed, angles({"a": 0, "b": 5}))
            assert [i for i, _, _ in shown(built)] == ["r0", "r3"]
        two = made.model_copy(update={"recipe": "top_bottom", "bottom": 2})
        built = build_lists(pool(rows), two, 0, angles({"a": 0, "b": 5}))
        assert built.dropped_prompts == {"too_few_negatives": 1, "too_few_positives": 1}


SOURCES = st.builds(
    ListsParams,
    recipe=st.sampled_from(["best_worst", "random_correct_incorrect", "top_bottom"]),
    bottom=st.integers(1, 3),
    positive=st.sampled_from(["ranked", "correct", "gold"]),
    negatives=st.sampled_from(["own", "random", "related"]),
    truncated=st.sampled_from(["drop", "keep"]),
    unique=st.booleans(),
)
TABLE = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from([0.0, 1.0]),
        st.fixed_dictionaries(
            {
                "iteration": st.integers(1, 3),
                "finish_reason": st.sampled_from(["stop", "stop", "length"]),
                "token_ids": st.lists(st.integers(0, 2), max_size=2),
                "origin": st.sampled_from(["policy", "policy", "gold"]),
            }
        ),
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=150, deadline=None)
@given(TABLE, SOURCES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_properties(rows, made, seed, random):
    frame = candidates(rows)
    related = angles({"a": 0, "b": 10, "c": 40, "d": 45})
    built = build_lists(pool(frame), made, seed, related)
    tables.check(built.lists, "lists", "test")

    # every prompt is a list or counted once; every response is used, dropped with a reason, or not chosen
    assert built.lists["prompt_id"].nunique() + sum(built.dropped_prompts.values()) == frame["prompt_id"].nunique()
    assert built.lists["response_id"].nunique() + sum(built.dropped_responses.values()) <= len(frame)

    facts = frame.set_index("response_id")
    positive, (top, bottom) = positives_of(made), RECIPES[made.recipe].counts(made)
    for prompt, group in built.lists.groupby("prompt_id"):
        good, bad = (facts.loc[group.loc[group["role"] == role, "response_id"]] for role in (P, N))
        # as many of each as the recipe names, positives first, rewards falling and apart
        assert (len(good), len(bad)) == (top, bottom)
        assert group["role"].tolist() == [P] * top + [N] * bottom
        values = group["reward"].to_numpy()
        assert (np.diff(values) <= 0).all() and values[0] > values[-1]
        assert group["response_id"].is_unique
        # from exactly the sources that the settings name
        assert (good["prompt_id"] == prompt).all()
        assert (good["origin"] == ("gold" if positive == "gold" else "policy")).all()
        assert positive != "correct" or good["correct"].all()
        assert (bad["origin"] == "policy").all()
        if made.negatives == "own":
            assert (bad["prompt_id"] == prompt).all()
            assert positive == "ranked" or not bad["correct"].any()
            assert (facts.loc[group["response_id"], "reward"].to_numpy() == values).all()
        else:
            assert (bad["prompt_id"] != prompt).all()
            assert (values[top:] == values[top - 1] - MARGIN).all()
            assert not set(map(tuple, bad["token_ids"])) & set(map(tuple, good["token_ids"]))
        if made.negatives == "related":
            usable = frame[frame["token_ids"].map(len) > 0]
            if made.truncated == "drop":
                usable = usable[usable["finish_reason"] != "length"]
            gold = usable["origin"] == "gold"
            if positive == "gold" and made.unique:  # a sample of the gold solution counts as that
                solutions = {(row.prompt_id, tuple(row.token_ids)) for row in usable[gold].itertuples()}
                texts = zip(usable["prompt_id"], usable["token_ids"].map(tuple), strict=True)
                gold |= np.array([text in solutions for text in texts], dtype=bool)
            usable = usable[~gold]
            if positive == "correct":
                usable = usable[usable["correct"].notna()]
            angle = {"a": 0, "b": 10, "c": 40, "d": 45}
            others = sorted(set(usable["prompt_id"]) - {prompt}, key=lambda p: abs(angle[p] - angle[prompt]))
            assert set(bad["prompt_id"]) == {others[0]}
        if made.truncated == "drop":
            assert (facts.loc[group["response_id"], "finish_reason"] == "stop").all()

    # neither the rows' order nor their index decides anything
    order = list(range(len(frame)))
    random.shuffle(order)
    again = build_lists(pool(frame.iloc[order]), made, seed, related)
    pd.testing.assert_frame_equal(built.lists, again.lists)
    assert (built.dropped_responses, built.dropped_prompts) == (again.dropped_responses, again.dropped_prompts)


@pytest.mark.parametrize(
    ("made", "needed"),
    [
        ({"recipe": "top_bottom", "bottom": 3, "positive": "gold"}, 3),
        ({"recipe": "top_bottom", "top": 2, "bottom": 3, "positive": "correct"}, 5),
        ({"recipe": "top_bottom", "top": 2, "bottom": 3, "negatives": "random"}, 2),
        ({"recipe": "best_worst", "positive": "gold", "negatives": "related"}, 0),
    ],
)
def test_responses_needed(made, needed):
    """Positives count unless they are gold, negatives unless they answer other prompts."""
    assert responses_needed(ListsParams(**made)) == needed


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"recipe": "top_bottom", "top": 2, "positive": "gold"}, "lists.top: 2, but a prompt has one gold solution"),
        ({"recipe": "top_rest", "negatives": "random"}, "lists.recipe: top_rest takes all the rest"),
        ({"recipe": "all", "negatives": "related"}, "lists.negatives: related compares"),
        ({"recipe": "best_worst", "matched": True}, "lists.matched: needs negatives that are incorrect"),
        (
            {"recipe": "best_worst", "positive": "correct", "negative_temperature": 0.25},
            "lists.negative_temperature: expected a temperature of `iterations`, .* found 0.25",
        ),
    ],
)
def test_recipes_that_their_sources_cannot_serve(made, words):
    with pytest.raises(UserError, match=words) as caught:
        check_params(tiny_params(lists=made, sample={"max_new_tokens": 4, "gold": True}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lists": {"recipe": "best_worst", "positive": "gold"}}, "lists.positive: gold needs .* sample.gold=true"),
        (
            {"sample": {"max_new_tokens": 4, "gold": True}, "prompts": {"source": "dataset", "per_iteration": 1}},
            "sample.gold: the prompts have no solutions; set prompts.solution_field",
        ),
        ({"lists": {"recipe": "best_worst", "negatives": "related"}}, "lists.memory=current or prompts.draw=same"),
    ],
)
def test_settings_that_contradict_each_other(changes, words):
    with pytest.raises(UserError, match=words):
        check_params(parse_params(run_params(**changes)))


def test_the_first_iteration_s_candidates_alone():
    """memory=first: iteration 3 follows 2 follows 1, and all look at 1; `all` looks at every one."""
    lists = {"recipe": "best_worst", "memory": "first"}
    found = parse_params(run_params(3, lists=lists))
    assert [found.memory_window(s) for s in "123"] == [["1"], ["1"], ["1"]]
    assert parse_params(run_params(3, lists=lists | {"memory": "all"})).memory_window("3") == ["1", "2", "3"]
