"""MixEval's parser by a language model that reads the response: a score for free-form answers, a letter for choices."""

import re
from typing import Any

from larpo.benchmarks.judge import FINAL, JudgeClient
from larpo.benchmarks.mixeval.items import Item

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

_SCORE = (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]")
_OPTION = (r"\[\[([A-Z])\]\]", r"\[([A-Z])\]")


def judged_score(reply: str | None) -> float | None:
    """The first score in double brackets, else in single ones; None where there is none from 0 to 1."""
    value = _bracketed(_SCORE, reply)
    return float(value) if value is not None and 0 <= float(value) <= 1 else None


def judged_option(reply: str | None) -> str | None:
    """The first letter in double brackets, else in single ones."""
    return _bracketed(_OPTION, reply)


def _bracketed(patterns: tuple[str, str], reply: str | None) -> str | None:
    return next((m[1] for pattern in patterns if (m := re.search(pattern, reply or ""))), None)


def ask_judge(items: list[Item], responses: list[str], judge: JudgeClient, attempts: int = 10) -> list[dict]:
    """Have a model read each response.

    Parameters
    ----------
    attempts
        A reply without a readable bracket is asked for again so often, each time with another `seed` in the request.

    Returns
    -------
    Per response: value (a score from 0 to 1, a letter, or None where no reply could be read) and reply (the last one).
    """
    bodies, readers = [], []
    for item, response in zip(items, responses, strict=True):
        if item.problem_type == "free-form":
            targets = "; ".join(f"<answer {i}> {t}" for i, t in enumerate(item.target, 1))
            text = FREE_FORM_JUDGE.format(question=item.prompt, targets=targets, response=response)
            role, reader = "You judge answers.", judged_score
        else:
            text = OPTION_JUDGE.format(question=item.prompt, options=item.listed(), response=response)
            role, reader = "You extract chosen options.", judged_option
        messages = [{"role": "system", "content": role}, {"role": "user", "content": text}]
        bodies.append({"messages": messages, "max_tokens": 999})
        readers.append(reader)
    verdicts: list[dict[str, Any]] = [{"value": None, "reply": None} for _ in items]
    unread = list(range(len(items)))
    for attempt in range(attempts):
        again = {"seed": attempt} if attempt else {}
        for i, reply in zip(unread, judge.complete([bodies[i] | again for i in unread]), strict=True):
            verdicts[i] = {"value": readers[i](reply["text"]), "reply": reply}
        # What the server refuses for its content or length, it refuses again.
        unread = [i for i in unread if verdicts[i]["value"] is None]
        unread = [i for i in unread if verdicts[i]["reply"]["finish_reason"] not in FINAL]
    return verdicts
