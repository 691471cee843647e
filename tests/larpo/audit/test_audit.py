"""The audit of a real run: it holds as it is, whatever it holds its audit ends with a verdict, and nothing of a
stranger's is executed unasked."""

import json
from pathlib import Path

import pytest

from larpo.audit.bytes.check import check_bytes
from larpo.audit.find import is_own, open_run
from larpo.audit.lineage.check import check_lineage
from larpo.audit.open import AuditedRun
from larpo.audit.run import Selection, audit, parts, reproducibility_card
from larpo.audit.science.check import CHECKS, WHERE, check_numbers, check_science
from larpo.errors import UserError
from tests.larpo.audit.forgery import agree, check_of, edit_json, edit_text, flip


def test_an_honest_run_holds(honest):
    checks = {c.name: c for c in [*check_bytes(honest), *check_lineage(honest), *check_science(honest)]}
    assert set(CHECKS) - set(WHERE) == set(CHECKS) & set(checks)
    near = checks.pop("near-duplicates of evaluation prompts")
    assert near.verdict == "counted" and near.checked > 0
    assert {name: c.verdict for name, c in checks.items()} == dict.fromkeys(checks, "holds")
    assert all(c.checked > 0 and not c.failures for c in checks.values())
    assert checks["outputs"].checked == sum(e.files or 1 for n in honest.nodes for e in n.outs.values())


def test_hashes_are_dvcs_own(honest):
    assert len(honest.nodes) == len(honest.graph) >= 20
    for node in honest.nodes:
        for path, entry in {**node.deps, **node.outs}.items():
            assert honest.md5(path) == entry.md5, path


def test_a_flipped_bit_with_the_old_time_stamp(copy):
    copy.dvc("status")  # DVC's database now knows the files
    flip(copy.folder / "data/policy/1/model.safetensors")
    assert copy.dvc("status").stdout == "inputs:\n\talways changed\n", "DVC believes the time stamp"
    (line,) = check_of(copy.folder, "bytes", "outputs").failures
    assert line.startswith("data/policy/1/model.safetensors: ") and "expected" in line
    # The same bit without a copy in the cache: the file is named, and why not the byte.
    run = AuditedRun(copy.folder)
    listing = run.listing(run.lock["train@1"].outs["data/policy/1"])
    assert listing is not None
    run.object(listing["model.safetensors"]).unlink()
    (line,) = check_of(copy.folder, "bytes", "outputs").failures
    assert line.startswith("data/policy/1/model.safetensors: hash") and "no copy in the cache" in line


def test_a_broken_cache_object(copy):
    run = AuditedRun(copy.folder)
    place = run.object(run.lock["lists@1"].outs["data/lists/1.parquet"].md5)
    place.chmod(0o644)
    flip(place)
    check = check_of(copy.folder, "bytes", "DVC's cache")
    assert check.verdict == "fails" and check.failures[0].startswith(f"{place}: ")


def test_a_number_is_the_same_however_it_is_written(copy):
    """DVC writes 2e-05, which PyYAML takes for text; params.yaml may say 2.0e-5."""
    edit_text(copy.folder / "params.yaml", "learning_rate: 1.0e-3", "learning_rate: 1.0e-03")
    edit_text(copy.folder / "dvc.lock", "learning_rate: 0.001", "learning_rate: 1e-03")
    assert check_of(copy.folder, "bytes", "parameters").verdict == "holds"
    edit_text(copy.folder / "dvc.lock", "learning_rate: 1e-03", "learning_rate: 1e-04")
    failures = check_of(copy.folder, "bytes", "parameters").failures
    assert failures[0].endswith("train.learning_rate is 0.001, dvc.lock has 0.0001")


def test_code_that_was_run_but_never_committed(copy):
    """The lock and the folder agree; the commit that the manifests name holds other code."""
    edit_text(copy.folder / "larpo/lists/recipes.py", "\nimport", "\n# changed\nimport")
    agree(copy.folder)
    assert check_of(copy.folder, "bytes", "code and given data").verdict == "holds"
    failures = check_of(copy.folder, "lineage", "code is committed").failures
    assert [f.split(" in commit")[0] for f in failures] == [
        f"lists@{s}: ran larpo/lists/recipes.py as it is not" for s in (1, 2)
    ]


def test_a_lock_that_no_commit_holds(copy):
    edit_text(copy.folder / "dvc.lock", "schema:", "\nschema:")
    assert check_of(copy.folder, "lineage", "dvc.lock is committed").verdict == "not checked"


SHAPES = {
    "git: ": lambda m: m.update(git=[]),
    "inputs: ": lambda m: m.update(inputs=3),
    "notes.sources.0.name: ": lambda m: m["notes"].update(sources=[{"name": 1}]),
    "seconds: Input should be a valid number": lambda m: m.update(seconds="long"),
    "node: ": lambda m: m.pop("node"),
    "git.commit: ": lambda m: m["git"].update(commit="--output=x"),
    "hardware.memory_bytes: ": lambda m: m.update(hardware={"memory_bytes": "much"}),
    "seconds: Input should be a finite number": lambda m: m.update(seconds=float("nan")),
}


@pytest.mark.parametrize("words", SHAPES)
def test_a_manifest_of_another_shape_is_one_line(copy, words):
    """It may have been written by anyone: every part of the audit goes on without it."""
    edit_json(copy.folder / "data/lists/1.manifest.json", SHAPES[words])
    check = check_of(copy.folder, "lineage", "manifests")
    assert check.verdict == "fails" and len(check.failures) == 1
    assert check.failures[0].startswith(f"data/lists/1.manifest.json: not a node's manifest: {words}")
    assert len(reproducibility_card(AuditedRun(copy.folder), [check])) == 7


def test_whatever_a_run_holds_its_audit_ends_with_a_verdict(copy, tmp_path):
    """Parameters lie in a file that is not there, and a file's name steers a terminal."""
    (copy.folder / "data/policy/1/\x1b[2J").touch()
    edit_text(copy.folder / "dvc.yaml", "params: [seed, lists]", "params: [seed, lists, {other.yaml: [a]}]")
    tree = audit(tmp_path, str(copy.folder), Selection(requested=False), tmp_path / "out", lambda line: None)
    assert not tree["holds"] and {c["part"] for c in tree["checks"]} == {"bytes", "lineage", "science", "again"}
    assert json.loads((tmp_path / "out/audit.json").read_text("utf-8"))["checks"] == tree["checks"]
    failures = [f for c in tree["checks"] for f in c["failures"]]
    assert "data/policy/1/ [2J: not part of what was recorded" in failures
    assert any("other.yaml: not valid YAML" in f for f in failures)


def test_a_record_of_unpacking_that_is_none(copy):
    (copy.folder / ".larpo/pack").mkdir(parents=True)
    (copy.folder / ".larpo/pack/pack.json").write_text("[1]")
    with pytest.raises(UserError, match=r"pack\.json: not what `larpo unpack` writes"):
        list(check_bytes(AuditedRun(copy.folder)))


def test_nodes_are_executed_for_ones_own_run_only_unless_requested(honest, tmp_path):
    """Executing a stranger's run runs a stranger's code."""
    project = honest.folder
    assert is_own(project, None) and is_own(project, "HEAD") and is_own(project, str(project))
    assert not is_own(project, str(tmp_path))
    (check,) = parts(honest, Selection(), False, print)["again"]()
    left = "policy, train@1, train@2 were not executed again (executing nodes runs the run's code, which is not this"
    assert check.verdict == "not checked" and check.behind[0].startswith(left)
    (check,) = parts(honest, Selection(requested=False), True, print)["again"]()
    assert check.behind == ("policy, train@1, train@2 were not executed again (--no-again)",)
    assert Selection().executes(True) and Selection(requested=True).executes(False)
    assert Selection(("lists",)).executes(False) and not Selection().executes(False)
    with pytest.raises(UserError, match=r"node 'lits@1' is not in .*did you mean 'lists@1'"):
        parts(honest, Selection(("lits@1",)), False, print)


def test_a_run_by_its_revision_and_what_is_no_run(honest, tmp_path):
    with open_run(honest.folder, "HEAD") as run:
        assert run.folder != honest.folder and len(run.nodes) == len(run.graph)
        assert {c.verdict for c in check_bytes(run)} == {"holds"}
    assert not run.folder.exists()
    with (
        pytest.raises(UserError, match=r"nowhere: no folder with a dvc\.yaml, no Git revision and no experiment"),
        open_run(honest.folder, "nowhere"),
    ):
        pass
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(UserError, match=r"dvc\.lock: not found; an audit needs a finished run"):
        AuditedRun(tmp_path)


def test_the_card_answers_all_seven_from_the_records(honest):
    apart = check_numbers(honest, "no evaluation prompt in training")
    answers = {a.variable: a for a in reproducibility_card(honest, [apart])}
    assert len(answers) == 7
    commit = json.loads((honest.folder / "data/train/1.manifest.json").read_text())["git"]["commit"]
    assert answers["Pseudocode"].answer == "yes" and len(answers["Pseudocode"].evidence) == 9
    assert any("larpo.lists.recipes.build_lists" in line for line in answers["Pseudocode"].evidence)
    assert f"commit {commit}" in answers["Open source code"].evidence
    assert answers["Open source code"].answer == "partly", "the test's repository has no licence"
    assert any("reasoning-gym" in line and "Apache-2.0" in line for line in answers["Open datasets"].evidence)
    assert any("never trained on" in line for line in answers["Dataset splits"].evidence)
    assert any("cores" in line for line in answers["Hardware specification"].evidence)
    assert any("torch 2." in line for line in answers["Software dependencies"].evidence)
    assert any("seed 0" in line for line in answers["Experiment setup"].evidence)


def test_a_run_from_before_the_move_holds(tmp_path, monkeypatch):
    """Made and packed by commit 02cf5a9: its tables by the code here, its nodes by the code of its own commit, which
    has other paths, and parameters that are written otherwise today."""
    monkeypatch.chdir(tmp_path)
    pack = Path(__file__).with_name("before_the_move.larpo.tar")
    tree = audit(tmp_path, str(pack), Selection(("candidates@2", "lists@1")), tmp_path / "report", print)
    verdicts = {c["name"]: c["verdict"] for c in tree["checks"]}
    assert verdicts.pop("near-duplicates of evaluation prompts") == "counted"
    assert verdicts.pop("the chain behind the numbers") == "not checked"
    assert tree["holds"] and verdicts == dict.fromkeys(verdicts, "holds"), tree
    *executed, chain = [c for c in tree["checks"] if c["part"] == "again"]
    assert tree["verdict"] == "holds, but not everything was checked"
    assert chain["behind"] == ["policy, train@1, train@2 were not executed again"]
    assert [c["name"] for c in executed] == ["lists@1", "candidates@2"]
    assert all(c["detail"].startswith("bit-identical") for c in executed), executed
    assert tree["nodes"] == 22 and len(tree["card"]) == 7
