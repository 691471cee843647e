"""An evaluation question inside a training prompt: found whatever stands around it, and nothing else is."""

import html
import unicodedata

import pandas as pd
import pytest

from larpo.benchmarks.gsm8k import GSM8K
from larpo.benchmarks.math import Math
from larpo.benchmarks.mixeval import benchmark as mixeval
from larpo.config.sections import PromptsParams, TaskParams
from larpo.errors import UserError
from larpo.sources.contamination import INSTRUCTIONS, Questions, core, draw_apart
from larpo.sources.prompts import draw

LONG = "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many clips were sold?"
SHORT = "Who wrote Emma?"
SUM = "3+4"


def table(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"messages": [[{"role": "user", "content": text}] for text in texts]})


def found(evaluation: str, training: str) -> bool:
    return Questions({"b": table(evaluation)}).found([{"role": "user", "content": training}]) is not None


HELD = [
    "{}",
    "Please answer the following question.\n\n{}",
    "{}\n\nThink step by step, then put the answer in a box.",
    "Question: {}\nAnswer:",
    "Q: {} A:",
    "1. {}",
    "- {}",
    "### Instruction:\n{}\n\n### Response:\n",
    "<|im_start|>user\n{}<|im_end|>",
    "[INST] {} [/INST]",
    "“{}”",
    "**{}**",
    "Q: What is 2+2? A: 4\nQ: {}\nA: ...\nQ: Where is Rome? A:",
    "Solve: {}",
    "Solve — {}",
    "Solve -> {}",
    "> {}",
    "Read this.\\n\\n{}\\nAnswer:",
    '<question id="3">{}</question>',
    "{} = ?",
]
WRITTEN = {
    "as it is": lambda t: t,
    "upper case": str.upper,
    "white space": lambda t: "\u00a0 ".join(t.split(" ")),
    "full width": lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in t),
    "decomposed": lambda t: unicodedata.normalize("NFD", t.replace("e", "é")).replace("\u0301", ""),
    "no width": lambda t: "\u200b".join(t),
    "soft hyphens": lambda t: t.replace("r", "r\u00ad"),
    "look-alikes": lambda t: t.translate(str.maketrans("aeopcEMA", "аеорсЕМА")),
    "Greek": lambda t: t.translate(str.maketrans("oEMA", "οΕΜΑ")),
    "entities": lambda t: html.escape(t).replace(" ", "&nbsp;"),
    "no full stop": lambda t: t.rstrip("?."),
}


@pytest.mark.parametrize("question", [LONG, SHORT, SUM])
@pytest.mark.parametrize("template", HELD)
def test_what_training_adds(question, template):
    assert found(question, template.format(question))


@pytest.mark.parametrize("question", [LONG, SHORT, SUM, "What is the capital of France?"])
@pytest.mark.parametrize("form", WRITTEN)
def test_how_training_writes_it(question, form):
    assert found(question, f"Answer this:\n{WRITTEN[form](question)}\nThanks.")


@pytest.mark.parametrize("question", [LONG, SHORT, SUM, "7"])
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_what_the_benchmark_adds(question, instruction):
    assert found(f"{question}\n\n{instruction}", question)
    assert found(f"Question: {question}\n{instruction}", f"{question} Be brief." if question != "7" else "7")


def test_an_unknown_instruction_of_the_benchmark():
    """It is what many items share, or all that stands beside a long question."""
    asked = [f"Consider it well and reply in French: {q}" for q in (SHORT, SUM, "Where is Rome?", "Why is snow white?")]
    questions = Questions({"b": table(*asked)})
    assert questions.found([{"role": "user", "content": "Hi. Who wrote Emma?"}]) == ("b", 0)
    assert questions.found([{"role": "user", "content": "Compute 3+4."}]) == ("b", 1)
    assert found(f"Consider it well, my friend. {LONG} Reply in French.", LONG)


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("3+4", "13+45"),
        ("3+4", "3+45"),
        ("3+4", "3+4+5"),
        ("3+4", "2*3+4"),
        ("3+4", "2 * 3 + 4"),
        ("3+4", "(3+4)*2"),
        ("3+4", "-3+4"),
        ("3+4", "3+4.5"),
        ("3+4", "3-4"),
        ("3+4", "3+4=x-2"),
        ("3 + 4 =", "13 + 4 ="),
        ("(3 + 4) * 2", "3 + (4 * 2)"),
        ("x + y", "x + y + 2"),
        ("5!", "5"),
        ("7", "What is 7 + 2?"),
        ("What is 4 + 7?", "What is 4 + 7 + 3?"),
        (SHORT, "Who wrote Emma and Persuasion?"),
        (SHORT, "Who wrote Emma, and when?"),
        (SHORT, "I know who wrote Emma but not why."),
        ("Why?", "Why? Because it rains."),
        (
            "Sort these words in rising order: pear, fig, plum",
            "Sort these words in rising order: pear, fig, plum, kiwi",
        ),
        (LONG, LONG.replace("48", "46")),
        (LONG, LONG[:60]),
    ],
)
def test_what_is_another_question(question, prompt):
    assert not found(question, prompt)


def test_a_long_question_may_follow_a_comma():
    assert found(LONG, f"Tell me, {LONG}") and not found(SHORT, f"Tell me, {SHORT}")


def test_every_message_of_a_prompt_counts():
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": f"Then: {SHORT} Austen."}]
    assert Questions({"b": table("a b", SHORT)}).found(messages) == ("b", 1)


def test_the_known_instructions_are_those_of_the_benchmarks():
    texts = [GSM8K.instruction, Math.instruction, mixeval.SHORTLY, mixeval.STEP_BY_STEP, mixeval.BY_LETTER]
    for text in texts:
        assert core(f"Who wrote Emma?\n{text}") == SHORT


def test_sums_that_are_held_out_are_not_found_among_those_trained_on():
    task = TaskParams(name="chain_sum", config={"min_terms": 2, "max_terms": 3, "max_digits": 2})
    params = PromptsParams(tasks=[task], per_iteration=500)
    frame, dropped = draw_apart(params, 1, lambda: {"held_out": draw(params, 200, 2, held_out=True)})
    assert dropped == {} and frame.equals(draw(params, 500, 1, held_out=False))


def test_such_prompts_are_left_out_and_counted(tmp_path):
    path = tmp_path / "p.csv"
    texts = [f"Question: {q}" for q in (SHORT, "Where is Rome?", "Where is Oslo?", "Who wrote Utopia?")]
    path.write_text("prompt\n" + "\n".join(texts) + "\n")
    params = PromptsParams(source="dataset", dataset=str(path), per_iteration=2, held_out=0)
    frame, dropped = draw_apart(params, 0, lambda: {"b": table(SHORT, "Where is Oslo?")})
    assert len(frame) == 2 and {m[-1]["content"] for m in frame["messages"]} == {texts[1], texts[3]}
    assert sum(dropped.values()) <= 2 and set(dropped) == {"question of b"}
    with pytest.raises(UserError, match="0 different prompts outside of held_out 0 and 4 more that hold a question of"):
        draw_apart(params, 0, lambda: {"b": table(*texts)})
