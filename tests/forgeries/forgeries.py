"""The forgeries: what is done to a finished run, and how the audit names it. Everything after the change is made again,
and every record agrees, unless the entry says otherwise."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from larpo import tables
from larpo.models.load import load_tokenizer
from tests.forgeries.forger import (
    Forge,
    Forgeries,
    answered,
    both,
    called_right,
    claimed,
    committed,
    each_manifest,
    evaluated_again,
    json_of,
    listed_again,
    on,
    put_tokens,
    said,
    scored_again,
    text_of,
)
from tests.forgeries.retrieval import RETRIEVAL
from tests.larpo.audit.forgery import edit_json, edit_table

OUTPUTS, ITEMS, SAMPLE = "data/generate/2-held_out.parquet", "data/items/held_out.parquet", "data/sample/1.parquet"

# Weights and what lies beside them


def weights(path: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Forge:
    def forge(folder: Path) -> None:
        (file,) = (folder / path).glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return forge


def scaled(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.5


def nudged(learning_rate: float) -> Callable[[dict[str, torch.Tensor]], None]:
    """By half a learning rate: within reach of the training."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] += learning_rate / 2

    return change


def head_moved(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"] += 0.05


def replaced(policy: str, by: str) -> Forge:
    return lambda folder: (folder / f"data/policy/{policy}/model.safetensors").write_bytes(
        (folder / f"data/policy/{by}/model.safetensors").read_bytes()
    )


# Prompts and items


def leaked(change: Callable[[str], str]) -> Forge:
    """The first training prompt is the first evaluation item, disguised."""

    def forge(folder: Path) -> None:
        item = tables.read("items", folder / ITEMS)["messages"][0]
        asked = [*item[:-1], {"role": "user", "content": change(item[-1]["content"])}]

        def replace(frame: pd.DataFrame) -> None:
            frame.at[0, "messages"] = asked

        edit_table(folder / "data/prompts/1.parquet", "prompts", replace)

    return forge


def easier(frame: pd.DataFrame) -> None:
    for row in frame.index:
        frame.at[row, "messages"] = [{"role": "user", "content": f"Say {row}."}]
        frame.at[row, "answer"] = str(row)


def older_generator(folder: Path) -> None:
    edit_json(folder / "data/items/held_out.manifest.json", lambda m: m["packages"].update({"reasoning-gym": "0.1.3"}))


def answers_as_said(folder: Path) -> None:
    """The expected answers are the last numbers that policy 2 said."""
    outputs = tables.read("outputs", folder / OUTPUTS)
    first = outputs[outputs["sample"] < 0].set_index("prompt_id")["text"].str.extract(r"(\d+)\D*$")[0].fillna("7")
    edit_table(folder / ITEMS, "items", lambda f: f.update({"answer": f["prompt_id"].map(first)}))
    evaluated_again(folder)


# Samples and outputs


def response(change: Callable[[pd.DataFrame, Any], None]) -> Forge:
    """Responses of iteration 1, with rewards, memory and lists made again."""

    def forge(folder: Path) -> None:
        tokenizer = load_tokenizer(str(folder / "data/policy/base"))
        edit_table(folder / SAMPLE, "responses", lambda frame: change(frame, tokenizer))
        scored_again(folder, "1")

    return forge


def sampled_again(frame: pd.DataFrame, tokenizer: Any) -> None:
    """The first response of each prompt is said by half of its samples."""
    for _, rows in frame.groupby("prompt_id").groups.items():
        for row in rows[1 : len(rows) // 2]:
            put_tokens(frame, row, list(frame.at[rows[0], "token_ids"]), tokenizer)
            frame.at[row, "logp"] = frame.at[rows[0], "logp"]


def one_of_each(frame: pd.DataFrame, tokenizer: Any) -> None:
    for row in frame.groupby("prompt_id", sort=False).head(1).index:
        put_tokens(frame, row, said(tokenizer, "77"), tokenizer)


def likelier(frame: pd.DataFrame, tokenizer: Any) -> None:
    frame["logp"] *= 0.5


def greedy(frame: pd.DataFrame) -> pd.Series:
    return frame["sample"] < 0


def every(frame: pd.DataFrame) -> pd.Series:
    return frame["sample"] > -2


def first_greedy(frame: pd.DataFrame) -> pd.Series:
    return greedy(frame) & (frame["prompt_id"] == frame["prompt_id"][0])


def one_sample(frame: pd.DataFrame) -> pd.Series:
    return (frame["sample"] == 2) & (frame["prompt_id"] == frame["prompt_id"][0])


def right(rows: Callable[[pd.DataFrame], pd.Series], policy: str = "2", say: Callable[[str], str] = str) -> Forge:
    return lambda folder: answered(folder, policy, rows, say)


def exchanged_policies(folder: Path) -> None:
    paths = [folder / f"data/generate/{p}-held_out.parquet" for p in ("0", "2")]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    evaluated_again(folder)


def first_sample_for_all(frame: pd.DataFrame) -> None:
    """What one sample said is said by the item's others: better Pass@1 where it was right."""
    for _, rows in frame[frame["sample"] >= 0].groupby("prompt_id").groups.items():
        for row in rows[1:]:
            frame.at[row, "token_ids"] = list(frame.at[rows[0], "token_ids"])
            for column in ("text", "n_tokens", "finish_reason"):
                frame.at[row, column] = frame.at[rows[0], column]


def shuffled_samples(frame: pd.DataFrame) -> None:
    """An item's samples in another order: the seeds say which is which."""
    columns = ["token_ids", "text", "n_tokens", "finish_reason"]
    for _, rows in frame[frame["sample"] >= 0].groupby("prompt_id").groups.items():
        frame.loc[rows, columns] = frame.loc[rows[::-1], columns].to_numpy()


# What follows by a rule


def raised(frame: pd.DataFrame) -> None:
    frame["reward"] += 0.25


def roles(frame: pd.DataFrame) -> None:
    frame["role"] = frame["role"].map({"positive": "negative", "negative": "positive"})


def candidate_lost(folder: Path) -> None:
    """One that no list holds, so that nothing after it misses it."""
    listed = set(tables.read("lists", folder / "data/lists/2.parquet")["response_id"])
    edit_table(
        folder / "data/candidates/2.parquet",
        "candidates",
        lambda f: f.drop(index=next(i for i, r in f["response_id"].items() if r not in listed)).reset_index(drop=True),
    )


def curve_of(path: str, row: int, value: str) -> Forge:
    def forge(folder: Path) -> None:
        lines = (folder / path).read_text().splitlines()
        lines[row] = f"{lines[row].partition(chr(9))[0]}\t{value}"
        (folder / path).write_text("\n".join(lines) + "\n")

    return forge


def longer_curve(folder: Path) -> None:
    for path in (folder / "data/train/2/plots/metrics").glob("*.tsv"):
        lines = path.read_text().splitlines()
        step, value = lines[-1].split("\t")
        path.write_text("\n".join([*lines, f"{int(step) + 1}\t{value}"]) + "\n")


def code(path: str, old: str, new: str, *then: Forge) -> Forge:
    return both(text_of(path, old, new), committed, *then)


def loose(folder: Path) -> None:
    """Their dvc.yaml calls any weights the same."""
    text = (folder / "dvc.yaml").read_text("utf-8")
    (folder / "dvc.yaml").write_text(re.sub(r'"\*\.safetensors": weights', '"*.safetensors": samples', text), "utf-8")


WRONG_OUTPUT = f"{OUTPUTS}, row "
FORGERIES: Forgeries = {
    "policy: weights": (weights("data/policy/0", scaled), "data/policy/0: model.safetensors: tensor"),
    "policy: its template answers": (
        text_of("data/policy/0/chat_template.jinja", "{% endfor %}", "{% endfor %}7"),
        "data/policy/0: chat_template.jinja",
    ),
    "policy: a memory before the first iteration": (
        lambda folder: (folder / "data/candidates/0.parquet").write_bytes(
            (folder / "data/candidates/1.parquet").read_bytes()
        ),
        "data/candidates/0.parquet",
    ),
    "sft: weights": (weights("data/policy/base", scaled), "data/policy/base: tensor model.layers.1.mlp.up_proj"),
    "sft: weights within reach": (
        weights("data/policy/base", nudged(1e-2)),
        "data/policy/base: model.safetensors: tensor",
    ),
    "sft: a curve": (curve_of("data/sft/base/plots/metrics/loss.tsv", -1, "0.1"), "data/sft/base: "),
    "prompts: an answer": (
        on("data/prompts/1.parquet", "prompts", lambda f: f.update({"answer": ["7"] * len(f)})),
        "data/prompts/1.parquet, row 0: answer is '7'",
    ),
    "prompts: fewer": (
        on("data/prompts/2.parquet", "prompts", lambda f: f.iloc[:-1]),
        "data/prompts/2.parquet: 11 rows, computed again 12",
    ),
    "prompts: the test set behind spaces of no width": (
        leaked(lambda text: "\u200b".join(text)),
        f"{ITEMS}, row 0: its text is also in data/prompts/1.parquet, row 0",
    ),
    "prompts: the test set in fillers and Arabic digits": (
        leaked(lambda text: text.translate({48 + i: 0x660 + i for i in range(10)} | {32: "\u3164 "})),
        f"{ITEMS}, row 0: its text is also in data/prompts/1.parquet, row 0",
    ),
    "prompts: the test set in Cyrillic": (
        leaked(lambda text: text.translate(str.maketrans("aeopc", "аеорс"))),
        f"{ITEMS}, row 0: its text is also in data/prompts/1.parquet, row 0",
    ),
    "prompts: the test set in letters of no table": (
        leaked(lambda text: text.replace("e", "ɘ").replace("a", "ᖾ")),
        f"{ITEMS}, row 0: its text, with other letters, is also in data/prompts/1.parquet, row 0",
    ),
    "items: easier": (on(ITEMS, "items", easier), f"{ITEMS}, row 0: messages is"),
    "items: easier, by a version that is not here": (
        both(on(ITEMS, "items", easier), older_generator),
        "items@held_out: other rows are made here, by reasoning-gym",
    ),
    "items: the answers that were given": (answers_as_said, f"{ITEMS}, row 0: answer is"),
    "sample: a response of choice to each prompt": (response(one_of_each), f"{SAMPLE}, row "),
    "sample: one response for half of them": (response(sampled_again), f"{SAMPLE}, row "),
    "sample: likelier than it was": (response(likelier), f"{SAMPLE}, row "),
    "sample: another temperature": (
        on(SAMPLE, "responses", lambda f: f.update({"temperature": [0.5] * len(f)}), lambda d: scored_again(d, "1")),
        f"{SAMPLE}, row 0: temperature is 0.5",
    ),
    "reward: weights": (weights("data/reward", head_moved), "data/reward: model.safetensors: tensor"),
    "reward: its record": (
        json_of("data/reward/reward.json", lambda m: m.update(model="another")),
        "data/reward/reward.json: model is 'another'",
    ),
    "reward: its accuracy": (
        json_of("data/reward/metrics.json", lambda m: m["held_out"]["accuracy"].update(value=0.99)),
        "data/reward/metrics.json: held_out: accuracy.value is 0.99",
    ),
    "reward: its tokenizer": (
        json_of("data/reward/tokenizer.json", lambda m: m["model"]["vocab"].update({"7": 12, "8": 11})),
        "data/reward/tokenizer.json: is not that of ./reward-model",
    ),
    "score: rewards": (
        on("data/score/1.parquet", "rewards", raised, listed_again),
        "data/score/1.parquet, row 0: reward is",
    ),
    "candidates: one lost": (candidate_lost, "data/candidates/2.parquet: 143 rows, computed again 144"),
    "lists: best for worst": (on("data/lists/1.parquet", "lists", roles), "data/lists/1.parquet, row 0: role is"),
    "reference: log-probabilities": (
        on("data/reference/1.parquet", "reference", lambda f: f.update(f["reference_logp"] + 7)),
        "data/reference/1.parquet, row ",
    ),
    "reference: lengths": (
        on("data/reference/2.parquet", "reference", lambda f: f.update(f["n_tokens"] + 1)),
        "data/reference/2.parquet, row ",
    ),
    "train: weights": (weights("data/policy/2", scaled), "data/policy/2: tensor model.layers.1.mlp.up_proj.weight"),
    "train: weights within reach": (weights("data/policy/2", nudged(1e-3)), "data/policy/2: model.safetensors: tensor"),
    "train: never trained": (replaced("2", "1"), "data/policy/2: model.safetensors: tensor"),
    "train: its template answers": (
        text_of(
            "data/policy/2/chat_template.jinja",
            "{% if add_generation_prompt %}",
            "{% set now = strftime_now('%Y') %}7{% if add_generation_prompt %}",
        ),
        "data/policy/2/chat_template.jinja: is not that of data/policy/1",
    ),
    "train: its tokenizer": (
        json_of("data/policy/2/tokenizer.json", lambda m: m["model"]["vocab"].update({"7": 12, "8": 11})),
        "data/policy/2/tokenizer.json: is not that of data/policy/1",
    ),
    "train: its end of a response": (
        json_of("data/policy/2/generation_config.json", lambda m: m.update(eos_token_id=[1, 5])),
        "data/policy/2/generation_config.json: eos_token_id",
    ),
    "train: its configuration": (
        json_of("data/policy/2/config.json", lambda m: m.update(rms_norm_eps=1.0)),
        "data/policy/2/config.json: rms_norm_eps is 1.0",
    ),
    "train: a file more": (
        lambda folder: (folder / "data/policy/2/chat_template.json").write_text("{}"),
        "data/policy/2/chat_template.json: there, unlike in data/policy/1",
    ),
    "train: its last loss": (curve_of("data/train/2/plots/metrics/loss.tsv", -1, "0.1"), "data/train/2: "),
    "train: further steps": (longer_curve, "data/train/2: curves of "),
    "generate: every greedy answer right": (right(greedy), WRONG_OUTPUT),
    "generate: one greedy answer right": (right(first_greedy), f"{OUTPUTS}, row 0: token "),
    "generate: one sample right": (right(one_sample), f"{OUTPUTS}, row 3: token "),
    "generate: every answer right, on another machine": (
        both(right(every), lambda folder: claimed(folder, cpu="Another", cores=96)),
        WRONG_OUTPUT,
    ),
    "generate: a worse start": (
        right(every, "0", lambda answer: f"{answer}0"),
        "data/generate/0-held_out.parquet, row ",
    ),
    "generate: another policy's": (exchanged_policies, WRONG_OUTPUT),
    "generate: the best sample for all": (on(OUTPUTS, "outputs", first_sample_for_all, evaluated_again), WRONG_OUTPUT),
    "generate: samples in another order": (on(OUTPUTS, "outputs", shuffled_samples, evaluated_again), WRONG_OUTPUT),
    "evaluate: called right": (called_right, "data/evaluate/2-held_out.parquet, row "),
    "evaluate: an accuracy": (
        json_of("data/evaluate/2-held_out.json", lambda m: m["greedy"].update(accuracy=0.75)),
        "data/evaluate/2-held_out.json: greedy.accuracy is 0.75",
    ),
    "evaluate: a narrower interval": (
        json_of("data/evaluate/2-held_out.json", lambda m: m["greedy"].update(high=0.01)),
        "data/evaluate/2-held_out.json: greedy.high is 0.01",
    ),
    "best_of_n: rewards": (
        on("data/evaluate/best_of_n-curve.parquet", "scored", raised),
        "data/evaluate/best_of_n-curve.parquet, row 0: reward is",
    ),
    "best_of_n: a point": (
        json_of("data/evaluate/best_of_n-curve.json", lambda m: m["points"][0]["score"].update(value=0.9)),
        "data/evaluate/best_of_n-curve.json: points.0.score.value is 0.9",
    ),
    **RETRIEVAL,
    "code: an objective": (
        code("larpo/objectives/ranking.py", '"""', '"""Mine. '),
        "larpo/objectives/ranking.py is not the auditor's and could touch train@1, train@2",
    ),
    "code: the frame": (
        code("tasks/frame/node.py", '"""', '"""Mine. '),
        "tasks/frame/node.py is not the auditor's and could touch policy",
    ),
    "code: a command": (
        code("dvc.yaml", "python -m tasks.train ${key}", "python -m tasks.train ${key} && true"),
        "dvc.yaml, stage train is not the auditor's and could touch train@1, train@2",
    ),
    "code: a loose comparison": (
        both(loose, committed, weights("data/policy/2", nudged(1e-3))),
        "data/policy/2: model.safetensors: tensor",
    ),
    "code: the page's template": (
        code("larpo/report/page.html.j2", "</main>", "<p>99.0 %</p></main>"),
        "report/index.html: other code laid it out than the auditor's",
    ),
}
AFTER: Forgeries = {
    "report: a number": (
        json_of("report/scores.json", lambda m: m["held_out"]["2"].update(greedy_accuracy=0.875)),
        "report/scores.json: ",
    ),
    "report: the page": (text_of("report/index.html", "held_out", "gsm8k"), "report/index.html: "),
    "report: a plotted curve": (text_of("report/training.csv", "1,1,", "1,9,"), "report/training.csv: "),
    "manifests: another seed": (
        lambda folder: each_manifest(folder, lambda m: m["params"].update(seed=3) if "seed" in m["params"] else None),
        "data/prompts/1.manifest.json: params: seed is 3",
    ),
}
"""Made after the report was written again."""
