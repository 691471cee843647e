"""Whether an evaluation prompt was trained on: in an iteration, in a fine-tuning, in the pairs of a reward model."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from larpo import tables
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude, counted
from larpo.audit.science.overlap import (
    disguised,
    last_texts,
    near_duplicates,
    normalised,
    shared_ids,
    shared_passages,
    shared_texts,
)
from larpo.config.params import Params
from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.sources.contamination import Questions
from larpo.sources.pairs import read_pairs
from larpo.sources.prompts import draw

PART = "science"
SAME = {"its prompt_id": shared_ids, "its text": shared_texts, "its text, with other letters,": disguised}


@dataclass
class Trained:
    """Prompts by where they are, texts of the reward model's pairs, and what cannot be read here."""

    prompts: dict[str, pd.DataFrame]
    pairs: list[str]
    unread: list[str]

    def texts(self) -> list[str]:
        return [text for frame in self.prompts.values() for text in last_texts(frame)] + self.pairs


def trained_on(run: AuditedRun) -> Trained:
    """What was trained on, drawn again where no table holds it. Data that params name may lie on the machine that made
    the run only."""
    params = run.params
    paths = [f"data/prompts/{s}.parquet" for s in params.iterations]
    trained = Trained({path: tables.read("prompts", path) for path in paths}, [], [])

    def take(key: str, read: Callable[[], None]) -> None:
        try:
            read()
        except UserError as error:
            trained.unread.append(f"{key}: {error}")

    def fine_tuning(name: str) -> None:
        sft = params.sft[name]
        drawn = draw(sft.data, sft.examples, seed_of(sft.seed, "sft", name), held_out=False)
        trained.prompts[f"sft.{name}.data"] = drawn

    def reward_model() -> None:
        pairs, _ = read_pairs(params.reward.train.data, "reward.train.data")
        kept = (p for p in pairs if not p.held_out(params.reward.train.held_out))
        trained.pairs += [normalised(p.messages[-1]["content"]) for p in kept]

    for name in params.sft:
        take(f"sft.{name}.data", lambda name=name: fine_tuning(name))
    if params.reward.train is not None:
        take("reward.train.data", reward_model)
    return trained


def evaluation_items(params: Params) -> dict[str, pd.DataFrame]:
    """The items of every benchmark, by its name."""
    return {b: tables.read("items", f"data/items/{b}.parquet") for b in params.benchmarks}


def prompts_apart(run: AuditedRun, name: str) -> Check:
    trained, evaluation = run.once(trained_on), evaluation_items(run.params)
    failures = [
        f"data/items/{b}.parquet, row {s.evaluation_row}: {what} is also in {source}, row {s.training_row}"
        for b, items in evaluation.items()
        for source, frame in trained.prompts.items()
        for what, shared in SAME.items()
        for s in shared(frame, items)
    ]
    learnt = set(trained.pairs)
    failures += [
        f"data/items/{b}.parquet, row {row}: its text is among the reward model's training pairs"
        for b, items in evaluation.items()
        for row, text in enumerate(last_texts(items))
        if text and text in learnt
    ]
    told = {line.partition(":")[0] for line in failures}
    failures += [line for line in _held(trained, Questions(evaluation)) if line.partition(":")[0] not in told]
    count = sum(map(len, evaluation.values()))
    detail = f"{count} evaluation prompts against {len(trained.texts())} training prompts"
    detail += ", by id, by text and as a question inside a prompt"
    return conclude(PART, name, count, detail, failures, trained.unread)


def _held(trained: Trained, questions: Questions) -> list[str]:
    """Evaluation questions inside training prompts, whatever is around them; each once per source."""
    lines: dict[tuple[str, str, int], str] = {}
    said = [(source, row, m) for source, f in trained.prompts.items() for row, m in enumerate(f["messages"])]
    pairs = "the reward model's training pairs"
    said += [(pairs, row, [{"role": "user", "content": text}]) for row, text in enumerate(trained.pairs)]
    for source, row, messages in said:
        if where := questions.found(messages):
            line = f"data/items/{where[0]}.parquet, row {where[1]}: its question stands in {source}, row {row}"
            lines.setdefault((source, *where), line)
    return list(lines.values())


def near_prompts(run: AuditedRun, name: str) -> Check:
    """Counted, never a failure: whether near is too near depends on the task."""
    training, lines, count = run.once(trained_on).texts(), [], 0
    for benchmark, frame in evaluation_items(run.params).items():
        texts = last_texts(frame)
        near, passages = near_duplicates(training, texts), shared_passages(training, texts)
        count += len(texts)
        most = f", the nearest {near[0].evaluation[-60:]!r} ~ {near[0].training[-60:]!r}" if near else ""
        lines.append(f"{benchmark}: {len(near)} of {len(texts)} near{most}; {len(passages)} share 13 words")
    return counted(PART, name, count, f"MinHash, Jaccard of 5 characters ≥ 0.8: {'; '.join(lines)}")
