"""A run's tables, metrics and records, read from its folder (the working directory) as the report's data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from larpo import tables
from larpo.config.params import Params
from larpo.errors import UserError
from larpo.graph import Stage, kinds, read_stages, unroll
from larpo.hashing import digest
from larpo.report.data import (
    BenchmarkScores,
    Example,
    ExampleResponse,
    Iteration,
    NodeRecord,
    PolicyScore,
    ReportData,
    best_of_n_curves,
    policy_score,
    retrieval_curve,
    spread,
)
from larpo.report.hardness import measure
from larpo.sources.contamination import Questions


def read_report(params: Params, list_hashes: dict[str, str], settings: dict[str, Any] | None = None) -> ReportData:
    """Everything that the report shows.

    Parameters
    ----------
    list_hashes
        Hash of data/lists by iteration; the page shows it.
    settings
        The parameters that it shows; null: all of `params`.

    Raises
    ------
    UserError
        A file is broken, two of them contradict each other, or an evaluation prompt was trained on.
    """
    prompts = {s: tables.read("prompts", f"data/prompts/{s}.parquet") for s in params.iterations}
    return ReportData(
        title=params.report.title,
        settings=params.model_dump(mode="json") if settings is None else settings,
        benchmarks=read_scores(params, prompts),
        iterations=[iteration(params, s, prompts, list_hashes[s]) for s in sorted(params.iterations, key=int)],
        nodes=nodes(params),
        columns=columns(),
        best_of_n=[
            best_of_n_curves(name, read_json(f"data/evaluate/best_of_n-{name}.json")) for name in params.best_of_n
        ],
        retrieval={
            f"{name}, {words}": retrieval_curve(read_json(f"data/evaluate/retrieval-{name}.json"), key)
            for name in params.retrieval
            for key, words in (("answer", "by answer"), ("gold", "by gold passage"))
        },
    )


def read_json(path: str | Path) -> dict[str, Any]:
    """One JSON file; says which one when it is broken."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore it with `dvc checkout --force`") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object; restore it with `dvc checkout --force`")
    return found


def manifest(path: str) -> dict[str, Any] | None:
    """A node's record, None where there is none: no node depends on one."""
    return read_json(path) if Path(path).is_file() else None


def check_separate(prompts: dict[str, pd.DataFrame], evaluations: dict[str, pd.DataFrame]) -> None:
    """Stop when an evaluation prompt was trained on: it has the same id, or its question stands in a training prompt,
    whatever is around it (larpo.sources.contamination)."""
    for bench, evaluation in evaluations.items():
        items = evaluation.drop_duplicates("prompt_id")
        ids, questions = set(items["prompt_id"]), Questions({bench: items})
        for s, frame in prompts.items():
            held = frame["messages"].map(lambda m, questions=questions: questions.found(m) is not None)
            found = frame["prompt_id"].isin(ids) | held
            if found.any():
                row = int(found.to_numpy().argmax())
                raise UserError(
                    f"data/prompts/{s}.parquet, row {row}: prompt {frame['prompt_id'].iloc[row]} is also in benchmark "
                    f"{bench!r} ({int(found.sum())} such prompts); expected no evaluation prompt in training: run "
                    f"`dvc repro --force prompts@{s}`, raise prompts.held_out or take another source"
                )


def training_curves(folder: str) -> dict[str, list[tuple[int, float]]]:
    """DVCLive's series: metric → (step, value) in rising steps."""
    home = Path(folder) / "plots" / "metrics"
    curves = {}
    for path in sorted(home.rglob("*.tsv")):
        name = path.relative_to(home).with_suffix("").as_posix()
        frame = pd.read_csv(path, sep="\t")
        if not {"step", path.stem} <= set(frame.columns):
            raise UserError(f"{path}: expected columns step and {path.stem}, found {', '.join(frame.columns)}")
        frame = frame[np.isfinite(frame[path.stem])].sort_values("step", kind="stable")
        curves[name] = [(int(a), float(b)) for a, b in zip(frame["step"], frame[path.stem], strict=True)]
    return curves


def examples(
    lists: pd.DataFrame, candidates: pd.DataFrame, prompts: pd.DataFrame, count: int, seed: int
) -> list[Example]:
    """`count` lists with their texts, chosen by a hash of the prompt."""
    order = sorted(lists["prompt_id"].unique(), key=lambda p: digest("example", seed, p))[:count]
    chosen = lists[lists["prompt_id"].isin(order)]
    facts = candidates[
        ["response_id", "text", "temperature", "iteration", "correct", "finish_reason", "origin", "prompt_id"]
    ].rename(columns={"prompt_id": "answers"})
    joined = chosen.merge(facts, on="response_id", how="left", validate="many_to_one")
    other = joined["answers"] != joined["prompt_id"]
    # Whether it was right is known for the prompt that it answers only.
    joined["correct"] = joined["correct"].astype(object).mask(other, None)
    joined["origin"] = joined["origin"].mask(other, "another prompt")
    missing = joined["text"].isna().to_numpy()
    if missing.any():
        raise UserError(
            f"data/candidates: no row for response {joined['response_id'][int(missing.argmax())]} of the lists; "
            "run `dvc repro --force` on the lists node"
        )
    texts = prompts.drop_duplicates("prompt_id").set_index("prompt_id")
    out = []
    for prompt in order:
        rows = joined[joined["prompt_id"] == prompt].sort_values("rank")
        answer = texts.at[prompt, "answer"]
        out.append(
            Example(
                messages=[(m["role"], m["content"]) for m in texts.at[prompt, "messages"]],
                answer=None if pd.isna(answer) else str(answer),
                responses=[
                    ExampleResponse(
                        rank=int(r.rank),
                        text=r.text,
                        reward=float(r.reward),
                        role=r.role,
                        temperature=None if pd.isna(r.temperature) else float(r.temperature),
                        iteration=int(r.iteration),
                        source=r.origin,
                        correct=None if pd.isna(r.correct) else bool(r.correct),
                        truncated=r.finish_reason == "length",
                    )
                    for r in rows.itertuples(index=False)
                ],
            )
        )
    return out


LISTED = [
    "response_id",
    "prompt_id",
    "iteration",
    "temperature",
    "text",
    "token_ids",
    "finish_reason",
    "origin",
    "correct",
]


@dataclass(frozen=True)
class Sampled:
    """What the `candidates` table says of one iteration, read as columns: the responses in the lists as rows, of all
    others a number each."""

    listed: pd.DataFrame  # LISTED
    lengths: np.ndarray  # (R,) tokens of the responses that the policy wrote in this iteration
    gold: set[str]  # ids of this iteration's gold solutions
    gold_wrong: int


def sampled(path: str, s: str, listed: pd.Series) -> Sampled:
    """The candidates of iteration s; `listed` are the ids of the responses in its lists."""
    ids, rows, lengths, gold, wrong = pa.array(listed), [], [], set(), 0
    for part in tables.scan("candidates", path, LISTED):
        rows.append(part.filter(pc.is_in(part["response_id"], ids)))
        own = part.filter(pc.equal(part["iteration"], int(s)))
        is_gold = pc.equal(own["origin"], "gold")
        lengths.append(pc.list_value_length(own["token_ids"].filter(pc.invert(is_gold))).to_numpy())
        found = own.filter(is_gold)
        gold.update(found["response_id"].to_pylist())
        wrong += int((~pc.fill_null(found["correct"], True).to_numpy()).sum())
    return Sampled(pa.concat_tables(rows).to_pandas(), np.concatenate(lengths), gold, wrong)


def rewarded(path: str, gold: set[str]) -> tuple[np.ndarray, float | None]:
    """Rewards of what the policy wrote, without gold solutions, and the share that is correct; None where the reward
    cannot tell."""
    found = pa.concat_tables(tables.scan("rewards", path, ["response_id", "reward", "correct"]))
    found = found.filter(pc.invert(pc.is_in(found["response_id"], pa.array(sorted(gold), pa.string()))))
    return found["reward"].to_numpy(), pc.mean(found["correct"].cast(pa.float64())).as_py()


def iteration(params: Params, s: str, prompts: dict[str, pd.DataFrame], data_hash: str) -> Iteration:
    """Everything that the page says about iteration s."""
    lists = tables.read("lists", f"data/lists/{s}.parquet")
    found = sampled(f"data/candidates/{s}.parquet", s, lists["response_id"])
    rewards, correct = rewarded(f"data/score/{s}.parquet", found.gold)
    # The memory: a list may hold a prompt of an earlier iteration.
    known = pd.concat([prompts[p] for p in params.iterations if int(p) <= int(s)], ignore_index=True)
    reference = tables.read("reference", f"data/reference/{s}.parquet")
    notes = {
        node: (manifest(f"data/{node}/{s}.manifest.json") or {}).get("notes") or {} for node in ("reference", "train")
    }
    return Iteration(
        name=s,
        previous=params.iterations[s].previous,
        temperatures=list(params.iterations[s].temperatures),
        prompts=len(prompts[s]),
        rewards=rewards,
        correct=correct,
        lengths=spread(found.lengths),
        lists=int(lists["prompt_id"].nunique()),
        list_rows=len(lists),
        data_hash=data_hash,
        step0_loss=notes["train"].get("step0_loss"),
        step0_expected=notes["train"].get("step0_expected"),
        training=training_curves(f"data/train/{s}"),
        examples=examples(lists, found.listed, known, params.report.examples, params.seed),
        hardness=measure(lists, found.listed, reference, params.lists.negatives),
        drift=notes["reference"].get("drift"),
        exactness={node: told["exactness"] for node, told in notes.items() if "exactness" in told},
        computed=notes["train"].get("computed"),
        weights_changed=notes["train"].get("weights_changed"),
        gold=(len(found.gold), found.gold_wrong),
    )


def nodes(params: Params) -> list[NodeRecord]:
    """Every node of the run in the order it is drawn: per policy, what made it and what measured it."""
    stages = unroll(read_stages(), params.model_dump(mode="json")).values()
    return [_record(stage) for row in params.policies() for stage in stages if stage.meta.row == row]


def columns() -> list[str]:
    """Kinds of nodes that have a column of the graph's picture, in their order."""
    return [kind for kind, meta in kinds().items() if meta.row is not None and meta.column is None]


def _record(stage: Stage) -> NodeRecord:
    *outputs, record = sorted(stage.outs, key=lambda out: out.endswith(".manifest.json"))
    place = stage.meta.row, tuple(outputs), manifest(record), stage.meta.column or stage.kind, stage.meta.label
    return NodeRecord(stage.name, stage.kind, *place)


def read_scores(params: Params, prompts: dict[str, pd.DataFrame]) -> list[BenchmarkScores]:
    """Every benchmark on every policy, after the check that none of its prompts was trained on."""
    out = []
    for name, entry in params.benchmarks.items():
        policies: list[PolicyScore] = []
        checked: set[str] = set()
        for p in sorted(params.evaluate.policies, key=params.policies().index):
            stem = f"data/evaluate/{p}-{name}"
            evaluation = tables.read("evaluations", f"{stem}.parquet")
            check_separate(prompts, {name: evaluation[~evaluation["prompt_id"].isin(checked)]})
            checked |= set(evaluation["prompt_id"])
            metrics = read_json(f"{stem}.json")
            if (metrics.get("policy"), metrics.get("benchmark")) != (p, name) or "items" not in metrics:
                raise UserError(
                    f"{stem}.json: expected the scores of policy {p} on {name}; "
                    f"run `dvc repro --force evaluate@{p}-{name}`"
                )
            score = policy_score(metrics, evaluation)
            for point in score.recall:
                told = score.passes.get(point.n)
                if told is not None and abs(told.value - point.estimate.value) > 1e-9:
                    raise UserError(
                        f"{stem}.json: Pass@{point.n} is {told.value:.6f}, its table gives "
                        f"{point.estimate.value:.6f}; run `dvc repro --force evaluate@{p}-{name}`"
                    )
            policies.append(score)
        out.append(BenchmarkScores(name, entry.benchmark, policies))
    return out
