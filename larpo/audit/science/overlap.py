"""Evaluation prompts that were trained on: the same prompt, the same text, nearly the same text, a long shared passage.

The first two make an audit fail. The other two are counted and shown: sums of two numbers resemble each other by
nature, while two near-identical word problems are a leak that a reader should judge.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from larpo.sources.contamination import folded

SHINGLE = 5  # characters
PERMUTATIONS = 128
WORDS = 13
"""Words of a shared passage that count as one: GPT-3's choice (Brown et al. 2020, appendix C)."""
_QUOTES = "\"'“”‘’«»"


def normalised(text: str) -> str:
    """Text by which two prompts are the same: Unicode's forms, what nobody sees, look-alike letters, case, quotes, a
    word's closing punctuation and white space aside. Signs, brackets and factorials stay: `(3 + 4) * 2` is not
    `3 + (4 * 2)`."""
    words = folded(text).split()
    stripped = [word.lstrip(_QUOTES).rstrip(_QUOTES + ".,;:?") for word in words]
    return " ".join(word for word in stripped if word)


def last_texts(prompts: pd.DataFrame) -> list[str]:
    """The last message of each prompt, normalised: what is asked, whatever the system message says."""
    return [normalised(messages[-1]["content"]) for messages in prompts["messages"]]


@dataclass(frozen=True)
class Shared:
    """An evaluation prompt that training has too: rows of both tables, and the text."""

    evaluation_row: int
    training_row: int
    text: str


def shared_ids(training: pd.DataFrame, evaluation: pd.DataFrame) -> list[Shared]:
    """Evaluation prompts whose prompt_id is in training."""
    return _shared(enumerate(training["prompt_id"]), evaluation["prompt_id"])


def shared_texts(training: pd.DataFrame, evaluation: pd.DataFrame) -> list[Shared]:
    """Evaluation prompts whose normalised last message is any message of a training prompt, worked examples before
    the question included; an empty text is like no other."""
    said = [(row, normalised(m["content"])) for row, ms in enumerate(training["messages"]) for m in ms]
    return _shared(said, last_texts(evaluation))


def disguised(training: pd.DataFrame, evaluation: pd.DataFrame) -> list[Shared]:
    """Evaluation prompts whose text stands in training with letters of another alphabet in its words that `folded` does
    not know: all else, and half of it at least, is the same."""
    asked: dict[int, list[tuple[int, str]]] = {}
    for row, text in enumerate(last_texts(evaluation)):
        asked.setdefault(len(text), []).append((row, text))
    found: dict[int, Shared] = {}
    for row, messages in enumerate(training["messages"]):
        for text in (normalised(m["content"]) for m in messages):
            if text.isascii() or not any(_mixed(word) for word in text.split()):
                continue
            known = [i for i, c in enumerate(text) if c.isascii()]
            for place, other in asked.get(len(text), ()) if 2 * len(known) >= len(text) else ():
                if all(text[i] == other[i] for i in known):
                    found.setdefault(place, Shared(place, row, other))
    return [found[place] for place in sorted(found)]


def _mixed(word: str) -> bool:
    letters = [c.isascii() for c in word if c.isalpha()]
    return any(letters) and not all(letters)


def _shared(training: Iterable[tuple[int, str]], evaluation: Iterable[str]) -> list[Shared]:
    first: dict[str, int] = {}
    for row, value in training:
        first.setdefault(value, row)
    return [Shared(row, first[value], value) for row, value in enumerate(evaluation) if value and value in first]


@dataclass(frozen=True)
class Near:
    """An evaluation text and the training text most like it, with their Jaccard similarity of character shingles."""

    evaluation_row: int
    training_row: int
    similarity: float
    evaluation: str
    training: str


def near_duplicates(training: list[str], evaluation: list[str], threshold: float = 0.8, seed: int = 1) -> list[Near]:
    """Evaluation texts that are not in training but have a training text of Jaccard similarity ≥ `threshold`.

    Candidates come from MinHash with locality-sensitive hashing (Broder 1997; datasketch), so that a million training
    prompts can be searched; each candidate's similarity is then computed exactly. A pair just at the threshold may be
    missed: the hashing is tuned for it, not exact.

    Parameters
    ----------
    training, evaluation
        Normalised texts.

    Returns
    -------
    At most one entry per evaluation text, the most similar first.
    """
    from datasketch import MinHash, MinHashLSH

    def sketch(text: str) -> MinHash:
        made = MinHash(num_perm=PERMUTATIONS, seed=seed)
        made.update_batch([s.encode("utf-8") for s in shingles(text)])
        return made

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    rows: dict[str, int] = {}
    for row, text in enumerate(training):
        if text and text not in rows:
            rows[text] = row
            index.insert(text, sketch(text))
    near = []
    for row, text in enumerate(evaluation):
        if not text or text in rows:
            continue
        similar = [(jaccard(text, other), other) for other in index.query(sketch(text))]
        similar = [pair for pair in similar if pair[0] >= threshold]
        if similar:
            # Of equally similar ones the first in training, whatever order the index gives.
            similarity, other = max(similar, key=lambda pair: (pair[0], -rows[pair[1]]))
            near.append(Near(row, rows[other], similarity, text, other))
    return sorted(near, key=lambda n: (-n.similarity, n.evaluation_row))


def shingles(text: str) -> set[str]:
    """Runs of SHINGLE characters; a shorter text is one shingle."""
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def shared_passages(training: list[str], evaluation: list[str]) -> list[int]:
    """Rows of evaluation texts that share a passage of WORDS words with a training text. Finds a training question
    inside a longer prompt, which neither equality nor similarity of whole texts does."""
    known = {gram for text in training for gram in _grams(text)}
    return [row for row, text in enumerate(evaluation) if any(gram in known for gram in _grams(text))]


def _grams(text: str) -> Iterator[int]:
    words = text.split()
    for i in range(len(words) - WORDS + 1):
        yield hash(" ".join(words[i : i + WORDS]))
