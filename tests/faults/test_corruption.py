"""Bits that flip in what DVC keeps: no node computes from them, and the line says what restores them."""

import os
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

import larpo.workspace.dvc_lock
import tasks.candidates
import tasks.prompts
import tasks.sample
from larpo.errors import UserError
from larpo.hashing import dvc_hash, file_hashes
from larpo.workspace.mend import mend
from tests.conftest import Project
from tests.faults.kit import assert_same, products


@pytest.fixture
def project(tmp_path, finished_project, monkeypatch) -> Project:
    project = finished_project.copy(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(larpo.workspace.dvc_lock, "PAUSE", 0.05)
    return project


def recorded() -> dict[str, str]:
    """Output → MD5, as dvc.lock has it."""
    stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def flip(path: Path) -> None:
    """One bit; time and size stay, as where the disk did it."""
    told = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.chmod(told.st_mode)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


def refusal(run, stage: str, path: str) -> list[str]:
    """The commands that the one line tells to give."""
    with pytest.raises(UserError) as caught:
        run()
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}, needed by {stage}: its content is not what "), line
    return re.split(r"; ", line.split("restore it: ")[-1].split("damaged too: ")[-1])


def follow(project: Project, commands: list[str]) -> str:
    """Give the commands; what DVC printed."""
    printed = ""
    for command in commands:
        words = command.split()
        printed += (project.dvc(*words[1:]) if words[0] == "dvc" else project.run(*words)).stdout
    return printed


def ran(repro: CompletedProcess) -> list[str]:
    """The nodes that were executed: `inputs` always is."""
    return re.findall(r"^Running stage '(.*)':$", repro.stdout, re.M)


def test_hashes_are_those_of_dvc(project):
    found = recorded()
    assert any(md5.endswith(".dir") for md5 in found.values())
    assert {path: dvc_hash(file_hashes(path)) for path in found} == found


def test_a_flipped_bit_in_a_checkpoint_is_not_sampled_from(project):
    """DVC does not see it, for it looks at time and size, and `dvc checkout --force` alone leaves it in place."""
    expected = products(project.folder)
    flip(Path("data/policy/1/model.safetensors"))
    commands = refusal(lambda: tasks.sample.main("2"), "sample@2", "data/policy/1")
    assert commands == ["rm -r data/policy/1", "dvc checkout data/policy/1"]
    assert not list(Path("scratch/sample@2").glob("*")), "refused before anything was begun"
    follow(project, commands)
    tasks.sample.main("2")
    assert_same(products(project.folder), expected)


def test_nodes_that_were_run_by_hand_are_no_corruption(project):
    """Their outputs are in no dvc.lock, but in the manifest beside them."""
    project.set("seed: 0", "seed: 5")
    tasks.prompts.main("1")
    tasks.sample.main("1")
    assert recorded()["data/sample/1.parquet"] != dvc_hash(file_hashes("data/sample/1.parquet"))
    flip(Path("data/prompts/1.parquet"))
    refusal(lambda: tasks.sample.main("1"), "sample@1", "data/prompts/1.parquet")
    # Where nothing was recorded nothing is refused for it.
    Path("dvc.lock").unlink()
    Path("data/prompts/1.manifest.json").unlink()
    larpo.workspace.dvc_lock.check_recorded({Path("data/prompts/1.parquet"): {"": "0"}}, "x")


def test_what_dvc_had_half_written_is_mended(project):
    """Both of its files, cut at several places; while a DVC command is at work nothing is touched."""
    import fcntl

    rwlock, lock = project.folder / ".dvc/tmp/rwlock", project.folder / "dvc.lock"
    whole = lock.read_bytes()
    in_key, in_item = whole.index(b"md5: ", len(whole) // 2) + 2, whole.rindex(b"- path:") + 4
    for rest, cut in (("", 0), ('{"read": {"a', in_key), ('{"read": {}', in_item)):
        rwlock.write_text(rest)
        lock.write_bytes(whole[:cut])
        with (project.folder / ".dvc/tmp/lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert mend(project.folder) == []
        assert [line.split(":")[0] for line in mend(project.folder)] == [str(rwlock), str(lock)]
        assert not rwlock.exists() and lock.read_bytes() == whole
        assert mend(project.folder) == []


@pytest.mark.faults
def test_without_a_commit_the_run_cache_restores_what_ran(project):
    expected = products(project.folder)
    project.run("git", "rm", "-q", "--cached", "dvc.lock")
    project.run("git", "commit", "-qm", "no lock")
    whole = Path("dvc.lock").read_bytes()
    Path("dvc.lock").write_bytes(whole[: whole.rindex(b"- path:") + 4])
    assert project.dvc("repro", check=False).returncode != 0
    assert len(mend(project.folder)) == 1 and not Path("dvc.lock").exists()
    assert ran(project.dvc("repro")) == ["inputs"]
    assert_same(products(project.folder), expected)


@pytest.mark.faults
@pytest.mark.parametrize("output", ["data/sample/1.parquet", "data/policy/1"])
def test_a_damaged_object_of_the_cache(project, output):
    """DVC checks it out unseen, and puts it back even in the place of what the node made anew: the object must go."""
    expected, md5 = products(project.folder), recorded()[output]
    node, reader = ("sample@1", "candidates@1") if output.endswith("parquet") else ("train@1", "sample@2")
    if md5.endswith(".dir"):
        md5 = file_hashes(output)["model.safetensors"]
    damaged = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    flip(damaged)
    shutil.rmtree(output) if Path(output).is_dir() else Path(output).unlink()
    project.dvc("checkout", output)
    assert products(project.folder) != expected, "DVC notices it by itself now: simplify the advice"
    main = tasks.candidates.main if reader == "candidates@1" else tasks.sample.main
    commands = refusal(lambda: main(reader[-1]), reader, output)
    assert commands == [f"rm -f {damaged}", f"rm -r {output}", f"dvc repro -s --force {node}"]
    follow(project, commands)
    project.dvc("repro")
    assert_same(products(project.folder), expected)


@pytest.mark.faults
def test_a_truncated_table_is_restored_by_dvc(project):
    """Its size is another: DVC sees it, and takes its own copy. A node that is run by hand refuses it."""
    expected = products(project.folder)
    path = Path("data/sample/1.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    refusal(lambda: tasks.candidates.main("1"), "candidates@1", str(path))
    assert ran(project.dvc("repro")) == ["inputs"]
    assert_same(products(project.folder), expected)
