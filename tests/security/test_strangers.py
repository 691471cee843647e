"""A stranger's run is read and not obeyed: no setting, no link, no file of it reaches a program, the network, the
terminal or what lies outside."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from larpo.audit import isolation
from larpo.audit.bytes.check import check_bytes
from larpo.audit.find import is_own, open_run
from larpo.audit.isolation import network_cut, offline, stripped
from larpo.audit.lineage.check import check_lineage
from larpo.audit.pack.unpack import unpack
from larpo.audit.pack.write import pack
from larpo.audit.rerun.clone import Clone
from larpo.audit.science import check as science
from larpo.audit.science.check import check_numbers
from larpo.audit.show import printable_tree
from larpo.errors import UserError
from larpo.sources.rows import hub_file
from tests.conftest import Project
from tests.larpo.audit.test_pack import members_of, write


@pytest.fixture(scope="module")
def theirs(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return finished_project.copy(tmp_path_factory.mktemp("theirs") / "project")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The auditor's own, empty."""
    folder = tmp_path / "mine"
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def packed(theirs: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "run.tar"
    with open_run(theirs.folder, None) as run:
        pack(run, out)
    return out


def program(folder: Path) -> tuple[Path, Path]:
    """A program, and the file that it leaves where it is run."""
    mark, path = folder / "executed", folder / "program"
    path.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    path.chmod(0o755)
    return path, mark


def test_no_setting_of_a_strangers_repository_is_obeyed(theirs, project, tmp_path):
    """Every key of Git's that names a program, hooks, a lazy fetch, a replacement; DVC's folders elsewhere."""
    folder = shutil.copytree(theirs.folder, tmp_path / "hostile", symlinks=True)
    path, mark = program(tmp_path)
    config = f"""[core]
    repositoryformatversion = 1
    fsmonitor = {path}
    sshCommand = {path}
    pager = {path}
    gitProxy = {path}
    editor = {path}
    hooksPath = {tmp_path}
    alternateRefsCommand = {path}
[extensions]
    partialClone = origin
[remote "origin"]
    url = {tmp_path}
    promisor = true
    uploadpack = {path}
    vcs = {path}
[filter "x"]
    smudge = {path}
    clean = {path}
    process = {path}
    required = true
[diff]
    external = {path}
[credential]
    helper = {path}
[include]
    path = {tmp_path}/more
"""
    (tmp_path / "more").write_text(f"[core]\n    fsmonitor = {path}\n")
    (tmp_path / "post-checkout").symlink_to(path)
    (folder / ".git/config").write_text(config)
    (folder / ".git/info").mkdir(exist_ok=True)
    (folder / ".git/info/attributes").write_text("* filter=x diff=x\n")
    subprocess.run(["git", "status"], cwd=folder, capture_output=True, check=False)
    assert mark.exists(), "Git itself obeys: the test sees what is run"
    mark.unlink()
    blob = theirs.run("git", "rev-parse", "HEAD:dvc.yaml").stdout.strip()
    (folder / ".git/objects" / blob[:2] / blob[2:]).unlink()  # Git would fetch it from the promisor
    (folder / ".dvc/config").write_text(
        f"[core]\n    site_cache_dir = {tmp_path}/site\n[cache]\n    dir = {tmp_path}/c\n"
    )
    with open_run(project, str(folder)) as run:
        assert not run.own and len(run.nodes) == len(run.graph) > 20
        checks = {c.name: c for c in [*check_bytes(run), *check_lineage(run)]}
        assert checks["outputs"].verdict == checks["manifests' hashes"].verdict == "holds"
        assert checks["code is committed"].failures, "a blob is missing, and that is said"
        with pytest.raises((UserError, RuntimeError)):
            Clone(run, theirs.run("git", "rev-parse", "HEAD").stdout.strip(), tmp_path / "clone")
        with pytest.raises((UserError, RuntimeError)):
            pack(run, tmp_path / "out.tar")
    assert not mark.exists() and not (tmp_path / "site").exists() and not (tmp_path / "c").exists()


def test_an_object_under_another_name_and_a_replacement_are_seen(theirs, project, tmp_path):
    """What Git would show for a commit is not what the commit's id stands for."""
    folder = shutil.copytree(theirs.folder, tmp_path / "forged", symlinks=True)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    with (folder / "larpo/lists/recipes.py").open("a") as code:
        code.write("# another\n")
    subprocess.run([*git, "commit", "-qam", "another"], cwd=folder, check=True)
    subprocess.run([*git, "replace", "HEAD~1", "HEAD"], cwd=folder, check=True)
    subprocess.run([*git, "reset", "-q", "--hard", "HEAD~1"], cwd=folder, check=True)
    with open_run(project, str(folder)) as run:
        show = ["git", "show", "HEAD:larpo/lists/recipes.py"]
        theirs_shown, shown = (subprocess.check_output(show, cwd=place) for place in (folder, run.repository))
        assert theirs_shown.endswith(b"# another\n"), "Git itself shows the replacement"
        assert shown and not shown.endswith(b"# another\n")
    # A loose object whose content is another's: its id is computed, and the copy has none of that name.
    blob, other = (theirs.run("git", "rev-parse", f"HEAD:{p}").stdout.strip() for p in ("dvc.yaml", "params.yaml"))
    place = folder / ".git/objects" / blob[:2] / blob[2:]
    place.chmod(0o644)
    shutil.copyfile(folder / ".git/objects" / other[:2] / other[2:], place)
    with open_run(project, str(folder)) as run:
        read = ["git", "cat-file", "blob", blob]
        assert b"stages:" not in subprocess.check_output(read, cwd=folder), "Git itself believes the name"
        assert subprocess.run(["git", "cat-file", "-e", blob], cwd=run.repository, capture_output=True).returncode


@pytest.mark.parametrize("how", ["remote", "fetched", "tag", "branch", "experiment", "head"])
def test_what_is_own(theirs, tmp_path, how):
    """Commits of one's own branches and experiments; what was fetched is a stranger's."""
    mine = theirs.copy(tmp_path / "mine")
    commit = mine.run("git", "commit-tree", "-m", "x", "-p", "HEAD", "HEAD^{tree}").stdout.strip()
    if how == "fetched":
        (mine.folder / ".git/FETCH_HEAD").write_text(f"{commit}\t\tbranch 'main' of elsewhere\n")
    elif how == "head":
        mine.run("git", "checkout", "-q", "--detach", commit)
    else:
        ref = {"remote": "remotes/origin/main", "tag": "tags/v1", "branch": "heads/side", "experiment": "exps/a/b/side"}
        mine.run("git", "update-ref", f"refs/{ref[how]}", commit)
    name = {"remote": "origin/main", "fetched": "FETCH_HEAD", "tag": "v1", "head": "HEAD"}.get(how, "side")
    assert is_own(mine.folder, name) is (how in ("branch", "experiment", "head"))
    if how == "remote":
        with open_run(mine.folder, name) as run:
            assert not run.own and (run.folder / ".dvc/config").read_text() == ""
            assert {c.verdict for c in check_bytes(run)} == {"holds"}


def test_an_unpacked_run_and_another_users_are_no_own(theirs, packed, tmp_path):
    folder = unpack(packed, tmp_path / "theirs").folder
    assert is_own(theirs.folder, None) and not is_own(folder, None) and not is_own(folder, "HEAD")
    with open_run(folder, None) as run:
        assert not run.own
    if os.getuid() == 0:
        other = theirs.copy(tmp_path / "other")
        os.chown(other.folder, 65534, 65534)
        assert not is_own(other.folder, None)


SHUT = [
    "larpo/__pycache__/errors.cpython-311.pyc",
    "tasks/frame/fast.so",
    ".venv/bin/python",
    ".prefect/profiles.toml",
    ".env",
    "prefect.toml",
    "Makefile",
    "scratch/sample@1/part-0.parquet",
    "tests/conftest.py",
    "judgements/deep/x.jsonl",
    "judgements/x.py",
    "undeclared/x.parquet",
    "torch.py",
]


def test_a_pack_brings_nothing_but_outputs_data_and_judgements(packed, tmp_path):
    """What else is in it stays shut and is named; that code is not as in the commit is computed, whatever is said."""
    members = members_of(packed)
    code = members_of(packed) | {f"run/{name}": b"x = 1\n" for name in SHUT}
    facts = json.loads(members["pack.json"]) | {"uncommitted": []}
    code |= {
        "run/larpo/errors.py": b"x = 1\n",
        "run/judgements/m-1.jsonl": b"",
        "pack.json": json.dumps(facts).encode(),
    }
    opened = unpack(write(tmp_path / "x.tar", code), tmp_path / "to")
    for name in SHUT:
        path = opened.folder / name
        assert not path.exists() or path.read_bytes() != b"x = 1\n"
    assert sorted(opened.shut) == sorted(SHUT)
    assert opened.uncommitted == ["larpo/errors.py"] and "not as in the commit: larpo/errors.py" in opened.lines()
    assert (opened.folder / "judgements/m-1.jsonl").exists()


@pytest.mark.parametrize("path", [".venv/bin/python", "larpo/errors.py", "Makefile", "tasks", "data/__pycache__/x"])
def test_an_output_lies_among_data(packed, tmp_path, path):
    members = members_of(packed)
    lock = members["run/dvc.lock"].decode().replace("path: data/prompts/1.parquet", f"path: {path}")
    file = write(tmp_path / "x.tar", members | {"run/dvc.lock": lock.encode()})
    with pytest.raises(UserError, match="where no node's output may lie"):
        unpack(file, tmp_path / "to")


def test_no_text_of_a_run_steers_the_terminal(packed, tmp_path):
    """Escapes, C1 controls, bidirectional overrides and line breaks, in what the commands print."""
    hostile = "a\x1b[2Jb\x9b1Ac\u202ed\u2028e\rf\x08g\nerror: holds"
    members = members_of(packed)
    facts = json.loads(members["pack.json"]) | {"needed": [{"path": hostile, "why": hostile}]}
    opened = unpack(write(tmp_path / "x.tar", members | {"pack.json": json.dumps(facts).encode()}), tmp_path / "to")
    assert all(line.isprintable() for line in opened.lines()) and any("error: holds" in line for line in opened.lines())
    shown = printable_tree({"checks": [{"name": hostile, "failures": [hostile]}]})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(shown["checks"][0]["failures"][0], markup=False)
    assert captured.get().rstrip("\n").isprintable()


def test_nothing_above_a_file_leads_out_of_a_pack(theirs, tmp_path):
    """A linked folder would carry a file from outside into it."""
    project = theirs.copy(tmp_path / "project")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.jsonl").write_text("secret\n")
    (project.folder / "data/mine").symlink_to(tmp_path / "outside")
    project.set("items: 8,", "items: 8, data: data/mine/a.jsonl,")
    folder = project.folder
    with open_run(folder, None) as run, pytest.raises(UserError, match="symbolic link"):
        pack(run, tmp_path / "run.tar")


def test_an_audit_of_a_strangers_run_has_no_network(theirs, project, monkeypatch):
    """What its parameters name is not fetched, and that is no fault of the run; this machine may be reached."""
    monkeypatch.setitem(science.CHECKS, "items", lambda run, name: hub_file("owner/name", "data.json"))
    with open_run(project, str(theirs.folder)) as run, offline(not run.own):
        check = check_numbers(run, "items")
        assert check.verdict == "not checked" and "data.json of the hub dataset owner/name" in check.detail
        with pytest.raises(isolation.Refused):
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        with pytest.raises(isolation.Refused):
            socket.getaddrinfo("huggingface.co", 443)
        assert isolation.refused[-2:] == ["192.0.2.1", "huggingface.co"]
    with socket.create_server(("127.0.0.1", 0)) as here, offline(True):
        socket.create_connection(here.getsockname()).close()


def test_a_strangers_node_gets_no_key_no_home_and_no_network(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "planted-secret")
    code = (
        "import os, socket, sys\n"
        "print([k for k, v in os.environ.items() if 'planted' in v], os.path.expanduser('~'))\n"
        "try:\n    socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=5); print('reached')\n"
        "except OSError: print('refused')\n"
    )
    words, said = network_cut()
    with socket.create_server(("127.0.0.1", 0)) as here:
        command = [sys.executable, "-c", code, str(here.getsockname()[1])]
        done = subprocess.run(
            [*words, *command], env=stripped(dict(os.environ), tmp_path), capture_output=True, text=True, check=True
        )
    environment, reached = done.stdout.splitlines()
    assert environment == f"[] {tmp_path}"
    assert (reached == "refused") is bool(words) is (said == "no network")
