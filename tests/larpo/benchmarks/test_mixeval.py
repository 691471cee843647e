"""MixEval: prompts word for word, the rules on hard cases, the model parser through a real server, the totals."""

import json
import random

import numpy as np
import pytest

from larpo.benchmarks import score_file
from larpo.benchmarks.mixeval.benchmark import prompt, totals
from larpo.benchmarks.mixeval.items import Item, read_release
from larpo.benchmarks.mixeval.judge import ask_judge, judged_option, judged_score
from larpo.benchmarks.mixeval.rules import chosen_option, free_form_candidates, free_form_correct
from larpo.errors import UserError
from tests.chat_server import ChatServer
from tests.larpo.benchmarks.kit import DATA, bench, greedy_outputs, judge, needs_data, refused, write

FREE = {
    "problem_type": "free-form",
    "context": None,
    "prompt": "Who wrote it?",
    "target": ["Jane Austen", "Austen"],
    "benchmark_name": "TriviaQA",
}
CHOICE = {
    "problem_type": "multiple-choice",
    "context": "A text.",
    "prompt": "Which one?",
    "options": ["red", "blue", "sky"],
    "target": [1],
    "benchmark_name": "SIQA",
}


REASONED = "Answer the question. \nLet's think step by step."
ENDING = "A. red\nB. blue\nC. sky\nAnswer with the option letter from the given choices directly."


@pytest.mark.parametrize(
    ("item", "asked"),
    [
        (FREE, "Question: Who wrote it?\nAnswer the question shortly."),
        (FREE | {"context": "C"}, "Question: C\nWho wrote it?\nAnswer the question shortly."),
        *[(FREE | {"benchmark_name": s}, f"Question: Who wrote it?\n{REASONED}") for s in ("BBH", "GSM8k", "MATH")],
        (CHOICE, f"A text.\nWhich one?\n{ENDING}"),
        *[(CHOICE | {"context": nothing}, f"Which one?\n{ENDING}") for nothing in (None, "None", "null", "  ")],
    ],
)
def test_prompts_word_for_word(item, asked):
    assert prompt(Item(**item)) == asked


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),  # stripped at the edges
        ("The answer is (C).", "C"),
        ("C. sky", "C"),
        ("**B** it is", None),  # bold on both sides is none of the marks, and there are few words
        ("I choose **B. blue** here", "B"),
        ("A or B? I say B", "A"),  # the first that stands alone
        ("b", None),  # small letters are no options
        ("blue", None),  # too short to be searched for the options' texts
        ("It must surely have been Blue, not red", "B"),  # more than five words: the text that comes first
        ("nothing of the kind was said here at all", None),
        ("", None),
    ],
)
def test_option_by_rule(response, letter):
    assert chosen_option(response, ["red", "blue", "sky"]) == letter


@pytest.mark.parametrize(
    ("response", "targets", "right"),
    [
        ("Jane Austen.", ["austen"], True),
        ("It was written by Charlotte Bronte", ["Austen"], False),
        ("The answer is 1,234.", ["1234"], True),  # numbers by value
        ("12345", ["1234"], False),  # and not by their digits
        ("so 3.14159", ["3.14"], True),  # to two decimals
        ("x = 5", ["5"], True),
        ("6 * 7 = 42\nThat is it", ["42"], False),  # `=` counts in the last line only, and `is` has its own tail
        ("a", ["A"], True),
        ("The cat", ["a"], False),  # a single letter stands by itself
        ("I like the answer b", ["B"], True),
        ("", ["x"], False),
    ],
)
def test_free_form_by_rule(response, targets, right):
    assert free_form_correct(free_form_candidates(response), targets) is right


def test_brackets():
    scores = {"well [[0.7]] [[0.1]]": 0.7, "single [1]": 1.0, "[[1.5]]": None, None: None}
    assert {reply: judged_score(reply) for reply in scores} == scores
    options = {"so [[C]]": "C", "[B] or nothing": "B", "[[c]]": None}
    assert {reply: judged_option(reply) for reply in options} == options


def test_model_parser_asks_again_and_keeps_what_it_read(tmp_path):
    """The second item's first reply holds no bracket: it alone is asked again, as another request."""
    replies = iter(["Score: [[0.4]]", "no idea", "Chosen: [[B]]"])
    asked = [Item(**FREE), Item(**CHOICE)], ["Jane A.", "the second"]
    with ChatServer(lambda body: next(replies)) as server:
        verdicts = ask_judge(*asked, judge(server, tmp_path, concurrency=1))
        assert [verdict["value"] for verdict in verdicts] == [0.4, "B"]
        assert [b.get("seed") for b in server.bodies] == [None, None, 1]
        first, second = (b["messages"][-1]["content"] for b in server.bodies[:2])
        assert "<answer 1> Jane Austen; <answer 2> Austen" in first
        assert first.endswith("Model's answer: Jane A.\nJudgement:")
        assert "Options:\nA. red\nB. blue\nC. sky\nModel's answer: the second\nJudgement:" in second
    with ChatServer(lambda body: 1 / 0) as dead:
        assert (ask_judge(*asked, judge(dead, tmp_path)), dead.bodies) == (verdicts, [])


def test_model_parser_gives_up_without_inventing_a_score(tmp_path):
    """What the filter refuses is not asked again."""
    refusal = {"status": 400, "code": "content_filter"}
    for response, faults, requests in (("?", [], 3), ("!", [refusal], 1)):
        with ChatServer(lambda body: "I would rather not say", faults=faults) as server:
            verdicts = ask_judge([Item(**CHOICE)], [response], judge(server, tmp_path), attempts=3)
            assert (verdicts[0]["value"], len(server.bodies)) == (None, requests)


def release(folder, free: dict, choice: dict):
    folder.mkdir(parents=True)
    (folder / "free-form.json").write_text(json.dumps(free))
    (folder / "multiple-choice.json").write_text(json.dumps(choice))
    return folder


def test_totals_by_hand(tmp_path):
    """Three free-form items (right, wrong, right) and one choice (unread: wrong): overall 2/4, not (2/3 + 0)/2;
    upstream prints (0.667 + 0)/2 = 0.3335."""
    free = {str(i): FREE | {"benchmark_name": "DROP" if i else "TriviaQA"} for i in range(3)}
    data = release(tmp_path / "mixeval", free, {"0": CHOICE})
    answers = tmp_path / "answers"
    answers.mkdir()
    write(
        answers / "m_close_freeform.jsonl",
        [{"id": i, "response": r} for i, r in enumerate(["Austen", "Bronte", "austen"])],
    )
    write(answers / "m_close_multichoice.jsonl", [{"id": "0", "response": "dunno"}])
    found = score_file("mixeval", answers, data=str(data))
    assert {k: v["value"] for k, v in found["scores"].items()} == {
        "overall": 0.5,
        "free_form": pytest.approx(2 / 3),
        "multiple_choice": 0.0,
    }
    assert found["upstream_overall"] == pytest.approx(0.3335)
    assert {k: (v["value"], v["items"]) for k, v in found["sources"].items()} == {
        "DROP": (0.5, 2),
        "SIQA": (0.0, 1),
        "TriviaQA": (1.0, 1),
    }
    assert (found["items"], found["unparsed"], found["items_without_response"]) == (4, 0.25, 0)
    again = score_file("mixeval", answers, data=str(tmp_path))  # the folder above the release's
    assert again == found


def test_a_source_in_both_halves_is_told_apart():
    sources = [(FREE, "AGIEval"), (FREE, "DROP"), (CHOICE, "AGIEval"), (CHOICE, "SIQA")]
    items = [Item(**item | {"benchmark_name": source}) for item, source in sources]
    found = totals(items, np.array([1.0, 1.0, 0.0, 1.0]))["sources"]
    expected = {"AGIEval free-form": 1.0, "AGIEval multiple-choice": 0.0, "DROP": 1.0, "SIQA": 1.0}
    assert {name: s["value"] for name, s in found.items()} == expected
    assert all(s["items"] == 1 for s in found.values())


def test_upstream_overall_is_rounded_as_upstream_rounds():
    """Halves of 2,000 end in a 5 for odd counts, which Python rounds by the binary fraction and NumPy to even: wherever
    the two differ, and at some others, it is Python's."""
    items = [Item(**FREE)] * 2000 + [Item(**CHOICE)] * 2000
    differ = [n for n in range(1, 2000, 2) if round(n / 2000, 3) != np.round(n / 2000, 3)]
    assert differ
    for right in [*differ[:12], 1, 101, 999]:
        scores = np.repeat([1.0, 0.0, 1.0, 0.0], [right, 2000 - right, 1000, 1000])
        assert totals(items, scores)["upstream_overall"] == (round(right / 2000, 3) + 0.5) / 2, right


def test_random_is_there_for_comparison_and_seeded(tmp_path):
    rows = [CHOICE | {"id": i, "response": "dunno", "prompt": f"p{i}"} for i in range(300)]
    path = write(tmp_path / "multiple-choice.jsonl", rows)
    assert score_file("mixeval", path)["scores"]["overall"]["value"] == 0.0
    drawn = [score_file("mixeval", path, unparsed="random", seed=s)["scores"]["overall"]["value"] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == pytest.approx(1 / 3, abs=0.1)
    assert score_file("mixeval", path, unparsed="random")["unparsed"] == 1.0, "it is reported all the same"


def test_random_draws_are_upstreams(tmp_path):
    """Upstream seeds Python's generator with 42 and draws among an item's letters, in the order of the responses: C,
    A, A of three options for the three unread ones here; the second is right. The one that is read draws nothing."""
    rows = [CHOICE | {"id": i, "response": r, "target": [t]} for i, (r, t) in enumerate([("?", 0), ("B", 2), ("?", 0)])]
    rows.append(CHOICE | {"id": 9, "response": None, "target": [2]})
    found = score_file("mixeval", write(tmp_path / "multiple-choice.jsonl", rows), unparsed="random")
    random.seed(42)
    assert [random.choice("ABC") for _ in range(3)] == ["C", "A", "A"]
    assert found["scores"]["overall"]["value"] == 0.25
    assert found["unparsed"] == 0.75


def test_responses_as_upstream_keeps_them(tmp_path):
    """A model's folder: responses that carry their whole items, beside upstream's judgements, states and scores."""
    whole = {"formated_input": "asked", "options": None}
    free = [FREE | whole | {"id": str(i), "response": r} for i, r in enumerate(["Austen", "nobody"])]
    choice = [CHOICE | {"formated_input": "asked", "id": "0", "response": "B. blue"}]
    write(tmp_path / "m_close_freeform_hard.jsonl", free)
    write(tmp_path / "m_close_multichoice_hard.jsonl", choice)
    write(tmp_path / "judge_results_ff_rule.jsonl", [row | {"eval_result": True} for row in free])
    (tmp_path / "status_close_freeform_hard.json").write_text('{"args": {}}')
    (tmp_path / "score.json").write_text('{"overall score (final score)": 1}')
    found = score_file("mixeval_hard", tmp_path)
    assert (found["items"], found["upstream_overall"]) == (3, 0.75)
    assert found["scores"]["overall"]["value"] == pytest.approx(2 / 3)
    # Rows of another release than the folder that `data` names are told, not scored against its items.
    other = release(tmp_path / "other", {"0": FREE | {"prompt": "Who else?"}, "1": FREE}, {"0": CHOICE})
    words = ["line 1: prompt 'Who wrote it?' is not that of free-form item 0", "release"]
    refused(words, score_file, "mixeval_hard", tmp_path, data=str(other))
    (tmp_path / "empty").mkdir()
    refused(["empty: no responses; expected free-form.jsonl"], score_file, "mixeval_hard", tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("a.jsonl", {"id": 0, "response": "x"}, ["line 1", "problem_type", "multiple-choice.jsonl"]),
        ("free-form.jsonl", {"id": 0, "response": "x"}, ["line 1", "no target", "--data"]),
        ("free-form.jsonl", {"id": 0}, ["line 1", "response"]),
        ("a.jsonl", {"id": 0, "response": "x", "target": [3], "options": ["a", "b"]}, ["line 1", "index", "[3]"]),
        ("a.jsonl", {"id": 0, "response": "x", "problem_type": "essay", "target": ["a"]}, ["problem_type", "'essay'"]),
    ],
)
def test_refusals(tmp_path, name, row, words):
    refused(words, score_file, "mixeval", write(tmp_path / name, [row]))
    twice = write(tmp_path / "f.jsonl", [FREE | {"id": 4, "response": "x"}] * 2)
    refused(["item 4 appears twice"], score_file, "mixeval", twice)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"7": {k: v for k, v in FREE.items() if k != "benchmark_name"}}, "item 7: benchmark_name: field required"),
        ({"7": {k: v for k, v in FREE.items() if k != "prompt"}}, "item 7: prompt: field required"),
        ({"7": FREE | {"target": "Austen"}}, "item 7: target: "),
        ({"7": [FREE]}, "item 7: .*found \\["),
        ([FREE], "free-form.json: expected an object, an item per id"),
        ({"7": FREE | {"prompt": "\ud835"}}, "item 7: column 'prompt': .* half of a surrogate pair"),
    ],
)
def test_a_release_that_is_none(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_release(str(release(tmp_path / "r", content, {})), hard=False)


def test_a_release_with_byte_order_marks(tmp_path):
    folder = release(tmp_path / "r", {"0": FREE}, {"0": CHOICE})
    for file in folder.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_release(str(folder), hard=False)) == 2


def test_the_benchmark_from_items_to_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = str(release(tmp_path / "r", {"0": FREE}, {"0": CHOICE}))
    with ChatServer(lambda body: "[[0.5]]" if "Reference" in body["messages"][-1]["content"] else "[[B]]") as server:
        rule = bench("mixeval", data=data)
        model = bench("mixeval", server, data=data, judge="j", options={"parser": "model"})
        items = rule.items()
        outputs = greedy_outputs(items, ["B", "Jane Austen"])
        assert rule.score(items, outputs)["score"].tolist() == [1.0, 1.0]
        judged = model.score(items, outputs)
    assert judged["score"].tolist() == [1.0, 0.5]
    assert judged.index.tolist() == outputs.index.tolist()
    assert json.loads(judged["judgement"].iloc[1])["text"] == "[[0.5]]"
    metrics = model.aggregate(items, outputs.join(judged))
    assert (metrics["scores"]["overall"]["value"], metrics["items"]) == (0.75, 2)
    # Without a judge the model parser is upstream's; the rules ask none, even where one is named.
    default = bench("mixeval", data=data, options={"parser": "model"})
    assert (default.judge.model, default.judge.base_url) == ("gpt-3.5-turbo-0125", None)
    assert bench("mixeval", data=data, judge="j").judge is None


@needs_data
@pytest.mark.parametrize(("hard", "count"), [(False, 4000), (True, 1000)])
def test_the_release_is_read_whole_and_its_own_answers_are_right(tmp_path, hard, count):
    """Each item answered by one of its own targets: all right, by letter and by text. Some free-form targets are not
    found by upstream's rules even then (their key parts cut them short): fewer than 2 %."""
    data = str(DATA / "mixeval/2024-06-01")
    items = read_release(data, hard)
    assert len(items) == count
    for kind, least in (("multiple-choice", 1.0), ("free-form", 0.98)):
        rows = [{"id": key, "response": item.answer()} for (k, key), item in items.items() if k == kind]
        path = write(tmp_path / f"{kind}.jsonl", rows)
        found = score_file("mixeval_hard" if hard else "mixeval", path, data=data)
        assert found["scores"]["overall"]["value"] >= least
        assert found["items_without_response"] == count - len(rows)
        assert np.isclose(sum(s["items"] for s in found["sources"].values()), len(rows))
