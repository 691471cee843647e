"""Preference pairs (x, y⁺, y⁻) from the forms that people publish them in.

prompt, chosen, rejected                 texts; or chosen and rejected as chat messages (UltraFeedback)
chosen, rejected                         whole dialogues "\\n\\nHuman: …\\n\\nAssistant: …" (HH-RLHF), or messages
input, output_1, output_2, label         label 1 or 2 names the better output (LLMBar)

or from larpo.sources.careless_sums: right answers against wrong ones.
"""

import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from larpo.config.reward import PairsParams
from larpo.errors import ParameterError, UserError, at
from larpo.hashing import digest
from larpo.sources.careless_sums import sum_pairs
from larpo.sources.prompts import in_share
from larpo.sources.rows import read

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Pair:
    messages: list[dict[str, str]]
    chosen: str
    rejected: str

    def held_out(self, share: float) -> bool:
        """By the same hash of the last message as the prompts' own split, so equal shares mean equal parts."""
        return in_share(share, self.messages)


def read_pairs(params: PairsParams, key: str) -> tuple[list[Pair], dict[str, int]]:
    """Pairs in the data's order, and how many rows were dropped by reason.

    Dropped: `equal` (both responses are the same text), `tie` (equal scores, or a label that names neither),
    `other_prompt` (the two dialogues do not share their prompt), `unfinished` (a dialogue ends with the human),
    `empty` (a response without text), `not_chosen` (more pairs than `examples`).

    Raises
    ------
    UserError
        `key` names the section of params.yaml in every message.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    with at(key, "params.yaml"):
        for where, row in _rows(params):
            pair = _pair(row, params, where)
            if isinstance(pair, Pair):
                pairs.append(pair)
            else:
                dropped[pair] += 1
        if not pairs:
            raise ParameterError("data", f"{params.name!r} has no pair that states a preference")
    if params.examples is not None and params.examples < len(pairs):
        order = sorted(range(len(pairs)), key=lambda i: digest("pair", i, pairs[i].chosen))
        dropped["not_chosen"] = len(pairs) - params.examples
        pairs = [pairs[i] for i in sorted(order[: params.examples])]
    return pairs, dict(dropped)


def _rows(params: PairsParams) -> Iterator[tuple[str, dict[str, Any]]]:
    if params.source == "dataset":
        with at("data"):
            yield from read(params.data, "preference pairs", split=params.split)
        return
    for pair in sum_pairs(params.sums.digits, params.sums.errors):
        yield "sums", dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))


def _pair(row: dict[str, Any], params: PairsParams, where: str) -> Pair | str:
    """The pair of one row, or the reason why it states none."""
    if {"input", "output_1", "output_2", "label"} <= row.keys():
        better = {"1": ("output_1", "output_2"), "2": ("output_2", "output_1")}.get(str(row["label"]))
        if better is None:
            return "tie"
        prompt, chosen, rejected = row["input"], *(row[name] for name in better)
    else:
        lost = [f for f in (params.chosen_field, params.rejected_field) if f not in row]
        if lost:
            raise ParameterError(
                "data", f"{where}: no column {lost[0]!r}, found {', '.join(row)}; set chosen_field and rejected_field"
            )
        prompt, chosen, rejected = row.get(params.prompt_field), row[params.chosen_field], row[params.rejected_field]
        scores = row if not isinstance(row.get("metadata"), dict) else row["metadata"] | row
        if scores.get("score_chosen") is not None and scores["score_chosen"] == scores.get("score_rejected"):
            return "tie"
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        chosen, rejected = _dialogue(chosen, where), _dialogue(rejected, where)
        if "user" in (chosen[-1]["role"], rejected[-1]["role"]):
            return "unfinished"
    if isinstance(chosen, list) and isinstance(rejected, list):
        chosen, rejected = _messages(chosen, where), _messages(rejected, where)
        if chosen[:-1] != rejected[:-1]:
            return "other_prompt"
        # Some hold the whole conversation, some the answer alone.
        prompt = chosen[:-1] or prompt
        answers = chosen[-1]["content"], rejected[-1]["content"]
    else:
        answers = chosen, rejected
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt, where)
    if not all(isinstance(a, str) for a in answers) or not messages[-1]["content"].strip():
        raise UserError(f"{where}: expected a prompt and two responses, found {reprlib.repr(row)}")
    if answers[0] == answers[1]:
        return "equal"
    return Pair(messages, *answers) if all(a.strip() for a in answers) else "empty"


def _dialogue(text: str, where: str) -> list[dict[str, str]]:
    """HH-RLHF's transcript as messages. A turn that its speaker cut in two stays two messages joined."""
    pieces = _TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise UserError(
            f"{where}: expected a dialogue '\\n\\nHuman: … \\n\\nAssistant: …', found {reprlib.repr(text)}; or name "
            "the prompt's column by prompt_field"
        )
    turns: list[dict[str, str]] = []
    for speaker, words in zip(pieces[1::2], pieces[2::2], strict=True):
        role, content = _ROLE[speaker], words.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append({"role": role, "content": content})
    return turns


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    try:
        messages = [{"role": m["role"], "content": m["content"]} for m in value]
        if messages and all(isinstance(v, str) for m in messages for v in m.values()):
            return messages
    except (TypeError, KeyError):
        pass
    raise UserError(f"{where}: expected chat messages with a role and a content each, found {reprlib.repr(value)}")
