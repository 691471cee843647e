"""MixEval's parser by rule: upstream's scores (`mix_eval/utils/metric_utils.py`, release 2024-06-01), their oddities
included, except that a response which cannot be read has no answer: upstream draws an option at random."""

import re

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
