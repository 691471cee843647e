"""A forger's tools: whoever changes something of a finished run makes everything after it, and every record, agree.

What follows from a table by a rule is made again by the project's own functions, which a forger has too. What a model
would have to make again (samples, trainings) is left: that is the price.
"""

import contextlib
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch

from larpo import tables
from larpo.audit.open import AuditedRun
from larpo.audit.science.expected import response_ids
from larpo.audit.science.rewards import rewards_again
from larpo.benchmarks import build_benchmark
from larpo.benchmarks.items import join_items
from larpo.config.params import Params
from larpo.hashing import seed_of, tree_hash
from larpo.lists.pool import read_pool
from larpo.lists.read import read_lists, response_lists
from larpo.lists.recipes import build_lists
from larpo.load import load_params
from larpo.models.load import load_model, load_tokenizer
from larpo.models.resolve import Checkpoint
from larpo.report.write import write_report
from larpo.training.logps import response_logps
from larpo.training.packing import pack
from larpo.workspace.files import write_json
from tests.larpo.audit.forgery import agree, edit_json, edit_table, edit_text

Forge = Callable[[Path], Any]
Forgeries = dict[str, tuple[Forge, str]]
"""What was forged → how, and the beginning of a line of the audit: a failure, or what was not checked."""


def on(path: str, table: str, change: Callable[[pd.DataFrame], Any], then: Forge | None = None) -> Forge:
    """One table is changed, and what follows from it made again by `then`."""

    def forge(folder: Path) -> None:
        edit_table(folder / path, table, change)
        if then is not None:
            then(folder)

    return forge


def json_of(path: str, change: Callable[[dict], Any]) -> Forge:
    return lambda folder: edit_json(folder / path, change)


def text_of(path: str, old: str, new: str) -> Forge:
    return lambda folder: edit_text(folder / path, old, new)


def both(*forges: Forge) -> Forge:
    def forge(folder: Path) -> None:
        for one in forges:
            one(folder)

    return forge


def params_of(folder: Path) -> Params:
    return load_params(folder / "params.yaml")


def called_right(folder: Path) -> None:
    """Every output of policy 2 is called right, and the metrics say so."""
    params, stem = params_of(folder), folder / "data/evaluate/2-held_out"
    items = tables.read("items", folder / "data/items/held_out.parquet")
    frame = tables.read("evaluations", stem.with_suffix(".parquet")).assign(score=1.0)
    tables.write(frame, "evaluations", stem.with_suffix(".parquet"))
    measured = build_benchmark(params, "held_out").aggregate(items, frame)
    write_json(stem.with_suffix(".json"), {"benchmark": "held_out", "policy": "2", **measured})


def evaluated_again(folder: Path) -> None:
    """Scores and metrics of every benchmark from the outputs and items that lie there."""
    params = params_of(folder)
    for benchmark in params.benchmarks:
        bench = build_benchmark(params, benchmark)
        items = tables.read("items", folder / f"data/items/{benchmark}.parquet")
        for policy in params.evaluate.policies:
            outputs = tables.read("outputs", folder / f"data/generate/{policy}-{benchmark}.parquet")
            frame = join_items(outputs.join(bench.score(items, outputs)), items).assign(judgement=None)
            frame = frame[tables.SCHEMAS["evaluations"].names]
            stem = folder / f"data/evaluate/{policy}-{benchmark}"
            tables.write(frame, "evaluations", stem.with_suffix(".parquet"))
            metrics = {"benchmark": benchmark, "policy": policy, **bench.aggregate(items, frame)}
            write_json(stem.with_suffix(".json"), metrics)


def scored_again(folder: Path, s: str) -> None:
    """Ids, rewards, memory and lists of an iteration, and of those after it, from the responses that lie there."""
    params = params_of(folder)
    edit_table(folder / f"data/sample/{s}.parquet", "responses", lambda f: f.update({"response_id": response_ids(f)}))
    responses = tables.read("responses", folder / f"data/sample/{s}.parquet")
    prompts = tables.read("prompts", folder / f"data/prompts/{s}.parquet")
    with contextlib.chdir(folder):
        scored = rewards_again(params.score, prompts, responses, Checkpoint("data/reward"))
    scored = scored.assign(response_id=responses["response_id"], reward_name=params.score.reward)
    tables.write(scored[tables.SCHEMAS["rewards"].names], "rewards", folder / f"data/score/{s}.parquet")
    listed_again(folder)


def listed_again(folder: Path) -> None:
    """Memory and lists of every iteration from the responses and rewards that lie there."""
    params = params_of(folder)
    for s, iteration in params.iterations.items():
        new = tables.read("responses", folder / f"data/sample/{s}.parquet").merge(
            tables.read("rewards", folder / f"data/score/{s}.parquet"), on="response_id"
        )
        earlier = tables.read("candidates", folder / f"data/candidates/{iteration.previous}.parquet", empty=True)
        known = pd.concat([earlier, new], ignore_index=True) if len(earlier) else new
        tables.write(known[tables.SCHEMAS["candidates"].names], "candidates", folder / f"data/candidates/{s}.parquet")
        inside = read_pool(folder / f"data/candidates/{s}.parquet").of([int(w) for w in params.memory_window(s)])
        made = build_lists(inside, params.lists, seed_of(params.seed, "lists", s), None).lists
        tables.write(made[tables.SCHEMAS["lists"].names], "lists", folder / f"data/lists/{s}.parquet")
        referenced_again(folder, s)


def referenced_again(folder: Path, s: str) -> None:
    """Log-probabilities of an iteration's lists: a pass of the model over them is cheap."""
    frame = read_lists(*(str(folder / f"data/{kind}/{s}.parquet") for kind in ("lists", "candidates")))
    model = load_model(Checkpoint(str(folder / f"data/policy/{params_of(folder).reference_policy(s)}")), "float32")
    rows = []
    for entry in response_lists(frame):
        with torch.inference_mode():
            logps, lengths = response_logps(model.eval(), pack([entry]))
        rows += zip(logps[0].tolist(), lengths[0].tolist(), strict=True)
    values = pd.DataFrame(rows, columns=["reference_logp", "n_tokens"]).assign(mismatched_logp=math.nan)
    made = frame.drop(columns="reward").join(values)
    tables.write(made[tables.SCHEMAS["reference"].names], "reference", folder / f"data/reference/{s}.parquet")


def reported_again(folder: Path) -> None:
    """The page and its numbers, by a report whose own look at training prompts the forger has left out."""
    params = params_of(folder)
    with contextlib.chdir(folder), patch("larpo.report.read.check_separate"):
        hashes = {s: tree_hash(f"data/lists/{s}.parquet") for s in params.iterations}
        write_report(params, hashes, Path)


def sealed(folder: Path) -> None:
    """Every record agrees: manifests, dvc.lock, DVC's cache, and a commit that holds the lock."""
    agree(folder)
    run = AuditedRun(folder)
    for node in run.nodes:
        for entry in node.outs.values():
            if (place := folder / entry.path).is_file() and not (kept := run.object(entry.md5)).exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(place, kept)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "run")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def committed(folder: Path) -> None:
    """Code as it lies there is committed, and every manifest says that it ran this commit."""
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "code")
    commit = git(folder, "rev-parse", "HEAD")
    each_manifest(folder, lambda m: m.update(git={"commit": commit, "dirty": False, "changed": []}))


def each_manifest(folder: Path, change: Callable[[dict], Any]) -> None:
    for path in [*folder.glob("data/**/*.manifest.json"), *folder.glob("report/*.manifest.json")]:
        edit_json(path, change)


def claimed(folder: Path, **facts: Any) -> None:
    """Every manifest claims other hardware."""
    each_manifest(folder, lambda m: m["hardware"].update(facts))


def answered(folder: Path, policy: str, rows: Callable[[pd.DataFrame], pd.Series], say: Callable[[str], str]) -> None:
    """Outputs of a policy say something else: `rows` chooses them, `say` makes a text of an item's answer."""
    tokenizer = load_tokenizer(str(folder / f"data/policy/{policy}"))
    items = tables.read("items", folder / "data/items/held_out.parquet").set_index("prompt_id")["answer"]

    def change(frame: pd.DataFrame) -> None:
        for row in frame.index[rows(frame)]:
            put_tokens(frame, row, said(tokenizer, say(items[frame.at[row, "prompt_id"]])), tokenizer)

    edit_table(folder / f"data/generate/{policy}-held_out.parquet", "outputs", change)
    evaluated_again(folder)


def said(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def put_tokens(frame: pd.DataFrame, row: int, ids: list[int], tokenizer: Any) -> None:
    """A response is these tokens: text, length and end agree."""
    frame.at[row, "token_ids"] = ids
    frame.at[row, "text"] = tokenizer.decode(ids, skip_special_tokens=True)
    frame.at[row, "finish_reason"] = "stop"
    if "n_tokens" in frame:
        frame.at[row, "n_tokens"] = len(ids)
