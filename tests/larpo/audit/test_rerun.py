"""Nodes of a finished run executed again: all kinds make the same bytes, what was tampered with is caught."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from larpo import tables
from larpo.audit.chain import NAME as CHAIN
from larpo.audit.draw import draw
from larpo.audit.open import AuditedRun
from larpo.audit.rerun.clone import copy as copy_file
from larpo.audit.rerun.clone import temporary
from larpo.audit.rerun.nodes import choose, run_again
from larpo.audit.results import Check
from larpo.audit.science.check import check_numbers
from larpo.errors import UserError
from larpo.hashing import file_hash
from larpo.workspace.dvc import kind_of
from tests.chat_server import ChatServer
from tests.conftest import ROOT
from tests.larpo.audit.forgery import edit_json, flip

QUESTIONS = (
    f"{{benchmark: mixeval, data: {ROOT / 'data/samples/questions'}, judge: j, generate: {{max_new_tokens: 4}}, "
    "options: {parser: model}}"
)


ONE = dict.fromkeys(["prompts", "sample", "score", "candidates", "lists", "reference", "train"], "1")
ONE |= {"items": "held_out", "generate": "2-held_out", "evaluate": "2-held_out"}


@pytest.fixture
def again(tmp_path, warm_nodes) -> Callable[..., dict[str, Check]]:
    def call(folder: Path, *nodes: str) -> dict[str, Check]:
        run = AuditedRun(folder)
        checks = run_again(run, choose(run, nodes, False), print, workspace=tmp_path / "work", variables=warm_nodes)
        assert not list((tmp_path / "work").iterdir()), "temporary folders are removed"
        return {check.name: check for check in checks}

    return call


def verdicts(folder: Path) -> Check:
    run = AuditedRun(folder)
    run.evaluated = [("q", "0")]  # of the others nothing was made
    return check_numbers(run, "scores of raw outputs")


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and hash of every file, those of Git and DVC too."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, hashlib.md5(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_one_of_each_kind_is_bit_identical_and_the_run_is_not_touched(shared, again):
    before = contents(shared.folder)
    # `inputs` looks outside: its records are compared with what the nodes took, and not made again.
    kinds = list(dict.fromkeys(kind_of(name) for name in AuditedRun(shared.folder).lock if name != "inputs"))
    checks = again(shared.folder, *(k if k in ("policy", "reward", "report") else f"{k}@{ONE[k]}" for k in kinds))
    chain = checks.pop(CHAIN)
    assert chain.behind == (), chain
    assert list(map(kind_of, checks)) == kinds
    assert {c.verdict for c in checks.values()} == {"holds"}, checks
    assert all(c.detail.startswith("bit-identical; ") for c in checks.values()), checks
    assert {kind_of(n): c.checked for n, c in checks.items()}["train"] == 2  # weights and curves
    assert contents(shared.folder) == before


def test_what_was_tampered_with_is_caught_though_dvc_lock_agrees(copy, again):
    data = copy.folder / "data"
    sampled = tables.read("responses", data / "sample/1.parquet")
    sampled.at[17, "text"] = "777"
    tables.write(sampled, "responses", data / "sample/1.parquet")
    lists = tables.read("lists", data / "lists/1.parquet")
    lists.loc[[4, 5], "role"] = lists["role"].iloc[[5, 4]].tolist()
    lists.at[3, "reward"] += 1e-9
    tables.write(lists, "lists", data / "lists/1.parquet")
    weights = load_file(data / "policy/2/model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    was, weights[name][3, 5] = float(weights[name][3, 5]), 0.5
    save_file(weights, data / "policy/2/model.safetensors", metadata={"format": "pt"})
    copy.dvc("commit", "-f")
    checks = again(copy.folder, "sample@1", "lists@1", "train@2", "prompts@1")
    told = {n: c.failures[0] for n, c in checks.items() if c.verdict == "fails"}
    assert set(told) == {"sample@1", "lists@1", "train@2"} and checks["prompts@1"].verdict == "holds"
    row = f"row 17 (response_id {sampled['response_id'][17]}), column text: expected '777', found "
    assert told["sample@1"].startswith(f"data/sample/1.parquet: {row}")
    assert told["lists@1"].startswith("data/lists/1.parquet: row 3 (") and "column reward: expected" in told["lists@1"]
    line = f"data/policy/2: model.safetensors: tensor {name}, index [3, 5]: expected 0.5, found {was}; 1 of "
    assert told["train@2"].startswith(line)


def test_inputs_and_code_are_those_of_dvc_lock(copy, again):
    """An input that was changed behind DVC's back, one that is gone, and code that Git does not hold."""
    folder = copy.folder
    lock = yaml.safe_load((folder / "dvc.lock").read_text())

    def relock(node: str, path: str, md5: str) -> None:
        next(dep for dep in lock["stages"][node]["deps"] if dep["path"] == path)["md5"] = md5

    prompts = folder / "data/prompts/2.parquet"
    flip(prompts)
    (folder / "data/score/1.parquet").unlink()
    shutil.rmtree(folder / "data/generate")
    module = folder / "tasks/items.py"
    module.write_text(module.read_text().replace("def main(", "MINE = 1\n\n\ndef main("))
    relock("items@held_out", "tasks/items.py", file_hash(module))
    relock("prompts@1", "tasks/prompts.py", "0" * 32)
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    edit_json(folder / "data/lists/1.manifest.json", lambda m: m.update(git={"commit": "a" * 40, "dirty": False}))
    checks = again(
        folder, "score@2", "score@1", "evaluate@0-held_out", "items@held_out", "prompts@1", "lists@1", "reward"
    )
    found = {name: (c.verdict, c.failures[0] if c.failures else c.detail) for name, c in checks.items()}
    assert found["score@2"][0] == "fails" and found["score@2"][1].startswith(
        f"data/prompts/2.parquet: md5 {file_hash(prompts)}, dvc.lock records "
    )
    assert found["score@1"] == ("not checked", "data/score/1.parquet is not here; fetch it with `dvc pull`")
    missing = "data/generate/0-held_out.parquet is not here; fetch it with `dvc pull`"
    assert found["evaluate@0-held_out"] == ("not checked", missing)
    assert found["items@held_out"][0] == "holds"
    assert "uncommitted, taken from the run's folder: tasks/items.py" in found["items@held_out"][1]
    assert found["prompts@1"][0] == "fails" and found["prompts@1"][1].startswith("tasks/prompts.py: md5 ")
    assert found["lists@1"] == ("not checked", "commit aaaaaaaaaaaa of its manifest is not in the repository")
    assert found["reward"][0] == "holds"


def test_nothing_is_written_through_what_parameters_name(copy, again):
    """A folder of the run named as data, which is linked where Git does not hold it, and inputs that lie in it."""
    copy.set('policy: {model: "', f'policy: {{model: "{copy.folder}/data/lists", revision: "')
    path = copy.folder / "data/prompts/2.manifest.json"
    path.write_text("[1]")
    before = contents(copy.folder)
    checks = again(copy.folder, "reference@1", "prompts@2")
    assert checks["reference@1"].verdict == "holds"
    assert checks["prompts@2"].verdict == "fails" and "cannot be read" in checks["prompts@2"].detail
    assert contents(copy.folder) == before


def test_a_node_that_fails_here_is_told_apart_from_one_that_cannot_run_here(copy, again):
    """Without vLLM the sampler cannot run; a commit whose code fails is the run's own fault."""
    copy.set("name: transformers", "name: vllm")
    module = copy.folder / "tasks/prompts.py"
    module.write_text("raise OSError('the disk of the other machine')\n")
    copy.run("git", "commit", "-qam", "other code")
    commit = copy.run("git", "rev-parse", "HEAD").stdout.strip()
    edit_json(copy.folder / "data/prompts/1.manifest.json", lambda m: m.update(git={"commit": commit, "dirty": False}))
    lock = yaml.safe_load((copy.folder / "dvc.lock").read_text())
    next(d for d in lock["stages"]["prompts@1"]["deps"] if d["path"] == "tasks/prompts.py")["md5"] = file_hash(module)
    (copy.folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    checks = again(copy.folder, "sample@1", "prompts@1")
    assert checks["sample@1"].verdict == "not checked" and "'vllm' is not installed here" in checks["sample@1"].detail
    assert checks["prompts@1"].verdict == "fails"
    assert checks["prompts@1"].detail == "executed again it ends with exit status 1"
    assert checks["prompts@1"].failures == ("OSError: the disk of the other machine",)


def test_a_judge_is_never_asked_again(copy, again, warm_nodes, monkeypatch):
    """28 questions, 28 requests when the run was made; none afterwards, whether the recorded answers are all there,
    some of them or none."""
    copy.set("held_out: {items: 8", f"q: {QUESTIONS}\n  held_out: {{items: 8")
    with ChatServer(lambda body: "[[0.5]]" if "Reference" in body["messages"][-1]["content"] else "[[A]]") as server:
        copy.set("judges: {}", f"judges: {{j: {{model: judge, base_url: '{server.url}'}}}}")
        copy.variables = warm_nodes | {"LARPO_JUDGEMENTS": "judgements"}
        copy.dvc("repro", "evaluate@0-q")
        (store,) = (copy.folder / "judgements").iterdir()
        lines = store.read_text().splitlines(keepends=True)
        assert len(server.bodies) == len(lines) == 28
        found = again(copy.folder, "evaluate@0-q")["evaluate@0-q"]
        assert found.verdict == "holds" and found.detail.startswith("bit-identical; ")
        assert "recorded with uncommitted changes" in found.detail
        found = verdicts(copy.folder)
        assert found.verdict == "holds" and len(server.bodies) == 28, found
        forged = copy.folder / "data/evaluate/0-q.parquet"
        honest = tables.read("evaluations", forged)
        row = int(honest["score"].to_numpy().argmin())
        tables.write(
            honest.assign(score=[1.0 if i == row else s for i, s in enumerate(honest["score"])]), "evaluations", forged
        )
        assert verdicts(copy.folder).failures[0].startswith(f"data/evaluate/0-q.parquet, row {row}: score is 1.0")
        tables.write(honest, "evaluations", forged)
        store.write_text("".join(line.replace("[[A]]", "[[B]]") for line in lines))
        found = verdicts(copy.folder)
        assert found.verdict == "fails" and "computed again 'B'" in found.failures[0], found
        store.write_text("".join(lines[:-1]))
        found = verdicts(copy.folder)
        assert "1 of 28 replies of judge j are not among the recorded ones" in found.behind[0], found
        found = again(copy.folder, "evaluate@0-q", "generate@0-q")
        assert (
            found["evaluate@0-q"].verdict == "not checked" and "not among the recorded" in found["evaluate@0-q"].detail
        )
        assert found["generate@0-q"].verdict == "holds"
        assert store.read_text() == "".join(lines[:-1])
        store.unlink()
        monkeypatch.setenv("LARPO_JUDGEMENTS", str(copy.folder / "nowhere"))
        found = again(copy.folder, "evaluate@0-q")["evaluate@0-q"]
        assert found.verdict == "not checked" and "no recorded answers are at hand" in found.detail
        assert len(server.bodies) == 28


def test_which_nodes(honest):
    with pytest.raises(UserError, match=r"node 'trian@1' is not in .*dvc\.lock.*train@1"):
        choose(honest, ["trian@1"], False)
    assert choose(honest, None, True) == honest.nodes
    assert [n.name for n in choose(honest, ["lists", "sample@2"], False)] == ["lists@1", "sample@2", "lists@2"]
    honest.draw = draw(3)
    drawn = [[n.name for n in choose(honest, None, False)] for _ in range(2)]
    assert drawn[0] == drawn[1], "the same seed draws the same"
    others = set()
    for seed in range(20):
        honest.draw = draw(seed)
        other, *needed = [n.name for n in choose(honest, None, False)]
        assert set(needed) == {"policy", "train@1", "train@2"} and kind_of(needed[0]) != kind_of(needed[1])
        others.add(other)
    assert len(others) > 8, "and nobody can foresee it"


def hold(workspace: Path, ready) -> None:
    with temporary(workspace) as mine:
        (mine / "1").mkdir()
        ready.set()
        time.sleep(60)


def test_what_a_killed_audit_left_is_removed_and_what_a_running_one_uses_is_not(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(20)
    (left,) = tmp_path.iterdir()
    with temporary(tmp_path) as mine:
        assert (left / "1").is_dir() and mine != left
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert list(tmp_path.iterdir()) == [left]
    with temporary(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert not list(tmp_path.iterdir())


def test_a_copy_is_no_link(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    copy_file(tmp_path / "a", tmp_path / "b/c")
    with open(tmp_path / "b/c", "r+b") as file:
        file.write(b"xyz")
    assert (tmp_path / "a").read_bytes() == bytes(range(256)) * 5000
