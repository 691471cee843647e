"""A run's tables, metrics and records, read from its folder (the working directory) as the report's data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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


def read_report(params: Params, list_hashes: dict[str, str]) -> ReportData:
    """Everything that the report shows.

    Parameters
    ----------
    list_hashes
        Hash of data/lists by iteration; the page shows it.

    Raises
    ------
    UserError
        A file is broken, two of them contradict each other, or an evaluation prompt was trained on.
    """
    prompts = {s: tables.read("prompts", f"data/prompts/{s}.parquet") for s in params.iterations}
    return ReportData(
        title=params.report.title,
        settings=params.model_dump(mode="json"),
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


def iteration(params: Params, s: str, prompts: dict[str, pd.DataFrame], data_hash: str) -> Iteration:
    """Everything that the page says about iteration s."""
    lists = tables.read("lists", f"data/lists/{s}.parquet")
    candidates = tables.read("candidates", f"data/candidates/{s}.parquet")
    scores = tables.read("rewards", f"data/score/{s}.parquet")
    # The memory: a list may hold a prompt of an earlier iteration.
    known = pd.concat([prompts[p] for p in params.iterations if int(p) <= int(s)], ignore_index=True)
    reference = tables.read("reference", f"data/reference/{s}.parquet")
    own = candidates[candidates["iteration"] == int(s)]
    gold, own = own[own["origin"] == "gold"], own[own["origin"] != "gold"]
    # What the policy wrote, and nothing else.
    scores = scores[~scores["response_id"].isin(gold["response_id"])]
    notes = {
        node: (manifest(f"data/{node}/{s}.manifest.json") or {}).get("notes") or {} for node in ("reference", "train")
    }
    return Iteration(
        name=s,
        previous=params.iterations[s].previous,
        temperatures=list(params.iterations[s].temperatures),
        prompts=len(prompts[s]),
        rewards=scores["reward"].to_numpy(dtype=float),
        correct=float(scores["correct"].astype(float).mean()) if scores["correct"].notna().any() else None,
        lengths=spread(own["token_ids"].map(len).to_numpy()),
        lists=int(lists["prompt_id"].nunique()),
        list_rows=len(lists),
        data_hash=data_hash,
        step0_loss=notes["train"].get("step0_loss"),
        step0_expected=notes["train"].get("step0_expected"),
        training=training_curves(f"data/train/{s}"),
        examples=examples(lists, candidates, known, params.report.examples, params.seed),
        hardness=measure(lists, candidates, reference, params.lists.negatives),
        drift=notes["reference"].get("drift"),
        exactness={node: told["exactness"] for node, told in notes.items() if "exactness" in told},
        computed=notes["train"].get("computed"),
        weights_changed=notes["train"].get("weights_changed"),
        gold=(len(gold), int((gold["correct"].astype(float) == 0).sum())),
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
