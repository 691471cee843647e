"""A judge's verdicts read again from its recorded replies, by the code of whoever audits; nobody is asked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from larpo.audit.open import AuditedRun
from larpo.benchmarks import build_benchmark
from larpo.benchmarks.judge import NOBODY, NotRecorded

STORE = "LARPO_JUDGEMENTS"


def recorded_answers(folder: Path) -> Path | None:
    """The store of judgements: the run's own, else the one that LARPO_JUDGEMENTS names."""
    places = [folder / "judgements", *([Path(p)] if (p := os.environ.get(STORE)) else [])]
    return next((place for place in places if any(place.glob("*.jsonl"))), None)


def verdicts_again(
    run: AuditedRun, benchmark: str, items: pd.DataFrame, outputs: pd.DataFrame
) -> tuple[pd.DataFrame | None, str]:
    """Columns parsed, score and judgement of every output, from requests made again and the replies that are kept for
    them; None and the reason where some are not at hand."""
    answers = recorded_answers(run.folder)
    if answers is None:
        return None, "no recorded replies of its judge are at hand"
    judges = {name: judge.model_copy(update={"base_url": NOBODY}) for name, judge in run.params.judges.items()}
    bench = build_benchmark(run.params.model_copy(update={"judges": judges}), benchmark)
    bench.judge = bench.judge.model_copy(update={"base_url": NOBODY})  # also one that the benchmark brings itself
    with _store(answers):
        try:
            return bench.score(items, outputs), ""
        except NotRecorded as error:
            return None, str(error).removeprefix(f"{NOBODY}: ")


@contextmanager
def _store(folder: Path) -> Iterator[None]:
    before = os.environ.get(STORE)
    os.environ[STORE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(STORE)
        if before is not None:
            os.environ[STORE] = before
