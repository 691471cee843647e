"""When a node that was executed again has made the same: rules that dvc.yaml names, in `meta`, by patterns of files.

    rule             of                              equal means
    -------------    ----------------------------    ---------------------------------------------------------
    weights          a copied or fetched model       |Δ| ≤ COPIED · (1 + |x|) in every element
                     a trained one                   per tensor, root mean square of Δ ≤ STEP · learning rate
    curve            curves, metrics of a training   numbers: |Δ| ≤ CURVE · (1 + |x|)
    samples          the same machine                the same bytes
                     another machine                 same prompts, tokens of prompts, temperatures and seeds; and
                                                     every recorded answer that parts is its policy's by the seed;
                                                     of an engine whose random numbers are unknown, the greedy
                                                     ones are, and length, share cut off and, where a rule can
                                                     score, reward of the others shifted by no more than chance
    rewards          by a rule                       the same bytes
                     by a model                      same rows, |Δ reward| ≤ LOGP · (1 + |x|)
    reward_metrics   the same of JSON
    logps            log-probabilities               same rows, |Δ| ≤ LOGP · (1 + |x|)
    vectors          an index                        |Δ| ≤ VECTOR in every element
    similarities     what was found in it            same rows, |Δ| ≤ VECTOR · (1 + |x|)
    metrics          JSON of another machine         numbers: |Δ| ≤ SUM · (1 + |x|)
    identity         reward.json                     all but the hash of the weights, which are compared themselves

Whatever dvc.yaml does not name (tables, pages, configurations, tokenizers) has to be the same bytes. "The same bytes"
holds for the same machine and packages; elsewhere a table or JSON file with the same values, written differently by
another version of its library, is within tolerance.

Why these numbers. Other thread counts, vector units and BLAS add floats in another order. Measured with SmolLM2-135M
in float32 on a processor with AVX-512: with kernels that do without it (ATEN_CPU_CAPABILITY=default, SSE4.2 in MKL and
oneDNN) the deviations stand at the constants; with two threads instead of one reference, embed and train made the same
bytes. A tolerance leaves room for longer texts and trainings, which was not measured; in bfloat16 another machine may
differ by more, and is then told to differ.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from larpo.audit.compare.files import (
    Unreadable,
    arrays,
    batches,
    files_of,
    first_byte,
    first_difference,
    first_row,
    row_line,
    same_content,
)
from larpo.audit.compare.samples import collect, within_chance
from larpo.audit.compare.values import deviation, first_key, leaves
from larpo.errors import unknown

How = Literal["bit-identical", "within tolerance", "statistically alike", "differs"]
HOWS: tuple[How, ...] = ("bit-identical", "within tolerance", "statistically alike", "differs")

LOGP = 1e-4  # 5.5e-6 over 188 responses of at most 16 tokens
VECTOR = 1e-5  # 1.6e-7, all-MiniLM-L6-v2; similarities 1.8e-7, FAISS without vector units
COPIED = 1e-6  # 0: a GGUF is dequantised element by element
STEP = 0.1  # 1.7e-4 after 8 steps, in which no tensor moved by less than 0.95 learning rates
CURVE = 1e-3  # 1.7e-5 over the same 8 steps
SUM = 1e-9  # float64 means and intervals, summed in another order; not measured
COUNTED = "reward_accuracy"


@dataclass(frozen=True)
class Comparison:
    """How an output of a node that ran again relates to the recorded one.

    `detail` names the tolerance with the largest deviation, or the test with its statistic and p; empty where the
    bytes are the same. `difference`: the first place where they part, where they differ.
    """

    how: How
    detail: str = ""
    difference: str | None = None

    @property
    def same(self) -> bool:
        return self.how != "differs"


@dataclass(frozen=True)
class Terms:
    """What the two executions have in common.

    Attributes
    ----------
    repeatable
        Same machine, same packages, an engine that repeats itself: samples must be the same bytes.
    rule
        Rewards come from a rule, not from a model.
    learning_rate
        Of a node that trains.
    score
        Rewards (n,) of a frame with columns prompt_id, text, n_tokens, finish_reason; None where no rule can tell.
    not_said
        Lines on those of the recorded rows that the policy did not say; null: nobody can tell.
    numbered
        `not_said` tells of sampled rows too, since the engine's random numbers are known.
    """

    repeatable: bool = True
    rule: bool = True
    learning_rate: float | None = None
    score: Callable[[Any], np.ndarray] | None = None
    not_said: Callable[[Sequence[int]], list[str]] | None = None
    numbered: bool = False


Rule = Callable[[Path, Path, Terms], Comparison]


def compare(rules: Mapping[str, str], expected: Path, found: Path, terms: Terms | None = None) -> Comparison:
    """One product (a file or a folder) of a node, as recorded and as made again.

    `rules`: pattern of a file's name → its rule; the first that fits counts, and the same bytes where none does.
    """
    expected, found, terms = Path(expected), Path(found), terms or Terms()
    if not (expected.is_dir() and found.is_dir()):
        return _file(rules, expected, found, terms)
    names = files_of(expected)
    if names != files_of(found):
        return Comparison("differs", "not the same files", first_difference(expected, found))
    parts = []
    for name in names:
        part = _file(rules, expected / name, found / name, terms)
        difference = part.difference and f"{name}: {part.difference}"
        parts.append(Comparison(part.how, part.detail and f"{name}: {part.detail}", difference))
    return worst(parts)


def worst(parts: Sequence[Comparison]) -> Comparison:
    """The part furthest from the same bytes, the first of equals; of no parts, nothing differs."""
    return max(parts, key=lambda part: HOWS.index(part.how), default=Comparison("bit-identical"))


def _file(rules: Mapping[str, str], expected: Path, found: Path, terms: Terms) -> Comparison:
    if not (expected.is_file() and found.is_file()):
        return Comparison("differs", "not there", first_difference(expected, found))
    if first_byte(expected, found) is None:
        return Comparison("bit-identical")
    name = next((rule for pattern, rule in rules.items() if fnmatchcase(expected.name, pattern)), "bytes")
    if name not in RULES:
        raise unknown("rule", name, RULES)
    try:
        part = RULES[name](expected, found, terms)
    except Unreadable as error:
        return Comparison("differs", "not comparable", str(error))
    if part.how == "differs" and part.difference is None:
        return Comparison("differs", part.detail, first_difference(expected, found))
    return part


def _bytes(expected: Path, found: Path, terms: Terms) -> Comparison:
    if not terms.repeatable and same_content(expected, found):
        return Comparison("within tolerance", "the same content, written differently")
    return Comparison("differs", "has to be the same bytes")


# Weights and vectors


def _weights(expected: Path, found: Path, terms: Terms) -> Comparison:
    rate = terms.learning_rate
    squares: dict[str, float] = {}
    sizes: dict[str, int] = {}
    largest, where = 0.0, ""
    for name, _, x, y in arrays(expected, found):
        if x.dtype.kind != "f":
            if not np.array_equal(x, y):
                return Comparison("differs", f"tensor {name} holds whole numbers")
            continue
        delta = np.abs(x - y)
        if not np.isfinite(delta).all():
            return Comparison("differs", f"tensor {name} holds no finite numbers")
        squares[name] = squares.get(name, 0.0) + float((delta**2).sum())
        sizes[name] = sizes.get(name, 0) + delta.size
        if delta.size and rate is None:
            delta = delta / (1 + np.abs(x))
        if delta.size and delta.max() > largest:
            largest, where = float(delta.max()), name
    if rate is None:
        detail = f"largest |Δ| / (1 + |x|) {largest:.2g} in {where}, allowed {COPIED:g}"
        return _within(largest <= COPIED, detail)
    spread = {name: (squares[name] / max(1, sizes[name])) ** 0.5 for name in squares}
    widest = max(spread, key=spread.__getitem__)
    detail = (
        f"largest |Δ| {largest:.2g}; per tensor, root mean square of Δ at most {spread[widest] / rate:.2g} · learning "
        f"rate ({widest}), allowed {STEP:g}"
    )
    return _within(spread[widest] <= STEP * rate, detail)


def _vectors(expected: Path, found: Path, terms: Terms) -> Comparison:
    largest = 0.0
    for _, _, x, y in arrays(expected, found):
        if x.size:
            largest = float(np.maximum(largest, np.abs(x - y).max()))  # NaN where one is: it is within nothing
    return _within(largest <= VECTOR, f"largest |Δ| {largest:.2g}, allowed {VECTOR:g}")


def _within(close: bool, detail: str) -> Comparison:
    return Comparison("within tolerance" if close else "differs", detail)


# Tables with numbers


def _columns(columns: Sequence[str], allowed: float, expected: Path, found: Path, terms: Terms) -> Comparison:
    """All other columns the same, and in `columns` the same nulls and |Δ| ≤ allowed · (1 + |x|)."""
    largest, where = 0.0, "none"
    for start, x, y in batches(expected, found):
        if x.schema.names != y.schema.names or len(x) != len(y) or not set(columns) <= set(x.schema.names):
            return Comparison("differs", "not the same columns and rows")
        row = first_row(x.drop_columns(list(columns)), y.drop_columns(list(columns)))
        if row is not None:
            return Comparison("differs", f"only {', '.join(columns)} may deviate", row_line(x, y, row, start))
        for column in columns:
            a, b = _floats(x[column]), _floats(y[column])
            off = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b) / (1 + np.abs(a)))
            bad = ~(off <= allowed)
            if bad.any():
                line = row_line(x, y, int(bad.argmax()), start, column)
                return Comparison("differs", f"allowed |Δ| ≤ {allowed:g} · (1 + |x|)", line)
            if off.size and off.max() > largest:
                largest, where = float(off.max()), f"{column}, row {start + int(off.argmax())}"
    return Comparison("within tolerance", f"largest |Δ| / (1 + |x|) {largest:.2g} ({where}), allowed {allowed:g}")


def _rewards(expected: Path, found: Path, terms: Terms) -> Comparison:
    return _bytes(expected, found, terms) if terms.rule else _columns(["reward"], LOGP, expected, found, terms)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.float64)


# JSON and curves


def _numbers(tolerance: float, ignored: str | None, expected: Path, found: Path, terms: Terms) -> Comparison:
    """The same keys and texts, and numbers with |Δ| ≤ tolerance · (1 + |x|); the key `ignored` is left out."""
    trees = []
    for path in (expected, found):
        try:
            tree = _json(path) if path.suffix == ".json" else _series(path)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"{path.name}: {' '.join(str(error).split())[:120]}") from None
        trees.append({k: v for k, v in tree.items() if k != ignored} if isinstance(tree, dict) else tree)
    if difference := first_key(*trees, tolerance):
        return Comparison("differs", f"allowed |Δ| ≤ {tolerance:g} · (1 + |x|)", difference)
    largest = max((deviation(x, y) for _, x, y in leaves(*trees) if isinstance(x, float)), default=0.0)
    return Comparison("within tolerance", f"largest |Δ| / (1 + |x|) {largest:.2g}, allowed {tolerance:g}")


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _series(path: Path) -> list[dict[str, Any]]:
    """A curve of DVCLive: tab-separated, a row per step."""
    head, *lines = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    return [{k: int(v) if k == "step" else float(v) for k, v in zip(head, line, strict=True)} for line in lines]


def _curve(expected: Path, found: Path, terms: Terms) -> Comparison:
    """Of a training. `reward_accuracy` counts pairs in order; at the first step policy and reference agree and rounding
    alone decides, so it is compared on the same machine only."""
    if terms.repeatable:
        return _numbers(CURVE, None, expected, found, terms)
    if expected.stem == COUNTED:
        return Comparison("within tolerance", "counts pairs that rounding orders; not compared on another machine")
    return _numbers(CURVE, COUNTED, expected, found, terms)


def _metrics(expected: Path, found: Path, terms: Terms) -> Comparison:
    return (_bytes if terms.repeatable else partial(_numbers, SUM, None))(expected, found, terms)


def _reward_metrics(expected: Path, found: Path, terms: Terms) -> Comparison:
    return (_metrics if terms.rule else partial(_numbers, LOGP, None))(expected, found, terms)


# Samples


def _samples(expected: Path, found: Path, terms: Terms) -> Comparison:
    if terms.repeatable:
        return Comparison("differs", "same machine and packages: has to be the same bytes")
    pairs = collect(expected, found)
    if pairs.difference is not None:
        return Comparison("differs", "what is asked has to be the same", pairs.difference)
    if terms.not_said is not None and pairs.differing:
        parted = f"{len(pairs.differing)} of {pairs.rows} answers part"
        if lines := terms.not_said(pairs.differing):
            return Comparison("differs", f"{parted}; recorded ones are not their policy's", lines[0])
        if terms.numbered:
            return Comparison("within tolerance", f"{parted}, each recorded one where its policy's numbers tie")
    by_chance, detail = within_chance(pairs, terms.score)
    return Comparison("statistically alike", detail) if by_chance else Comparison("differs", detail, pairs.first)


RULES: dict[str, Rule] = {
    "bytes": _bytes,
    "weights": _weights,
    "curve": _curve,
    "samples": _samples,
    "rewards": _rewards,
    "reward_metrics": _reward_metrics,
    "logps": partial(_columns, ["reference_logp", "mismatched_logp"], LOGP),
    "vectors": _vectors,
    "similarities": partial(_columns, ["similarity"], VECTOR),
    "metrics": _metrics,
    "identity": partial(_numbers, 0.0, "weights"),
}
"""What dvc.yaml may name."""
