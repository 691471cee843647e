"""When a node that was executed again has made the same: one rule per kind of node.

    node                     product                     equal means
    ---------------------    ------------------------    ---------------------------------------------------------
    prompts, items,          tables, page, CSV           the same bytes
    candidates, lists,
    evaluate, retrieve,      metrics, another machine    numbers: |Δ| ≤ SUM · (1 + |x|)
    report
    score, best_of_n         rewards by a rule           as the row above
                             rewards by a model          same rows, |Δ reward| ≤ LOGP · (1 + |x|)
    reference                log-probabilities           same rows, |Δ| ≤ LOGP · (1 + |x|)
    embed                    vectors                     |Δ| ≤ VECTOR in every element; ids the same bytes
    policy, reward as        weights                     |Δ| ≤ COPIED · (1 + |x|) in every element
    fetched
    sft, train, reward as    weights                     per tensor, root mean square of Δ ≤ STEP · learning rate
    trained                  curves, metrics             numbers: |Δ| ≤ CURVE · (1 + |x|)
    sample, generate         same machine                the same bytes
                             another machine             same prompts, tokens of prompts, temperatures and seeds;
                                                         and length, share cut off and, where a rule can score,
                                                         reward shifted by no more than chance

Whatever a row does not name (configurations, tokenizers, ids, text) has to be the same bytes. "The same bytes" is
asked of the same machine and packages; elsewhere a table or JSON file with the same values, written differently by
another version of its library, is within tolerance.

Why these numbers. Other thread counts, vector units and BLAS add floats in another order. Measured with SmolLM2-135M
in float32 on a processor with AVX-512: with kernels that do without it (ATEN_CPU_CAPABILITY=default, SSE4.2 in MKL and
oneDNN) the deviations stand at the constants; with two threads instead of one reference, embed and train made the same
bytes. A tolerance leaves room for longer texts and trainings, which was not measured; in bfloat16 another machine may
differ by more, and is then told to differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from larpo.audit.compare.differences import (
    Unreadable,
    arrays,
    batches,
    files_of,
    first_byte,
    first_difference,
    first_key,
    first_row,
    row_line,
)
from larpo.audit.compare.samples import Collected, collect, judge

How = Literal["bit-identical", "within tolerance", "statistically alike", "differs"]
HOWS: tuple[How, ...] = ("bit-identical", "within tolerance", "statistically alike", "differs")

LOGP = 1e-4  # 5.5e-6 over 188 responses of at most 16 tokens
VECTOR = 1e-5  # 1.6e-7, all-MiniLM-L6-v2
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
    alike
        Same machine, same packages, an engine that repeats itself: samples must be the same bytes.
    rule
        Rewards come from a rule, not from a model.
    learning_rate
        Of a node that trains.
    score
        Rewards (n,) of a frame with columns prompt_id, text, n_tokens, finish_reason; None where no rule can tell.
    """

    alike: bool = True
    rule: bool = True
    learning_rate: float | None = None
    score: Callable[[Any], np.ndarray] | None = None


Rule = Callable[[Path, Path, Terms], Comparison]


def compare(kind: str, expected: Path, found: Path, terms: Terms | None = None) -> Comparison:
    """One product (a file or a folder) of a node of that kind, as recorded and as made again."""
    expected, found, terms = Path(expected), Path(found), terms or Terms()
    if not (expected.is_dir() and found.is_dir()):
        return _file(kind, expected, found, terms)
    names = files_of(expected)
    if names != files_of(found):
        return Comparison("differs", "not the same files", first_difference(expected, found))
    parts = []
    for name in names:
        part = _file(kind, expected / name, found / name, terms)
        difference = part.difference and f"{name}: {part.difference}"
        parts.append(Comparison(part.how, part.detail and f"{name}: {part.detail}", difference))
    return worst(parts)


def worst(parts: Sequence[Comparison]) -> Comparison:
    """The part furthest from the same bytes, the first of equals; of no parts, nothing differs."""
    return max(parts, key=lambda part: HOWS.index(part.how), default=Comparison("bit-identical"))


def _file(kind: str, expected: Path, found: Path, terms: Terms) -> Comparison:
    if not (expected.is_file() and found.is_file()):
        return Comparison("differs", "not there", first_difference(expected, found))
    if first_byte(expected, found) is None:
        return Comparison("bit-identical")
    try:
        told = _rule(kind, expected.name)(expected, found, terms)
    except Unreadable as error:
        return Comparison("differs", "not comparable", str(error))
    if told.how == "differs" and told.difference is None:
        return Comparison("differs", told.detail, first_difference(expected, found))
    return told


def _rule(kind: str, name: str) -> Rule:
    return next((rule for pattern, rule in RULES.get(kind, {}).items() if fnmatchcase(name, pattern)), _exact)


def _exact(expected: Path, found: Path, terms: Terms) -> Comparison:
    difference = first_difference(expected, found)
    if not terms.alike and difference is not None and difference.startswith("same "):
        return Comparison("within tolerance", difference.split(":")[0])
    return Comparison("differs", "has to be the same bytes", difference)


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
        told = f"largest |Δ| / (1 + |x|) {largest:.2g} in {where}, allowed {COPIED:g}"
        return Comparison("within tolerance" if largest <= COPIED else "differs", told)
    spread = {name: (squares[name] / max(1, sizes[name])) ** 0.5 for name in squares}
    widest = max(spread, key=spread.__getitem__)
    told = (
        f"largest |Δ| {largest:.2g}; per tensor, root mean square of Δ at most {spread[widest] / rate:.2g} · learning "
        f"rate ({widest}), allowed {STEP:g}"
    )
    return Comparison("within tolerance" if spread[widest] <= STEP * rate else "differs", told)


def _vectors(expected: Path, found: Path, terms: Terms) -> Comparison:
    largest = 0.0
    for _, _, x, y in arrays(expected, found):
        if x.size:
            largest = max(largest, float(np.abs(x - y).max()))
    close = largest <= VECTOR  # false for NaN
    return Comparison("within tolerance" if close else "differs", f"largest |Δ| {largest:.2g}, allowed {VECTOR:g}")


# Tables with numbers


def _columns(tolerance: float, *columns: str) -> Rule:
    return partial(_within, tolerance, columns)


def _within(tolerance: float, columns: Sequence[str], expected: Path, found: Path, terms: Terms) -> Comparison:
    """All other columns the same, and in `columns` the same nulls and |Δ| ≤ tolerance · (1 + |x|)."""
    if terms.rule and "reward" in columns:
        return _exact(expected, found, terms)
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
            bad = ~(off <= tolerance)
            if bad.any():
                line = row_line(x, y, int(bad.argmax()), start, column)
                return Comparison("differs", f"allowed |Δ| ≤ {tolerance:g} · (1 + |x|)", line)
            if off.size and off.max() > largest:
                largest, where = float(off.max()), f"{column}, row {start + int(off.argmax())}"
    told = f"largest |Δ| / (1 + |x|) {largest:.2g} ({where}), allowed {tolerance:g}"
    return Comparison("within tolerance", told)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.float64)


# JSON and curves


def _numbers(tolerance: float, ignore: str | None, expected: Path, found: Path, terms: Terms) -> Comparison:
    """The same keys and texts, and numbers with |Δ| ≤ tolerance · (1 + |x|); the key `ignore` is left out."""
    largest = [0.0]

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, float) and isinstance(y, float):
            off = 0.0 if x == y or (x != x and y != y) else abs(x - y) / (1 + abs(x))
            largest[0] = max(largest[0], off)
            return off <= tolerance
        return type(x) is type(y) and x == y

    values = []
    for path in (expected, found):
        try:
            values.append(_json(path) if path.suffix == ".json" else _series(path))
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"{path.name}: {' '.join(str(error).split())[:120]}") from None
    if ignore and all(isinstance(v, dict) for v in values):
        values = [{k: v for k, v in tree.items() if k != ignore} for tree in values]
    difference = first_key(*values, same)
    if difference is not None:
        return Comparison("differs", f"allowed |Δ| ≤ {tolerance:g} · (1 + |x|)", difference)
    return Comparison("within tolerance", f"largest |Δ| / (1 + |x|) {largest[0]:.2g}, allowed {tolerance:g}")


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _series(path: Path) -> list[dict[str, Any]]:
    """A curve of DVCLive: tab-separated, a row per step."""
    head, *lines = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    return [{k: int(v) if k == "step" else float(v) for k, v in zip(head, line, strict=True)} for line in lines]


def _curve(expected: Path, found: Path, terms: Terms) -> Comparison:
    """Of a training. `reward_accuracy` counts pairs in order; at the first step policy and reference agree and rounding
    alone decides, so it is compared on the same machine only."""
    if terms.alike:
        return _numbers(CURVE, None, expected, found, terms)
    if expected.stem == COUNTED:
        return Comparison("within tolerance", "counts pairs that rounding orders; not compared on another machine")
    return _numbers(CURVE, COUNTED, expected, found, terms)


def _metrics(expected: Path, found: Path, terms: Terms) -> Comparison:
    return (_exact if terms.alike else partial(_numbers, SUM, None))(expected, found, terms)


def _reward_metrics(expected: Path, found: Path, terms: Terms) -> Comparison:
    return (_metrics if terms.rule else partial(_numbers, LOGP, None))(expected, found, terms)


# Samples


def _sampled(expected: Path, found: Path, terms: Terms) -> Comparison:
    if terms.alike:
        return Comparison("differs", "same machine and packages: has to be the same bytes")
    got: Collected = collect(expected, found)
    if got.difference is not None:
        return Comparison("differs", "what is asked has to be the same", got.difference)
    alike, told = judge(got, terms.score)
    return Comparison("statistically alike", told) if alike else Comparison("differs", told, got.first)


_MODEL_REWARD = _columns(LOGP, "reward")
RULES: dict[str, dict[str, Rule]] = {
    "policy": {"*.safetensors": _weights},
    "sft": {"*.safetensors": _weights, "metrics.json": _curve, "*.tsv": _curve},
    "train": {"*.safetensors": _weights, "metrics.json": _curve, "*.tsv": _curve},
    # reward.json holds a hash of the weights, which are compared themselves.
    "reward": {"*.safetensors": _weights, "metrics.json": _curve, "reward.json": partial(_numbers, 0.0, "weights")},
    "sample": {"*.parquet": _sampled},
    "generate": {"*.parquet": _sampled},
    "score": {"*.parquet": _MODEL_REWARD},
    "best_of_n": {"*.parquet": _MODEL_REWARD, "*.json": _reward_metrics},
    "reference": {"*.parquet": _columns(LOGP, "reference_logp", "mismatched_logp")},
    "embed": {"*.npy": _vectors},
    "evaluate": {"*.json": _metrics},
    "retrieve": {"*.json": _metrics},
    "report": {"*.json": _metrics},
}
"""Kind of node → pattern of a file's name → its rule; files that none names are compared byte by byte."""
