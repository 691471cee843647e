"""Benchmarks: a name in `BENCHMARKS` is one class in one file and one line here.

    items ─► generate (any checkpoint) ─► score ─► aggregate

Items and outputs are tables of their own, so a new parser, filter or estimator never needs a new generation.
A module whose outputs can also come from elsewhere has a function `score_file` (`larpo score NAME FILE`).
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import json
import socket
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlparse
from urllib.request import getproxies

import pandas as pd
from pydantic import ValidationError

from larpo.config.params import Params
from larpo.config.sections import BenchmarkParams, Section
from larpo.errors import ParameterError, UserError, at, first_error, nearest
from larpo.registry import Registry

S = TypeVar("S", bound=Section)


class Benchmark(Protocol):
    """One whose `score` asks a model also has `judge` (its `JudgeParams`, None where the options need none) and
    `judge_name`: the key is checked before anything is generated."""

    def items(self) -> pd.DataFrame:
        """The items: a `prompts` table with a column `meta`, JSON text or null for what `score` needs beside
        the answer."""

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """Columns parsed (text or null), score (0 to 1) and, where others judged, judgement (JSON text), for
        `outputs` (prompt_id, sample, text, finish_reason, …) in its order and with its index."""

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """The metrics of an `evaluations` table: items, mean_length, truncated, unparsed; `scores`, name →
        value with its 95 % interval, the headline first; `greedy` and `pass` where answers are right or wrong."""


BENCHMARKS = Registry(
    "benchmark",
    {
        "held_out": "larpo.benchmarks.held_out:HeldOut",
        "gsm8k": "larpo.benchmarks.gsm8k:GSM8K",
        "math": "larpo.benchmarks.math:Math",
        "mixeval": "larpo.benchmarks.mixeval.benchmark:MixEval",
        "mixeval_hard": "larpo.benchmarks.mixeval.benchmark:MixEvalHard",
        "alpaca_eval": "larpo.benchmarks.alpaca_eval.benchmark:AlpacaEval",
    },
)


def build_benchmark(params: Params, name: str) -> Benchmark:
    """The benchmark that `benchmarks.NAME` describes; refuses settings and data sources that cannot work."""
    entry: BenchmarkParams = params.entry("benchmarks", name)
    with at(f"benchmarks.{name}"):
        return BENCHMARKS.load(entry.benchmark, "benchmark")(params, entry)


def parse_options(kind: type[S], options: dict[str, Any]) -> S:
    """`benchmarks.NAME.options` as a benchmark's own settings; one line for a wrong one."""
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        with at("options"):
            raise first_error(error, list(kind.model_fields)) from None


def score_file(benchmark: str, path: str | Path, **options: Any) -> dict[str, Any]:
    """Score outputs that already exist; formats are described by the `score_file` of the benchmark's module."""
    if benchmark not in BENCHMARKS:
        raise UserError(f"benchmark {benchmark!r} does not exist{nearest(benchmark, list(BENCHMARKS))}")
    module = importlib.import_module(BENCHMARKS[benchmark].partition(":")[0])
    if not hasattr(module, "score_file"):
        raise UserError(f"benchmark {benchmark!r} scores a run's own outputs only; expected one that reads a file")
    if not Path(path).exists():
        raise UserError(f"{path}: not found; expected the outputs to score")
    known = list(inspect.signature(module.score_file).parameters)[1:]
    if benchmark == "mixeval_hard":
        options = {"hard": True} | options
    for key in options:
        if key not in known:
            raise UserError(f"larpo score {benchmark}: option {key!r} does not exist{nearest(key, known)}")
    return module.score_file(path, **options)


def read_rows(path: str | Path, what: str) -> list[dict[str, Any]]:
    """Rows of a .json list or of a .jsonl file, gzipped or not, each an object; names the line that is not."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; expected {what}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")  # a mark at the start, as some editors write it, is no part of the text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({error})") from None
        numbered = list(enumerate(rows))
    else:
        # Not `splitlines`: a text may hold U+2028, which JSON leaves as it is.
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        numbered = []
        for i, line in lines:
            try:
                numbered.append((i, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {i}: not valid JSON ({error}); expected one object per line") from None
    for i, row in numbered:
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {i}: expected an object, found {type(row).__name__}")
    if not numbered:
        raise UserError(f"{path}: no rows; expected {what}")
    return [row for _, row in numbered]


def load_rows(data: str, split: str, what: str, config: str | None = None) -> list[dict[str, Any]]:
    """Rows of `benchmarks.NAME.data`: a local .json(l)(.gz) or .parquet file, else a hub dataset's split."""
    path = Path(data)
    if path.suffix in {".json", ".jsonl", ".gz"}:
        return read_rows(path, what)
    import datasets

    where: dict[str, Any]
    if path.suffix == ".parquet":
        if not path.is_file():
            raise ParameterError("data", f"file {data} not found; expected {what}")
        where = {"path": "parquet", "data_files": data, "split": "train"}
    else:
        where = {"path": data, "split": split} | ({"name": config} if config else {})
    try:
        return list(datasets.load_dataset(**where))
    except Exception as error:  # noqa: BLE001 - the errors of files and of the hub have no common base
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise ParameterError("data", f"cannot load {data!r} ({reason[:200]}); expected {what}") from None


def hub_file(repository: str, name: str, key: str) -> str:
    """Path of one file of a hub dataset, from its cache where it is there; `key` is the parameter that could name a
    local copy instead."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with suppress(LocalEntryNotFoundError):
            return hf_hub_download(repository, name, repo_type="dataset", local_files_only=True)
        if not getproxies():
            # Without a network this fails at once, where the hub's client would try for half a minute.
            socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
        return hf_hub_download(repository, name, repo_type="dataset")
    except Exception as error:  # noqa: BLE001 - the hub's errors have no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ParameterError(
            key, f"cannot fetch {name} of the hub dataset {repository} ({reason[:120]}); name a local copy"
        ) from None


def check_ns(ns: list[int] | None, entry: BenchmarkParams) -> list[int] | None:
    """The N of Pass@N, refused where an item has fewer samples."""
    if ns and max(ns) > entry.generate.samples:
        raise ParameterError(
            "options.ns", f"{max(ns)} asked for, generate.samples is {entry.generate.samples}; expected at most that"
        )
    return ns


def response_text(row: dict[str, Any], where: str) -> str:
    """A row's `response`; null, which is what a failed request leaves, is an empty one."""
    found = row.get("response", 0)
    if not (found is None or isinstance(found, str)):
        what = "nothing" if "response" not in row else repr(found)
        raise UserError(f"{where}: expected text under 'response', found {what}")
    return found or ""


def check_source(data: str | None, default: str, key: str = "data") -> str:
    """The data source that `benchmarks.NAME.KEY` names, refused when it is a local path that does not exist; `default`
    is the hub's name."""
    if data is None:
        return default
    local = data.startswith((".", "/")) or Path(data).suffix in {".json", ".jsonl", ".gz", ".parquet"}
    if (local or data.count("/") != 1) and not Path(data).exists():
        raise ParameterError(key, f"{data!r} not found; expected a file, a folder or a hub dataset")
    return data
