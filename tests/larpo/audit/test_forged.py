"""Every kind of tampering is named where it lies, however well the author's hashes agree."""

import os
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from larpo import tables
from larpo.audit.bytes.check import check_bytes
from larpo.audit.lineage.check import check_lineage
from larpo.audit.open import AuditedRun
from larpo.audit.science.check import check_science
from tests.larpo.audit.forgery import (
    Change,
    Edit,
    agree,
    check_of,
    edit_json,
    edit_table,
    edit_text,
    put,
    quietly,
    table,
    text,
    tree,
)

Cases = dict[str, tuple[Change, str, str]]
"""What is done → how, the check that fails, how its first failure begins (`: …`, `, …`: after the edited file)."""
RECORD, EVALUATED = "data/lists/1.manifest.json", "data/evaluate/2-held_out.parquet"
PROMPTS, SAMPLE, REWARDS = "data/prompts/1.parquet", "data/sample/1.parquet", "data/score/1.parquet"
ITEMS, OUTPUTS = "data/items/held_out.parquet", "data/generate/2-held_out.parquet"
EASY = [{"role": "user", "content": "Say 7."}]
COMMITTED, APART = "code is committed", "no evaluation prompt in training"
ROWS, TEXTS = "as many as asked for", "texts are their tokens"

BYTES: Cases = {
    "a row": (table(REWARDS, "rewards", put("reward", 0, 0.123)), "outputs", ": "),
    "an output gone": (Edit("data/lists/2.parquet", Path.unlink), "outputs", ": missing"),
    "a file more": (Edit("data/policy/1/x", Path.touch), "outputs", ": not part of"),
    "a pipe": (Edit("data/policy/1/pipe", os.mkfifo), "outputs", ": not part of"),
    "a file less": (Edit("data/policy/2/config.json", Path.unlink), "outputs", ": missing"),
    "code": (text("larpo/lists/recipes.py", "\n", "\n\n"), "code and given data", ": hash"),
    "a parameter": (
        text("params.yaml", "per_iteration: 12", "per_iteration: 13"),
        "parameters",
        "inputs: params.yaml: prompts.per_iteration is 13, dvc.lock has 12",
    ),
    "a small parameter": (
        text("dvc.lock", "learning_rate: 0.001", "learning_rate: 0.0010000000001"),
        "parameters",
        "inputs: params.yaml: train.learning_rate is 0.001, dvc.lock has 0.0010000000001",
    ),
    "a command": (text("dvc.yaml", "-m tasks.lists ${key}", "-m tasks.lists ${key} -x"), "as declared", "lists@1: com"),
    "a dependency": (
        text("dvc.yaml", "deps: [tasks/prompts.py, ", "deps: ["),
        "as declared",
        "prompts@1: dependencies in dvc.lock: +tasks/prompts.py",
    ),
    "a node that never ran": (
        text("params.yaml", 'policies: ["0", "2"]', 'policies: ["0", "1", "2"]'),
        "every node was run",
        "generate@1-held_out: declared in dvc.yaml, not in dvc.lock",
    ),
    "a manifest": (tree(RECORD, lambda m: m["notes"].update(step0_loss=1.0)), "outputs", ": "),
}


def unlisted_changes(manifest: dict) -> None:
    manifest["git"]["dirty"] = True
    del manifest["git"]["changed"]


def another_source(folder: Path) -> None:
    """A model folder that still lies where the manifest says, with other bytes."""
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other/config.json").write_text("{}")
    edit_json(folder / "data/policy/0.manifest.json", lambda m: m["notes"]["sources"][0].update(name="other"))


def another_edge(folder: Path) -> None:
    locked = yaml.safe_load((folder / "dvc.lock").read_text("utf-8"))
    next(d for d in locked["stages"]["train@1"]["deps"] if d["path"] == "data/lists/1.parquet")["md5"] = "0000"
    (folder / "dvc.lock").write_text(yaml.safe_dump(locked, sort_keys=False), "utf-8")


def graph_never_committed(folder: Path) -> None:
    """dvc.yaml and dvc.lock agree on a command; the commit that the manifests name has another."""
    for name in ("dvc.yaml", "dvc.lock"):
        edit_text(folder / name, "python -m tasks.report", "python -m tasks.report && true")
    assert check_of(folder, "bytes", "as declared").verdict == "holds"


def git(**facts: object) -> Edit:
    return tree(RECORD, lambda m: m["git"].update(facts))


def source(**facts: object) -> Edit:
    return tree("data/prompts/1.manifest.json", lambda m: m["notes"]["sources"][0].update(facts))


LINEAGE: Cases = {
    "another commit": (git(commit="0" * 40), COMMITTED, "lists@1: {folder}: commit 000000000000 is not in this repo"),
    "no commit": (git(commit=None), COMMITTED, "lists@1: made outside Git"),
    "changed code": (
        git(dirty=True, changed=["docs/x.md", "tasks/frame/node.py"]),
        COMMITTED,
        "lists@1: ran with uncommitted changes in tasks/frame/node.py",
    ),
    "changes not listed": (
        tree(RECORD, unlisted_changes),
        COMMITTED,
        "lists@1: ran with uncommitted changes, and the manifest does not say which",
    ),
    "a graph that was never committed": (graph_never_committed, COMMITTED, "report: dvc.yaml in commit "),
    "other parameters": (
        tree("data/train/2.manifest.json", lambda m: m["params"]["train"].update(learning_rate=0.5)),
        "manifests' parameters",
        ": params: train.learning_rate is 0.5, params.yaml has 0.001",
    ),
    "a file of the machine": (
        tree(RECORD, lambda m: m["inputs"].update({"/etc/hostname": "0"})),
        "manifests' hashes",
        ": inputs /etc/hostname is none of the node's in dvc.lock",
    ),
    "another node's record": (
        tree("data/train/2.manifest.json", lambda m: m.update(node="train@1")),
        "manifests' hashes",
        ": is the record of 'train@1'",
    ),
    "an output less": (
        tree(RECORD, lambda m: m.update(outputs={})),
        "manifests' hashes",
        ": outputs are not those of dvc.lock (data/lists/1.parquet)",
    ),
    "no source": (
        tree("data/policy/0.manifest.json", lambda m: m["notes"].update(sources=[])),
        "sources",
        "policy: its manifest does not name ",
    ),
    "a source of no name": (source(kind="file", name="x" * 5000), "sources", f"prompts@1: {'x' * 80}: [Errno 36] "),
    "a source that changed": (another_source, "sources", "policy: other: hash "),
    "an edge": (another_edge, "inputs are their producers' outputs", "train@1: read data/lists/1.parquet 0000, lists"),
}
# Numbers: every hash can be made to agree.


def lost_row(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[1:].reset_index(drop=True)


def exchanged(frame: pd.DataFrame) -> None:
    frame.loc[[0, 1], "response_id"] = frame.loc[[1, 0], "response_id"].to_numpy()


def raised(frame: pd.DataFrame) -> None:
    frame.loc[5, "reward"] += 0.25


def called_correct(frame: pd.DataFrame) -> None:
    frame.loc[int((frame["score"] == 0).idxmax()), "score"] = 1.0


def other_end(frame: pd.DataFrame) -> None:
    frame.loc[0, "finish_reason"] = {"stop": "length", "length": "stop"}[frame.loc[0, "finish_reason"]]


def first_loss(folder: Path) -> None:
    path = folder / "data/train/1/plots/metrics/loss.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "1\t0.31", *lines[2:]]) + "\n")


def quiet(name: str, old: bytes, new: bytes) -> Edit:
    return Edit(name, lambda path: quietly(path, lambda content: content.replace(old, new)))


def fewer_samples(folder: Path) -> None:
    """The last sample of an item, gone from the outputs and from their scores."""
    for path, kind in ((OUTPUTS, "outputs"), (EVALUATED, "evaluations")):
        edit_table(folder / path, kind, lambda frame: frame.iloc[:-1])


def leak(folder: Path, change=lambda asked: f"  {asked.upper()}?") -> None:
    """Make the first training prompt the text of the first evaluation item, changed."""
    item = tables.read("items", folder / ITEMS)["messages"][0][-1]["content"]

    def replace(frame: pd.DataFrame) -> None:
        frame.at[0, "messages"] = [*frame["messages"][0][:-1], {"role": "user", "content": change(item)}]

    edit_table(folder / "data/prompts/1.parquet", "prompts", replace)


def leak_in_example(folder: Path) -> None:
    """An evaluation item as the worked example of a training prompt."""
    item = tables.read("items", folder / ITEMS).at[3, "messages"]

    def replace(frame: pd.DataFrame) -> None:
        frame.at[2, "messages"] = [*item, {"role": "assistant", "content": "42"}, *frame.at[2, "messages"]]

    edit_table(folder / "data/prompts/2.parquet", "prompts", replace)


NUMBERS: Cases = {
    "a reward": (table(REWARDS, "rewards", raised), "rewards", ", row 5: reward is"),
    "a lost candidate": (
        table("data/candidates/2.parquet", "candidates", lost_row),
        "candidates",
        ": 143 rows, computed again 144",
    ),
    "an exchanged pair": (table("data/lists/1.parquet", "lists", exchanged), "lists", ", row 0: response_id is"),
    "a log-probability": (
        table("data/reference/1.parquet", "reference", lambda f: f.update(f["reference_logp"] + 0.5)),
        "reference log-probabilities",
        ", row",
    ),
    "a sampler's log-probability": (
        table("data/candidates/2.parquet", "candidates", lambda f: f.update(f["logp"] - 0.5)),
        "reference log-probabilities",
        "data/reference/2.manifest.json: notes: drift.",
    ),
    "a loss at step 0": (
        tree("data/train/1.manifest.json", lambda m: m["notes"].update(step0_loss=0.69)),
        "losses at step 0",
        ": notes.step0_loss is 0.69",
    ),
    "a curve": (first_loss, "losses at step 0", "data/train/1: loss of step 1 is 0.31"),
    "a wrong answer called right": (
        table(EVALUATED, "evaluations", called_correct),
        "scores of raw outputs",
        ", row 0: score is 1.0, computed again 0.0",
    ),
    "an accuracy": (
        tree("data/evaluate/2-held_out.json", lambda m: m["greedy"].update(accuracy=0.75)),
        "metrics",
        ": greedy.accuracy is 0.75, computed again 0.0",
    ),
    "a reported number": (
        tree("report/scores.json", lambda m: m["held_out"]["2"].update(pass_k=0.875)),
        "report",
        ": ",
    ),
    "a trained prompt": (leak, APART, f"{ITEMS}, row 0: its text is also in {PROMPTS}, row 0"),
}
ASKED: Cases = {
    "an example": (leak_in_example, APART, f"{ITEMS}, row 3: its text is also in data/prompts/2.parquet, row 2"),
    "fewer items": (table(ITEMS, "items", lambda f: f.iloc[:-1]), "items", ": 7 rows, computed again 8"),
    "another prompt's id": (table(PROMPTS, "prompts", put("messages", 4, EASY)), "ids", ", row 4: prompt_id is"),
    "other tokens": (table(SAMPLE, "responses", put("token_ids", 3, [5, 6])), "ids", ", row 3: response_id is"),
    "a seed": (table(SAMPLE, "responses", put("seed", 7, 5)), ROWS, ", row 7: seed is 5"),
    "a log-probability of a draw": (
        table(SAMPLE, "responses", put("logp", 7, 0.5)),
        ROWS,
        ", row 7: logp is 0.5; expected at most 0",
    ),
    "an iteration": (table(SAMPLE, "responses", put("iteration", 7, 2)), ROWS, ", row 7: iteration is 2"),
    "samples left out": (fewer_samples, ROWS, f"{OUTPUTS}: 39 rows, computed again 40"),
    "a text": (table(OUTPUTS, "outputs", put("text", 2, "42")), TEXTS, ", row 2: text is '42'"),
    "an output's end": (table(OUTPUTS, "outputs", other_end), TEXTS, ", row 0: finish_reason is"),
    "an output's prompt": (
        table(OUTPUTS, "outputs", put("prompt_token_ids", 6, [5, 6])),
        TEXTS,
        ", row 6: prompt_token_ids are not those of its prompt",
    ),
    "a length": (table(OUTPUTS, "outputs", put("n_tokens", 6, 99)), TEXTS, ", row 6: n_tokens is 99"),
    "an expected answer": (
        table(EVALUATED, "evaluations", put("answer", 5, "0")),
        "scores of raw outputs",
        ", row 5: answer is '0'",
    ),
    "a reward's name": (
        table(REWARDS, "rewards", put("reward_name", 5, "math")),
        "rewards",
        ", row 5: reward_name is 'math'",
    ),
    "the page": (quiet("report/index.html", b"Pass@1", b"Pass@2"), "report", ": "),
    "a plotted curve": (quiet("report/training.csv", b"1,1,", b"1,9,"), "report", ": "),
}
ALL = {
    (part, case): cases[case]
    for part, cases in (("bytes", BYTES), ("lineage", LINEAGE), ("science", NUMBERS), ("science", ASKED))
    for case in cases
}


def start(change: Change, words: str) -> str:
    return change.name + words if words[0] in ":," else words


@pytest.mark.parametrize(("part", "case"), ALL)
def test_a_forgery_is_named(copy, part, case):
    change, name, words = ALL[part, case]
    change(copy.folder)
    check = check_of(copy.folder, part, name)
    assert check.verdict == "fails", check
    assert check.failures[0].startswith(start(change, words).format(folder=copy.folder)), check


def test_hashes_that_agree_hide_no_number(copy):
    """All of NUMBERS in one run whose manifests and dvc.lock say what lies there: bytes and lineage hold."""
    for change, *_ in NUMBERS.values():
        change(copy.folder)
    agree(copy.folder)
    run = AuditedRun(copy.folder)
    hashes = {c.name: c.verdict for c in [*check_bytes(run), *check_lineage(run)]}
    agreeing = ("outputs", "folders that nodes read", "inputs are their producers' outputs", "manifests' hashes")
    assert {hashes[name] for name in agreeing} == {"holds"}, "the forgery is not complete"
    checks = {c.name: c for c in check_science(run)}
    for case, (change, name, words) in NUMBERS.items():
        file = re.split("[:,]", start(change, words))[0]
        # The report is not even made again where the prompts are forged as well.
        named = name == "report" or any(line.startswith(file) for line in checks[name].failures)
        assert named and checks[name].verdict == "fails", (case, checks[name])


PROBLEM = "Mia packs {} boxes of eggs with a dozen in each and breaks five on the way. How many eggs arrive whole?"


@pytest.mark.parametrize(("boxes", "verdict"), [("seven", "fails"), ("nine", "holds")])
def test_a_word_problem_of_the_benchmark_in_a_training_prompt(copy, boxes, verdict):
    """As when GSM8K's rows are trained on: the benchmark and the prompts put different instructions around them.
    Another problem of the same kind in the same instructions is none of the benchmark's."""
    asked = f"Question: {PROBLEM.format('seven')}\nLet's think step by step. Answer:"
    trained = f"Solve this.\n\n{PROBLEM.format(boxes)} End with the final number after ####."
    for name, kind, text_ in ((ITEMS, "items", asked), (PROMPTS, "prompts", trained)):
        edit_table(copy.folder / name, kind, put("messages", 3, [{"role": "user", "content": text_}]))
    check = check_of(copy.folder, "science", APART)
    assert check.verdict == verdict, check
    named = (f"{ITEMS}, row 3: its question stands in {PROMPTS}, row 3",)
    assert check.failures == (named if verdict == "fails" else ())


def test_a_leak_that_is_only_near_is_counted(copy):
    name = "near-duplicates of evaluation prompts"
    before = check_of(copy.folder, "science", name)
    leak(copy.folder, lambda asked: f"{asked} again")
    after = check_of(copy.folder, "science", name)
    assert before.verdict == after.verdict == "counted"
    assert before.detail != after.detail and "again" in after.detail


def test_another_version_is_asked_only_where_the_rows_differ(copy):
    """A version is a claim of the manifest: the rows are made again, and what differs then is not checked, nor held."""
    path = copy.folder / "data/items/held_out.manifest.json"
    edit_json(path, lambda m: m["packages"].update({"reasoning-gym": "0.0.1"}))
    assert check_of(copy.folder, "science", "items").verdict == "holds"
    edit_table(copy.folder / ITEMS, "items", put("messages", 1, EASY))
    check = check_of(copy.folder, "science", "items")
    assert check.verdict == "not checked" and check.behind[0].startswith("items@held_out: other rows are made here, by")


def test_a_table_that_does_not_fit_ends_one_check(copy):
    """A stranger's tables may pass their schema and still be impossible."""
    edit_table(copy.folder / OUTPUTS, "outputs", put("token_ids", 0, [-5, 2**31 - 1]))
    checks = {c.name: c for c in check_science(AuditedRun(copy.folder))}
    broken = checks[TEXTS]
    assert broken.verdict == "fails" and broken.failures[0].startswith("OverflowError: "), broken
    assert checks["report"].verdict == checks["rewards"].verdict == "holds"
