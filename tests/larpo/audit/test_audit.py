"""The audit on a real run: it holds as it is, and every kind of tampering is named where it lies."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from larpo.audit.bytes.check import check_bytes
from larpo.audit.lineage.check import check_lineage
from larpo.audit.open import PACKED, AuditedRun, open_run
from larpo.audit.results import Check
from larpo.audit.run import Again, audit, is_own, parts_of, reproducibility_card
from larpo.audit.science.check import BEST_OF_N, CHECKS
from larpo.errors import UserError
from tests.conftest import Project
from tests.larpo.audit.forgery import agree, edit_json, edit_table, flip


def parts(folder: Path) -> dict[str, Check]:
    run = AuditedRun(folder)
    return {c.name: c for c in [*check_bytes(run), *check_lineage(run)]}


def science(folder: Path, name: str) -> Check:
    with contextlib.chdir(folder):
        return CHECKS[name](AuditedRun(folder), name)


@pytest.fixture
def copy(finished_project: Project, tmp_path: Path) -> Project:
    return finished_project.copy(tmp_path / "copy")


def test_an_honest_run_holds(finished_project):
    found = parts(finished_project.folder)
    assert {name: c.verdict for name, c in found.items()} == dict.fromkeys(found, "holds")
    assert found["outputs"].checked == sum(
        e.files or 1 for n in AuditedRun(finished_project.folder).nodes for e in n.outs.values()
    )
    for name in set(CHECKS) - {BEST_OF_N}:
        check = science(finished_project.folder, name)
        expected = "counted" if name.startswith("near-duplicates") else "holds"
        assert (check.verdict, check.failures) == (expected, ()) and check.checked > 0, check


def test_hashes_are_dvcs_own(finished_project):
    run = AuditedRun(finished_project.folder)
    assert len(run.nodes) == len(run.graph) >= 20
    for node in run.nodes:
        for path, entry in {**node.deps, **node.outs}.items():
            assert run.md5(path) == entry.md5, path


def test_a_flipped_bit_with_the_old_time_stamp(copy):
    copy.dvc("status")  # DVC's database now knows the files
    offset = flip(copy.folder / "data/policy/1/model.safetensors")
    assert "up to date" in copy.dvc("status").stdout, "DVC believes the time stamp"
    check = parts(copy.folder)["outputs"]
    assert check.verdict == "fails" and len(check.failures) == 1
    assert check.failures[0].startswith("data/policy/1/model.safetensors: ")
    # The same bit without a copy in the cache: the file is named, and why not the byte.
    run = AuditedRun(copy.folder)
    listing = run.listing(run.lock["train@1"].outs["data/policy/1"])
    assert listing is not None
    run.object(listing["model.safetensors"]).unlink()
    (line,) = parts(copy.folder)["outputs"].failures
    assert line.startswith("data/policy/1/model.safetensors: hash") and "no copy in the cache" in line
    assert offset > 0


def first_row(frame):
    frame.loc[0, "reward"] = 0.123


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Edit one text file of the run."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), "utf-8")

    return change


BYTES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # name: (what is done, check that fails, how its first failure begins)
    "a row": (
        lambda f: edit_table(f / "data/score/1.parquet", "rewards", first_row),
        "outputs",
        "data/score/1.parquet: ",
    ),
    "an output gone": (lambda f: (f / "data/lists/2.parquet").unlink(), "outputs", "data/lists/2.parquet: missing"),
    "a file more": (
        lambda f: (f / "data/policy/1/extra.bin").write_text("x"),
        "outputs",
        "data/policy/1/extra.bin: not part of",
    ),
    "a pipe": (lambda f: os.mkfifo(f / "data/policy/1/pipe"), "outputs", "data/policy/1/pipe: not part of"),
    "a file less": (
        lambda f: (f / "data/policy/2/config.json").unlink(),
        "outputs",
        "data/policy/2/config.json: missing",
    ),
    "code": (replaced("larpo/lists/recipes.py", "\n", "\n\n"), "code and given data", "larpo/lists/recipes.py: hash"),
    "a parameter": (
        replaced("params.yaml", "per_iteration: 12", "per_iteration: 13"),
        "parameters",
        "prompts@1: params.yaml: prompts.per_iteration is 13, dvc.lock has 12",
    ),
    "a command": (
        replaced("dvc.yaml", "python -m tasks.lists ${key}", "python -m tasks.lists ${key} --else"),
        "as declared",
        "lists@1: command",
    ),
    "a node that never ran": (
        replaced("params.yaml", 'policies: ["0", "2"]', 'policies: ["0", "1", "2"]'),
        "every node was run",
        "generate@1-held_out: declared in dvc.yaml, not in dvc.lock",
    ),
    "a manifest": (
        lambda f: edit_json(f / "data/train/1.manifest.json", lambda m: m["notes"].update(step0_loss=1.0)),
        "outputs",
        "data/train/1.manifest.json: ",
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_changed_bytes_are_named(copy, case):
    change, name, words = BYTES[case]
    change(copy.folder)
    check = parts(copy.folder)[name]
    assert check.verdict == "fails" and check.failures[0].startswith(words), check


def test_a_broken_cache_object(copy):
    run = AuditedRun(copy.folder)
    place = run.object(run.lock["lists@1"].outs["data/lists/1.parquet"].md5)
    place.chmod(0o644)
    flip(place)
    check = parts(copy.folder)["DVC's cache"]
    assert check.verdict == "fails" and check.failures[0].startswith(f"{place}: ")


def test_a_number_is_the_same_however_it_is_written(copy):
    """DVC writes 2e-05, which PyYAML takes for text; params.yaml may say 2.0e-5."""
    replaced("params.yaml", "learning_rate: 1.0e-3", "learning_rate: 1.0e-03")(copy.folder)
    replaced("dvc.lock", "learning_rate: 0.001", "learning_rate: 1e-03")(copy.folder)
    assert parts(copy.folder)["parameters"].verdict == "holds"
    replaced("dvc.lock", "learning_rate: 1e-03", "learning_rate: 1e-04")(copy.folder)
    assert parts(copy.folder)["parameters"].failures[0].endswith("train.learning_rate is 0.001, dvc.lock has 0.0001")


MANIFESTS: dict[str, tuple[str, Callable[[dict], None], str, str]] = {
    "another commit": (
        "data/lists/1.manifest.json",
        lambda m: m["git"].update(commit="0" * 40),
        "code is committed",
        "commit 000000000000 is not in this repository",
    ),
    "no commit": (
        "data/lists/1.manifest.json",
        lambda m: m["git"].update(commit=None),
        "code is committed",
        "outside Git",
    ),
    "changed code": (
        "data/lists/1.manifest.json",
        lambda m: m["git"].update(dirty=True, changed=["docs/x.md", "tasks/frame/node.py"]),
        "code is committed",
        "uncommitted changes in tasks/frame/node.py",
    ),
    "changes not listed": (
        "data/lists/1.manifest.json",
        lambda m: (m["git"].update(dirty=True), m["git"].pop("changed")),
        "code is committed",
        "does not say which",
    ),
    "other parameters": (
        "data/train/2.manifest.json",
        lambda m: m["params"]["train"].update(learning_rate=0.5),
        "manifests' parameters",
        "train.learning_rate is 0.5, params.yaml has 0.001",
    ),
    "a file of the machine": (
        "data/lists/1.manifest.json",
        lambda m: m["inputs"].update({"/etc/hostname": "0"}),
        "manifests' hashes",
        "inputs /etc/hostname is none of the node's in dvc.lock",
    ),
    "a source of no name": (
        "data/prompts/1.manifest.json",
        lambda m: m["notes"]["sources"][0].update(kind="file", name="x" * 5000),
        "sources",
        "File name too long",
    ),
    "another node's record": (
        "data/train/2.manifest.json",
        lambda m: m.update(node="train@1"),
        "manifests' hashes",
        "is the record of 'train@1'",
    ),
    "no source": (
        "data/policy/0.manifest.json",
        lambda m: m["notes"].update(sources=[]),
        "sources",
        "policy: its manifest names no source",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_does_not_fit(copy, case):
    path, change, name, words = MANIFESTS[case]
    edit_json(copy.folder / path, change)
    check = parts(copy.folder)[name]
    assert check.verdict == "fails" and words in check.failures[0], check


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(git=[]), "git: "),
        (lambda m: m.update(inputs=3), "inputs: "),
        (lambda m: m["notes"].update(sources=[{"name": 1}]), "notes.sources.0.name: "),
        (lambda m: m.update(seconds="long"), "seconds: "),
        (lambda m: m.pop("node"), "node: "),
        (lambda m: m["git"].update(commit="--output=x"), "git.commit: "),
        (lambda m: m.update(hardware={"memory_bytes": "much"}), "hardware.memory_bytes: "),
        (lambda m: m.update(seconds=float("nan")), "seconds: "),
    ],
)
def test_a_manifest_of_another_shape_is_told_in_one_line(copy, change, words):
    """It may have been written by anyone: every part of the audit goes on without it."""
    edit_json(copy.folder / "data/lists/1.manifest.json", change)
    check = parts(copy.folder)["manifests"]
    assert check.verdict == "fails" and len(check.failures) == 1
    assert check.failures[0].startswith(f"data/lists/1.manifest.json: not a node's manifest: {words}")
    assert len(reproducibility_card(AuditedRun(copy.folder), [check])) == 7


def test_nodes_are_executed_for_ones_own_run_only_unless_asked(finished_project, copy, monkeypatch):
    """Executing a stranger's run runs a stranger's code."""
    project = finished_project.folder
    assert is_own(project, None) and is_own(project, "HEAD") and is_own(project, str(project))
    assert not is_own(project, str(copy.folder))
    run = AuditedRun(copy.folder)
    (check,) = parts_of(run, Again(), False, print)["again"]()
    assert check.verdict == "not checked" and "--again" in check.detail
    assert "again" not in parts_of(run, Again(asked=False), True, print)
    assert Again().wanted(True) and Again(asked=True).wanted(False) and Again(("lists",)).wanted(False)
    with pytest.raises(UserError, match=r"node 'lits@1' is not in .*did you mean 'lists@1'"):
        parts_of(run, Again(("lits@1",)), False, print)


def test_code_that_was_run_but_never_committed(copy):
    """The lock and the folder agree; the commit that the manifests name holds other code."""
    path = copy.folder / "larpo/lists/recipes.py"
    path.write_text(path.read_text() + "# changed\n")
    agree(copy)
    found = parts(copy.folder)
    assert found["code and given data"].verdict == "holds"
    assert [f.split(" in commit")[0] for f in found["code is committed"].failures] == [
        f"lists@{s}: ran larpo/lists/recipes.py as it is not" for s in (1, 2)
    ]


def test_a_graph_that_was_never_committed(copy):
    """dvc.yaml and dvc.lock agree on a command; the commit that the manifests name has another."""
    for name in ("dvc.yaml", "dvc.lock"):
        path = copy.folder / name
        path.write_text(path.read_text().replace("python -m tasks.report", "python -m tasks.report && true"))
    found = parts(copy.folder)
    assert found["as declared"].verdict == "holds"
    (line,) = found["code is committed"].failures
    assert line.startswith("report: dvc.yaml in commit ") and "declares its stage otherwise" in line


def test_whatever_a_run_holds_its_audit_ends_with_a_verdict(copy, tmp_path):
    """Parameters lie in a file that is not there, and a file's name steers a terminal."""
    (copy.folder / "data/policy/1/\x1b[2J").touch()
    replaced("dvc.yaml", "params: [seed, lists]", "params: [seed, lists, {other.yaml: [a]}]")(copy.folder)
    tree = audit(AuditedRun(copy.folder), Again(asked=False), False, tmp_path / "out", lambda line: None)
    assert not tree["holds"] and {c["part"] for c in tree["checks"]} == {"bytes", "lineage", "science"}
    assert json.loads((tmp_path / "out/audit.json").read_text("utf-8"))["checks"] == tree["checks"]
    failures = [f for c in tree["checks"] for f in c["failures"]]
    assert "data/policy/1/ [2J: not part of what was recorded" in failures
    assert any("other.yaml: not readable as YAML" in f for f in failures)


def test_a_record_of_unpacking_that_is_none(copy):
    (copy.folder / PACKED).parent.mkdir(parents=True)
    (copy.folder / PACKED).write_text("[1]")
    with pytest.raises(UserError, match=r"pack\.json: not what `larpo unpack` writes"):
        list(check_bytes(AuditedRun(copy.folder)))


def test_a_source_that_changed(copy, tiny_policy, tmp_path):
    """A model folder that still lies where the manifest says, with other bytes."""
    other = tmp_path / "policy"
    other.mkdir()
    (other / "config.json").write_text("{}")
    edit_json(copy.folder / "data/policy/0.manifest.json", lambda m: m["notes"]["sources"][0].update(name=str(other)))
    check = parts(copy.folder)["sources"]
    assert check.verdict == "fails" and check.failures[0].startswith(f"policy: {other}: hash")


def test_a_lock_that_no_commit_holds(copy):
    assert parts(copy.folder)["dvc.lock is committed"].verdict == "holds"
    lock = copy.folder / "dvc.lock"
    lock.write_text(lock.read_text() + "\n")
    assert parts(copy.folder)["dvc.lock is committed"].verdict == "not checked"


def test_a_run_by_its_revision_and_what_is_no_run(finished_project, tmp_path):
    with open_run(finished_project.folder, "HEAD") as run:
        assert run.folder != finished_project.folder and len(run.nodes) == len(run.graph)
        assert {c.verdict for c in check_bytes(run)} == {"holds"}
    assert not run.folder.exists()
    with (
        pytest.raises(UserError, match=r"nowhere: no folder with a dvc\.yaml, no Git revision and no experiment"),
        open_run(finished_project.folder, "nowhere"),
    ):
        pass
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(UserError, match=r"dvc\.lock: not found; an audit needs a finished run"):
        AuditedRun(tmp_path)


def test_the_card_answers_all_seven_from_the_records(finished_project):
    run = AuditedRun(finished_project.folder)
    answers = {
        a.variable: a for a in reproducibility_card(run, [science(run.folder, "no evaluation prompt in training")])
    }
    assert len(answers) == 7
    commit = json.loads((run.folder / "data/train/1.manifest.json").read_text())["git"]["commit"]
    assert answers["Pseudocode"].answer == "yes"
    assert any("larpo.lists.recipes.build_lists" in line for line in answers["Pseudocode"].evidence)
    assert f"commit {commit}" in answers["Open source code"].evidence
    assert answers["Open source code"].answer == "partly", "the test's repository has no address and no licence"
    assert any("reasoning-gym" in line and "Apache-2.0" in line for line in answers["Open datasets"].evidence)
    assert any("never trained on" in line for line in answers["Dataset splits"].evidence)
    assert any("cores" in line for line in answers["Hardware specification"].evidence)
    assert any("torch 2." in line for line in answers["Software dependencies"].evidence)
    assert any("seed 0" in line for line in answers["Experiment setup"].evidence)
