"""MixEval's parsers: by rule, or by a language model that reads the response.

The rules give upstream's scores (`mix_eval/utils/metric_utils.py`, release 2024-06-01), their oddities included, except
that a response which cannot be read has no answer: upstream draws an option at random.
"""

from __future__ import annotations

import re
from typing import Any

from larpo.benchmarks.judge import FINAL, JudgeClient

# Around a letter, in upstream's order; {} is the letter.
_MARKS = (
    " {} ",
    " {}\n",
    "\n{} ",
    "\n{}\n",
    " {}. ",
    " {}.\n",
    "\n{}. ",
    "\n{}.\n",
    "({})",
    "**{} ",
    " {}**",
    "**{}. ",
    " {}.**",
)
_EDGES = ",.!?;:'"
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def letters(options: list[str]) -> list[str]:
    """A, B, C, …, one per option."""
    return [chr(ord("A") + i) for i in range(len(options))]


def chosen_option(response: str, options: list[str]) -> str | None:
    """The letter that a response chooses: the first one that stands by itself, or in brackets or bold; in a response of
    more than five words without any, the option whose text comes first. None where there is neither."""
    for edge in _EDGES:
        response = response.strip(edge)
    padded = f" {response} "
    found = [
        (place, order, letter)
        for order, letter in enumerate(letters(options))
        for mark in _MARKS
        if (place := padded.find(mark.format(letter))) >= 0
    ]
    if not found and len(padded.split()) > 5:
        lowered = padded.lower()
        found = [
            (place, order, letter)
            for order, (letter, text) in enumerate(zip(letters(options), options, strict=True))
            if (place := lowered.find(text.lower())) >= 0
        ]
    return min(found)[2] if found else None


def _normalised(text: str) -> list[str | float]:
    """A number rounded to two decimals; else the text in lower case, a single letter with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [" " + text, text + " "] if len(text) == 1 else [text]


def _key_parts(response: str) -> list[str]:
    """What follows words such as `is` or `answer` in each line: the shortest such tail of the line; the whole response
    where no line has one."""
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    parts = []
    for i, line in enumerate(lines):
        # The last line may be nothing but an equation.
        indicators = (*_INDICATORS, "=") if i == len(lines) - 1 else _INDICATORS
        tails = [line.split(word)[-1].strip() for word in indicators if word in line]
        # Upstream's rule: an empty tail gives way to whatever comes after it.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            parts.append(shortest)
    return parts or [response]


def free_form_candidates(response: str) -> list[str | float]:
    """What a response may have meant as its answer: the key parts of its lines, and the numbers in them."""
    parts = _key_parts(response)
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    return [value for text in [*parts, *numbers] for value in _normalised(text)]


def free_form_correct(candidates: list[str | float], targets: list[str]) -> bool:
    """Whether some target is one of the numbers, or stands within one of the texts."""
    wanted = [value for target in targets for value in _normalised(str(target))]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in candidate for text in texts) if isinstance(candidate, str) else candidate in wanted
        for candidate in candidates
    )


FREE_FORM_JUDGE = """\
A question, its reference answers and a model's answer follow; the text that the question refers to is left out. Judge \
how correct the model's answer is. Every reference answer counts as correct, so agreeing with one of them is enough. \
First say in a sentence or two how the answer agrees or disagrees with the references; then give one score out of 0.0 \
(entirely wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0 (entirely right), in double brackets, as in: \
Score: [[0.5]]

Example
Question: A shop sells 12 boxes of 25 pens each. How many pens is that?
Reference answers: <answer 1> 300
Model's answer: A quarter of 1,200 pens.
Judgement: A quarter of 1,200 is 300, the reference in other words. Score: [[1.0]]

Example
Question: which ship carried darwin around the world
Reference answers: <answer 1> HMS Beagle; <answer 2> the Beagle
Model's answer: A ship of the Royal Navy.
Judgement: True of the Beagle, but it does not name the ship. Score: [[0.3]]

Example
Question: What is the capital of Australia?
Reference answers: <answer 1> Canberra
Model's answer: The capital.
Judgement: It repeats the question and answers nothing. Score: [[0.0]]

Question: {question}
Reference answers: {targets}
Model's answer: {response}
Judgement:"""

OPTION_JUDGE = """\
A multiple-choice question, its options and a model's answer follow; the text that the question refers to is left out. \
Find out which option the model's answer chooses, whether or not that option is right. First give your reason in a \
sentence; then the letter of that option in double brackets, as in: Chosen: [[A]]

Example
Question: Which of these is a mammal?
Options:
A. trout
B. bat
C. eagle
Model's answer: Bats nurse their young, so bat.
Judgement: It names option B by its text. Chosen: [[B]]

Example
Question: Which tool cuts paper best?
Options:
A. scissors
B. a hammer
Model's answer: A\\n\\nWhich tool drives nails?\\nA. a spoon\\nB. a hammer\\nB
Judgement: It answers A; what follows is another question. Chosen: [[A]]

Example
Question: Where would you keep milk?
Options:
A. in the oven
B. in the refrigerator
Model's answer: Neither is ideal for long, but if I must choose, the cool one.
Judgement: The cool one is the refrigerator, option B. Chosen: [[B]]

Question: {question}
Options:
{options}
Model's answer: {response}
Judgement:"""

_SCORE = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
_OPTION = (re.compile(r"\[\[([A-Z])\]\]"), re.compile(r"\[([A-Z])\]"))


def judged_score(reply: str | None) -> float | None:
    """The first score in double brackets, else in single ones; None where there is none from 0 to 1."""
    value = _bracketed(_SCORE, reply)
    return float(value) if value is not None and 0 <= float(value) <= 1 else None


def judged_option(reply: str | None) -> str | None:
    """The first letter in double brackets, else in single ones."""
    return _bracketed(_OPTION, reply)


def _bracketed(patterns: tuple[re.Pattern[str], ...], reply: str | None) -> str | None:
    return next((m.group(1) for p in patterns if (m := p.search(reply or ""))), None)


def ask_judge(items: list[dict[str, Any]], responses: list[str], judge: JudgeClient, attempts: int = 10) -> list[dict]:
    """Have a model read each response.

    Parameters
    ----------
    items
        MixEval items: problem_type, prompt, target, and options where there are some.
    attempts
        A reply without a readable bracket is asked for again so often, each time with another `seed` in the request.

    Returns
    -------
    Per response: value (a score from 0 to 1, a letter, or None where no reply could be read) and reply (the last one).
    """
    bodies, readers = [], []
    for item, response in zip(items, responses, strict=True):
        if item["problem_type"] == "free-form":
            targets = "; ".join(f"<answer {i}> {t}" for i, t in enumerate(item["target"], 1))
            text = FREE_FORM_JUDGE.format(question=item["prompt"], targets=targets, response=response)
            role, reader = "You judge answers.", judged_score
        else:
            options = "\n".join(f"{x}. {o}" for x, o in zip(letters(item["options"]), item["options"], strict=True))
            text = OPTION_JUDGE.format(question=item["prompt"], options=options, response=response)
            role, reader = "You extract chosen options.", judged_option
        messages = [{"role": "system", "content": role}, {"role": "user", "content": text}]
        bodies.append({"messages": messages, "max_tokens": 999})
        readers.append(reader)
    found: list[dict[str, Any]] = [{"value": None, "reply": None} for _ in items]
    todo = list(range(len(items)))
    for attempt in range(attempts):
        again = {"seed": attempt} if attempt else {}
        for i, reply in zip(todo, judge.complete([bodies[i] | again for i in todo], _say), strict=True):
            found[i] = {"value": readers[i](reply["text"]), "reply": reply}
        # What the server refuses for its content or length, it refuses again.
        todo = [i for i in todo if found[i]["value"] is None and found[i]["reply"]["finish_reason"] not in FINAL]
        if not todo:
            break
    return found


def _say(line: str) -> None:
    print(line, flush=True)
