"""A packed run: the same bytes from the same run, the same run out of the bytes, and nothing out of a hostile one."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from larpo.audit.bytes.check import check_bytes
from larpo.audit.lineage.check import check_lineage
from larpo.audit.open import AuditedRun
from larpo.audit.pack import CHECKSUMS
from larpo.audit.pack.bundle import clone_bundle, write_bundle
from larpo.audit.pack.unpack import check_name, open_pack, unpack
from larpo.audit.pack.write import pack
from larpo.audit.science.check import check_science
from larpo.benchmarks.judge import JudgeClient
from larpo.errors import UserError
from larpo.hashing import file_hash
from larpo.workspace.git import isolated_git
from tests.conftest import Project, larpo_command
from tests.larpo.audit.forgery import flip

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def packed(honest: AuditedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack") / "run.tar"
    done = pack(honest, out)
    assert done.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert [x.why for x in done.facts.needed] == ["outside the run's folder"], "the tiny policy's own folder"
    return out


@pytest.fixture(scope="module")
def unpacked(packed: Path) -> Path:
    return unpack(packed, packed.parent / "unpacked").folder


def members_of(file: Path) -> Members:
    with tarfile.open(file) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def write(file: Path, members: Members, extra: Callable[[tarfile.TarFile], None] = lambda tar: None) -> Path:
    """A pack of these members whose checksums agree."""
    members = {n: content for n, content in members.items() if n != CHECKSUMS}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {n}\n" for n, content in members.items())
    with tarfile.open(file, "w") as tar:
        extra(tar)
        for name, content in {**members, CHECKSUMS: sums.encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def refused(file: Path, folder: Path) -> str:
    """The one line with which a pack is refused; nothing is left behind."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(UserError) as error:
        unpack(file, folder)
    assert sorted(folder.parent.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_pack_opens_elsewhere_as_the_same_run(honest, unpacked):
    run, other = honest, AuditedRun(unpacked)
    assert other.cache == unpacked / ".dvc/cache"
    for node in run.nodes:
        for path, entry in node.outs.items():
            assert other.md5(path) == entry.md5 and other.cached(entry.md5), path
            assert run.files(path) == other.files(path)
    verdicts = {c.name: c.verdict for c in [*check_bytes(other), *check_lineage(other)]}
    assert verdicts == dict.fromkeys(verdicts, "holds")
    assert isolated_git(unpacked, "status", "--porcelain") == b"", "the commit as it was"
    assert b"dangling" not in isolated_git(unpacked, "fsck", "--strict")
    assert isolated_git(unpacked, "log", "--format=%H") == isolated_git(run.folder, "log", "--format=%H")
    assert isolated_git(unpacked, "remote") == b"" and not (unpacked / ".git/hooks").exists()
    there = object.__new__(Project)
    there.folder = unpacked
    assert there.dvc("status").stdout == "inputs:\n\talways changed\n"


def test_the_same_run_makes_the_same_bytes(copy, packed, unpacked, tmp_path):
    for place in (copy.folder, unpacked):
        # Times, and how Git happens to store its objects, are no part of a run.
        isolated_git(place, "repack", "-a", "-d", "-f", "-q", "--window=0")
        os.utime(place / "data/lists/1.parquet")
        assert pack(AuditedRun(place), tmp_path / "again.tar").path.read_bytes() == packed.read_bytes(), place


def test_a_flipped_byte_anywhere_is_named(packed, tmp_path):
    with tarfile.open(packed) as tar:
        members = {m.name: m for m in tar}
    names = ["pack.json", "repository.bundle", "run/dvc.lock", "run/data/lists/1.parquet", CHECKSUMS]
    for name in names:
        damaged = tmp_path / "damaged.tar"
        damaged.write_bytes(packed.read_bytes())
        flip(damaged, members[name].offset_data + members[name].size // 2)
        assert (name if name != CHECKSUMS else "by checksums.sha256") in refused(damaged, tmp_path / "to")
        damaged.write_bytes(packed.read_bytes())
        flip(damaged, members[name].offset + 1)  # in its header
        assert "damaged" in (told := refused(damaged, tmp_path / "to")) or "cut short" in told
    damaged.write_bytes(packed.read_bytes()[:-20_000])
    assert "cut short" in refused(damaged, tmp_path / "to") or "damaged" in refused(damaged, tmp_path / "to")
    damaged.write_bytes(b"no tar")
    assert "not a pack" in refused(damaged, tmp_path / "to")


def test_an_output_that_is_not_what_the_lock_says_is_refused(packed, tmp_path):
    members = members_of(packed)
    members["run/report/scores.json"] = members["run/report/scores.json"].replace(b"0.0", b"1.0")
    told = refused(write(tmp_path / "forged.tar", members), tmp_path / "to")
    assert told.startswith("report/scores.json of report: not what dvc.lock records")


NAMES = [
    "/etc/passwd",
    "../out",
    "run/../../out",
    "run/./a",
    "run//a",
    "run/.git/config",
    "run/.GIT/hooks/post-checkout",
    "run/.dvc/config",
    "run/sub/.dvc/cache/x",
    "run/.larpo/x",
    "run/a\\b",
    "run/a\nb",
    "run/.git./x",
    "",
    "run",
    "other",
    "repository.bundle/x",
    "run/" + "a" * 300,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere(name, packed, tmp_path):
    with pytest.raises(UserError, match="not a name that a pack may hold"):
        check_name(name)
    if name and "\n" not in name:
        assert "not a name" in refused(write(tmp_path / "x.tar", {name: b"x"}), tmp_path / "to")


def test_only_plain_files(packed, tmp_path):
    members = members_of(packed)

    def add(kind: bytes, name: str = "run/data/x", target: str = "") -> Callable[[tarfile.TarFile], None]:
        def extra(tar: tarfile.TarFile) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)

        return extra

    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        file = write(tmp_path / "x.tar", members, add(kind, target="/etc/passwd"))
        assert "'run/data/x' is not a plain file" in refused(file, tmp_path / "to")
    file = write(tmp_path / "x.tar", members, add(tarfile.REGTYPE, "run/dvc.lock"))
    assert "twice" in refused(file, tmp_path / "to")


def hostile(copy: Project, packed: Path, entries: dict[str, tuple[str, bytes]], file: Path) -> Path:
    """The pack with a commit on top that holds `entries` (path → mode and content), made without touching the files."""
    for path, (mode, content) in entries.items():
        blob = isolated_git(copy.folder, "hash-object", "-w", "--stdin", given=content).decode().strip()
        isolated_git(copy.folder, "update-index", "--add", "--cacheinfo", f"{mode},{blob},{path}")
    copy.run("git", "commit", "-q", "-m", "hostile")
    bundle = file.with_suffix(".bundle")
    head, _ = write_bundle(copy.folder, [], bundle)
    members = members_of(packed)
    facts = json.loads(members["pack.json"]) | {"commit": head}
    bundle_content = bundle.read_bytes()
    bundle.unlink()
    return write(file, members | {"pack.json": json.dumps(facts).encode(), "repository.bundle": bundle_content})


def test_a_committed_link_leads_nowhere(copy, packed, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    file = hostile(copy, packed, {"report": ("120000", str(outside).encode())}, tmp_path / "x.tar")
    assert "does not fit the commit" in refused(file, tmp_path / "to")
    assert not list(outside.iterdir())


def test_a_committed_cache_is_not_believed(copy, packed, tmp_path):
    file = hostile(copy, packed, {".dvc/config.local": ("100644", b"[cache]\n    dir = /x\n")}, tmp_path / "x.tar")
    assert "holds .dvc/config.local, which would be believed" in refused(file, tmp_path / "to")


def test_nothing_of_a_strangers_run_is_executed_or_written_elsewhere(copy, packed, tmp_path):
    mark = tmp_path / "executed"
    python = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n".encode()
    config = f"[core]\n    site_cache_dir = {tmp_path}/site\n[cache]\n    dir = {tmp_path}/cache\n    type = symlink\n"
    entries = {
        ".dvc/config": ("100644", config.encode()),
        "dvc.py": ("100644", python),
        "yaml.py": ("100644", python),
        ".gitattributes": ("100644", b"* filter=x\n"),
    }
    file = hostile(copy, packed, entries, tmp_path / "x.tar")
    before = sorted(tmp_path.iterdir())
    with open_pack(file) as folder:
        run = AuditedRun(folder)
        assert run.cache == folder / ".dvc/cache"
        assert all(run.md5(path) == entry.md5 for node in run.nodes for path, entry in node.outs.items())
    assert not folder.exists()
    assert sorted(tmp_path.iterdir()) == before and not mark.exists()


def test_history_that_manifests_name_goes_in(copy, tmp_path):
    side = copy.run("git", "commit-tree", "-m", "side", "HEAD^{tree}").stdout.strip()
    head, unknown = write_bundle(copy.folder, [side, "0" * 40], tmp_path / "b")
    assert unknown == ["0" * 40]
    clone_bundle(tmp_path / "b", tmp_path / "clone", head)
    assert isolated_git(tmp_path / "clone", "cat-file", "-t", side) == b"commit\n"
    with pytest.raises(UserError, match=f"its branch is at commit {head[:12]}"):
        clone_bundle(tmp_path / "b", tmp_path / "other", side)


def test_an_unfinished_or_altered_run_is_refused(copy, tmp_path):
    out = tmp_path / "out" / "run.tar"
    (copy.folder / "data/score/2.parquet").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"data/score/2.parquet of score@2: not there"):
        pack(AuditedRun(copy.folder), out)
    (tmp_path / "kept").rename(copy.folder / "data/score/2.parquet")
    flip(copy.folder / "data/policy/2/model.safetensors")
    with pytest.raises(UserError, match=r"data/policy/2 of train@2: not what dvc.lock records"):
        pack(AuditedRun(copy.folder), out)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_without_checkpoints(honest, tmp_path):
    done = pack(honest, tmp_path / "run.tar", checkpoints=False)
    assert [x.path for x in done.facts.left_out] == ["data/policy/0", "data/policy/1", "data/policy/2"]
    opened = unpack(tmp_path / "run.tar", tmp_path / "to")
    assert "not in the pack: data/policy/1 (left out by its sender)" in opened.lines()
    other = AuditedRun(opened.folder)
    entry = honest.lock["train@1"].outs["data/policy/1"]
    assert other.md5("data/policy/1") is None
    assert other.listing(entry) == honest.listing(entry) is not None, "what it held is known all the same"
    # An audit says what it could not check, and nothing else fails for it.
    told = {c.name: c for c in [*check_bytes(other), *check_lineage(other), *check_science(other)]}
    assert {c.verdict for c in told.values()} == {"holds", "counted", "not checked"}
    assert "3 outputs are not in the pack and were not checked" in told["outputs"].detail
    for name in ("reference log-probabilities", "losses at step 0"):
        assert (told[name].verdict, told[name].detail) == ("not checked", "data/policy/0 is not in the pack")


def test_uncommitted_files_and_data_of_ones_own(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("LARPO_JUDGEMENTS", str(tmp_path / "none"))
    with (copy.folder / "larpo/lists/recipes.py").open("a") as code:
        code.write("# mine\n")
    (copy.folder / "larpo/rewards/mine.py").write_text("# a reward\n")
    data = {"data/mine/a.jsonl": "{}\n", "data/mine/b.jsonl": "[]\n", "data/large.jsonl": "0123456789" * 20}
    for path, text in data.items():
        (copy.folder / path).parent.mkdir(exist_ok=True)
        (copy.folder / path).write_text(text)
    copy.set("items: 8,", "items: 8, data: data/mine,")
    copy.set("per_iteration: 12", "per_iteration: 12\n  dataset: data/large.jsonl")
    copy.set("judges: {}", "judges: {j: {model: some/judge}}")
    judge = AuditedRun(copy.folder).params.judges["j"]
    replies = JudgeClient(judge, copy.folder / "judgements").store.path
    replies.write_text("{}\n")
    (copy.folder / "judgements/other-123456.jsonl").write_text("{}\n")
    done = pack(AuditedRun(copy.folder), tmp_path / "run.tar", data_limit=100)
    changed = ["larpo/lists/recipes.py", "larpo/rewards/mine.py", "params.yaml"]
    assert done.facts.uncommitted == changed
    why = {x.path: x.why for x in done.facts.needed}
    assert why["data/large.jsonl"] == "0.0 MiB, over the limit of 0.0 MiB"
    folder = unpack(tmp_path / "run.tar", tmp_path / "to").folder
    for path in [*changed, "data/mine/a.jsonl", "data/mine/b.jsonl", f"judgements/{replies.name}"]:
        assert file_hash(folder / path) == file_hash(copy.folder / path)
    assert not (folder / "data/large.jsonl").exists() and len(list((folder / "judgements").iterdir())) == 1


def test_the_description_names_every_output_and_execution(honest, packed, tmp_path):
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path, filter="data")
    crate = ROCrate(tmp_path)
    for node in honest.nodes:
        action = crate.get(f"#{node.name}")
        assert action.type == "CreateAction" and action["startTime"] <= action["endTime"]
        assert action["instrument"]["name"] == node.cmd.split()[2]
        made = action["result"] if isinstance(action["result"], list) else [action["result"]]
        assert {m["name"]: m["md5"] for m in made} == {p: e.md5.removesuffix(".dir") for p, e in node.outs.items()}
        read = [x["name"] for x in (action["object"] if isinstance(action["object"], list) else [action["object"]])]
        assert {path for path in node.deps if path in honest.producer} <= set(read)
    for entity in crate.data_entities:
        assert (tmp_path / entity.id).exists(), entity.id
        if "sha256" in entity.properties():
            assert entity["sha256"] == hashlib.sha256((tmp_path / entity.id).read_bytes()).hexdigest()
    assert crate.mainEntity.id == "run/dvc.yaml"


def test_the_commands(honest, packed, tmp_path):
    file, folder = str(tmp_path / "run.tar"), str(tmp_path / "to")
    done = larpo_command(honest.folder, "pack", "--out", file)
    assert done.returncode == 0 and hashlib.sha256(packed.read_bytes()).hexdigest() in done.stdout
    done = larpo_command(honest.folder, "unpack", file, folder)
    assert done.returncode == 0 and f"larpo audit {folder}" in done.stdout
    done = larpo_command(honest.folder, "unpack", file, folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "does not exist or is empty" in done.stderr
    assert larpo_command(honest.folder, "pack", "no-such-run").returncode == 2
    done = larpo_command(honest.folder, "audit", "--diff", ".", file)
    assert done.returncode == 0, "a pack is a run like any other"


def test_files_that_parameters_name_are_found_from_any_folder(copy, tmp_path):
    """They are named from the run's folder: a pack, its unpacked folder and a revision, audited from elsewhere."""
    (copy.folder / "mine.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    copy.set("source: reasoning_gym", "source: dataset\n  dataset: mine.jsonl\n  answer_field: answer")
    copy.run("git", "add", "params.yaml")  # the data itself is in no commit
    copy.run("git", "commit", "-q", "-m", "own data")
    file, folder, elsewhere = tmp_path / "run.tar", tmp_path / "to", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert larpo_command(copy.folder, "pack", "--out", str(file)).returncode == 0
    assert larpo_command(elsewhere, "unpack", "../run.tar", "../to").returncode == 0
    found = [
        larpo_command(place, "audit", *run, "--no-again", "--json", "--out", str(tmp_path / "page"))
        for place, run in [(elsewhere, ["../run.tar"]), (elsewhere, [str(folder)]), (copy.folder, ["HEAD"])]
    ]
    verdicts = [{c["name"]: c["verdict"] for c in json.loads(done.stdout)["checks"]} for done in found]
    # The parameters are not those that were run, and that is all.
    assert verdicts[0] == verdicts[1] == verdicts[2] and {done.returncode for done in found} == {1}, verdicts
    assert verdicts[0]["outputs"] == "holds" and verdicts[0]["parameters"] == "fails"
