"""Whether a prompt to train on holds a question to evaluate on, whatever either side adds around it.

Texts are compared as tokens: words, numbers, and the signs of a calculation. Case, white space, Unicode's forms,
characters without width, look-alike letters and punctuation are aside. A question is contained where its tokens stand
side by side and end where the text lets it end: `3+4` is neither in `13+45` nor in `3+4+5`, `Who wrote Emma?` is not in
`Who wrote Emma and Persuasion?`. A question of few words has to be a sentence of its own in the prompt; one of many may
stand anywhere. Of both sides instructions are left out: those of the benchmarks, and sentences that many items share.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import pandas as pd

from larpo.config.sections import PromptsParams
from larpo.sources.prompts import draw

INSTRUCTIONS = (
    "Solve the problem step by step. Then write the final answer on a line of its own as #### followed by the number.",
    r"Reason step by step, and put the final answer within \boxed{}.",
    "Answer the question shortly.",
    "Answer the question.",
    "Let's think step by step.",
    "Answer with the option letter from the given choices directly.",
)
"""What benchmarks write behind a question; one that has a single item shows no sentence as shared."""
LABEL = re.compile(r"\s*(?:question|problem|instruction|task|input|q|user|human)\s*(?:\d+\s*)?[:.)]\s*", re.IGNORECASE)
FEW = 8
"""A question of fewer tokens has to be a sentence of its own."""
SHARED = 0.2
"""A sentence that so many of a benchmark's items begin or end with is no part of a question."""

# Letters of other alphabets, in lower case, above the Latin ones that they look like (Unicode's confusables).
_ALIKE = str.maketrans(
    "аеорсухіјѕԁһԛԝкмтвнαορτυχικϲμβεζηνıɡɑѡωօսհոցզⲟⲣⲥⲁᎪᏴᏟᎠᎬᏀᎻᎥᎫᏦᏞᎷᏢᎡᏚᎢᏙᏔᎳᏃ",
    "aeopcyxijsdhqwkmtbhaoptuxikcmbezhvigawwouhngqopcaabcdeghijklmprstvwwz",
)
_UNSEEN = dict.fromkeys(map(ord, "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"))
"""Of no width, though no format characters; and the blank of Braille."""
_NAMED = re.compile(r"LATIN (?:SMALL LETTER|LETTER SMALL CAPITAL) (?:SCRIPT )?([A-Z])(?: WITH [A-Z ]+)?$")
_SIGNS = str.maketrans({"×": "*", "⋅": "*", "·": "*", "∙": "*", "÷": "/", "⁄": "/", "∕": "/", "−": "-"})
_TAG = re.compile(r"<\|[^|<>]*\|>|</?[a-z_]+(?:\s[^<>]*=[^<>]*)?>|\[/?[a-z_]{2,}\]")  # of a chat template
_BULLET = re.compile(r"^[ \t]*[-*+•>][ \t]+", re.MULTILINE)
_ESCAPED = re.compile(r"\\[nrt](?![a-z])|(?<=[^\W\d])\s*(?:—|->)")  # a line's end in JSON; what leads to a question
_EMPHASIS = re.compile(r"(?<![\w)\]])(?:\*\*|__|\*|_)(?=\S)|(?<=\S)(?:\*\*|__|\*|_)(?![\w(\[])|[`$\\]")
_TOKEN = re.compile(
    r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
    r"|[\u3040-\u30ff\u3400-\u9fff]"  # scripts without spaces: a character is a word
    r"|[^\W\d_]+|[-+*/^=<>%!()\[\]{}]"
)
_SENTENCE = re.compile(r"(?<=[.:?!])\s+|\s*\n\s*")
_BRACKETS, _WORDS_OF_SUMS = set("()[]{}"), {"plus", "minus", "times", "mod", "divided", "squared", "cubed"}
_OPERATORS = set("-+*/^=<>%!") | _WORDS_OF_SUMS


@dataclass(frozen=True)
class Text:
    """Tokens, and what stands between them: `gaps[i]` before token i, the last behind all."""

    tokens: tuple[str, ...]
    gaps: tuple[str, ...]


def folded(text: str) -> str:
    """Text in one form of Unicode, lower case, without marks and characters of no width, in the letters it shows."""
    text = _ESCAPED.sub("\n", html.unescape(text))
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKD", text.translate(_SIGNS | _UNSEEN))
    kinds = ((c, unicodedata.category(c)) for c in text)
    text = "".join(_shown(c, kind) for c, kind in kinds if kind not in ("Mn", "Me", "Cf", "Co", "Cn"))
    return unicodedata.normalize("NFKC", text).casefold().translate(_ALIKE).translate(_SIGNS)


def _shown(c: str, kind: str) -> str:
    """The letter, digit or sign as which a character shows, where its name tells."""
    if c.isascii():
        return c
    if kind in ("Pd", "Nd"):
        return "-" if kind == "Pd" else str(unicodedata.digit(c))
    named = _NAMED.match(unicodedata.name(c, ""))
    return named[1] if named else c


def read(text: str) -> Text:
    """A text's tokens. Signs between words are punctuation, and brackets that touch no sign hold nothing together."""
    text = _EMPHASIS.sub(" ", _BULLET.sub("\n", _TAG.sub("\n", folded(text))))
    found = list(_TOKEN.finditer(text))
    words = [m.group().replace(",", "") for m in found]
    kept: list[int] = []
    for i, word in enumerate(words):
        around = [words[j] for j in (i - 1, i + 1) if 0 <= j < len(words)]
        if word in _BRACKETS and not any(w in _OPERATORS for w in around):
            continue
        sign = word in _OPERATORS and not word.isalpha()
        if sign and not any(w[-1].isdigit() or len(w) == 1 for w in around):
            continue
        if word == "!" and not (i and text[found[i].start() - 1].isalnum() and words[i - 1][-1].isdigit()):
            continue
        kept.append(i)
    ends = [0, *(found[i].end() for i in kept)]
    starts = [*(found[i].start() for i in kept), len(text)]
    gaps = tuple(text[a:b] for a, b in zip(ends, starts, strict=True))
    return Text(tuple(words[i] for i in kept), gaps)


def _in_a_sum(token: str) -> bool:
    return token[-1].isdigit() or len(token) == 1 or token in _OPERATORS


def _ends(gap: str, inner: str, outer: str | None, calculation: bool, short: bool) -> bool:
    """Whether a question may end at a gap of the text, between its own token `inner` and the text's next, `outer`."""
    if outer is None or "\n" in gap:
        return True
    if (
        _in_a_sum(inner)
        and inner != "="
        and (outer in _OPERATORS | _BRACKETS or (outer[-1].isdigit() and not gap.strip()))
    ):
        return False
    if gap.strip(" \t,'’-"):
        return True
    if "," in gap:
        return False
    return calculation or not short


def contains(text: Text, part: tuple[str, ...], start: int) -> bool:
    """Whether the tokens `part`, which stand in `text` from `start` on, are whole there."""
    end = start + len(part)
    calculation = not any(token.isalpha() and len(token) > 1 for token in part)
    short = len(part) < FEW
    before = text.tokens[start - 1] if start else None
    after = text.tokens[end] if end < len(text.tokens) else None
    begins = _ends(text.gaps[start], part[0], before, calculation, short)
    begins |= not short and not calculation and text.gaps[start].strip() == ","  # "Tell me, …"
    # `3+4=` asks what `3+4` does, `3+4=7-x` something else.
    asked = after == "=" and (end + 1 == len(text.tokens) or not _in_a_sum(text.tokens[end + 1]))
    return begins and (asked or _ends(text.gaps[end], part[-1], after, calculation, short))


@cache
def _instructions() -> frozenset[str]:
    return frozenset(" ".join(read(part).tokens) for text in INSTRUCTIONS for part in _SENTENCE.split(text))


def core(text: str, shared: Iterable[str] = ()) -> str:
    """A prompt without labels and without the instructions before and behind it; whole where nothing else is left."""
    known = _instructions() | set(shared)
    parts = [p for p in _SENTENCE.split(text) if p.strip()]

    def is_said(part: str) -> bool:
        return " ".join(read(part).tokens) in known or LABEL.fullmatch(f"{part} ") is not None

    while len(parts) > 1 and is_said(parts[0]):
        parts = parts[1:]
    while len(parts) > 1 and (is_said(parts[-1]) or re.fullmatch(r"\s*(answer|a|solution)\s*:", parts[-1], re.I)):
        parts = parts[:-1]
    return LABEL.sub("", "\n".join(parts), count=1) if LABEL.match(parts[0] if parts else "") else "\n".join(parts)


def shared_sentences(texts: list[str]) -> set[str]:
    """Sentences that many of these texts begin or end with, as tokens: instructions, not questions."""
    counts: Counter[str] = Counter()
    for text in texts:
        parts = [" ".join(read(p).tokens) for p in _SENTENCE.split(text) if p.strip()]
        counts.update({*parts[:2], *parts[-3:]} if len(parts) > 1 else ())
    return {sentence for sentence, count in counts.items() if count >= max(3, SHARED * len(texts))}


class Questions:
    """The questions of benchmarks, to be found in prompts.

    Parameters
    ----------
    items
        Benchmark → its `items` table.
    """

    def __init__(self, items: dict[str, pd.DataFrame]):
        self._trie: dict = {}
        self._single: dict[str, tuple[str, int]] = {}
        self._texts: list[tuple[Text, tuple[str, int]]] = []
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for name, frame in items.items():
            texts = [messages[-1]["content"] for messages in frame["messages"]]
            shared = shared_sentences(list(dict.fromkeys(texts)))
            for row, text in enumerate(texts):
                self._add(text, core(text, shared), (name, row))

    def _add(self, whole: str, question: str, where: tuple[str, int]) -> None:
        tokens = read(question).tokens
        node = self._trie
        for token in tokens if len(tokens) > 1 else ():
            node = node.setdefault(token, {})
        if len(tokens) > 1:
            node.setdefault(None, where)
        elif tokens:
            self._single.setdefault(tokens[0], where)
        text = read(whole)
        for i in range(len(text.tokens) - FEW + 1):
            self._places.setdefault(text.tokens[i : i + FEW], []).append((len(self._texts), i))
        self._texts.append((text, where))

    def found(self, messages: list[dict[str, str]]) -> tuple[str, int] | None:
        """(benchmark, row) of the first question that a prompt holds or is a part of; None where there is none."""
        return next((where for m in messages for where in self._in(m["content"])), None)

    def _in(self, content: str) -> Iterator[tuple[str, int]]:
        text = read(content)
        for start in range(len(text.tokens)):
            node, end = self._trie, start
            while end < len(text.tokens) and (node := node.get(text.tokens[end])):
                end += 1
                if None in node and contains(text, text.tokens[start:end], start):
                    yield node[None]
        asked = read(core(content)).tokens
        if len(asked) == 1 and asked[0] in self._single:
            yield self._single[asked[0]]
        # The other way round: the benchmark adds something that is not known as an instruction.
        grams = [(self._places.get(asked[i : i + FEW], ()), i) for i in range(len(asked) - FEW + 1)]
        places, offset = min(grams, key=lambda gram: len(gram[0]), default=((), 0))
        for number, place in places:
            (whole, where), start = self._texts[number], place - offset
            if start >= 0 and whole.tokens[start : start + len(asked)] == asked and contains(whole, asked, start):
                yield where


def draw_apart(
    params: PromptsParams, seed: int, items: Callable[[], dict[str, pd.DataFrame]]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """A `prompts` table of prompts to train on that hold no question of a benchmark, and how many were left out, by
    reason. `items` gives the benchmarks' tables; asked for once the prompts are there."""
    dropped: Counter[str] = Counter()
    frame = draw(params, params.per_iteration, seed, held_out=False, refused=dropped)
    questions = Questions(items())

    def holds(messages: list[dict[str, str]]) -> str | None:
        found = questions.found(messages)
        return None if found is None else f"question of {found[0]}"

    if any(map(holds, frame["messages"])):
        dropped.clear()
        frame = draw(params, params.per_iteration, seed, held_out=False, refuse=holds, refused=dropped)
    return frame, dict(dropped)
