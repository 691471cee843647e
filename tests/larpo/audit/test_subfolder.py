"""A run in a folder below the top of its Git repository (`dvc init --subdir`), beside folders that are none of it."""

import shutil

import pytest

from larpo.audit.find import open_run
from larpo.audit.lineage.check import check_lineage
from larpo.audit.run import Selection, audit
from tests.conftest import Project
from tests.larpo.audit.forgery import agree, check_of, edit_json, edit_text


@pytest.fixture(scope="module")
def inside(finished_project, tmp_path_factory) -> Project:
    """The finished run, as if its nodes had run in studies/sums of a repository."""
    top = tmp_path_factory.mktemp("below") / "repository"
    run = object.__new__(Project)
    run.folder = top / "studies/sums"
    shutil.copytree(finished_project.folder, run.folder, ignore=shutil.ignore_patterns(".git", ".dvc", "__pycache__"))
    (top / "larpo").mkdir()
    (top / "larpo/lists.py").write_text("another project's\n")
    for command in (["init", "-q"], ["config", "user.email", "tests@example.org"], ["config", "user.name", "tests"]):
        run.run("git", "-C", str(top), *command)
    run.dvc("init", "-q", "--subdir")
    shutil.copytree(finished_project.folder / ".dvc/cache", run.folder / ".dvc/cache")
    run.run("git", "add", "-A", str(top))
    run.run("git", "commit", "-qm", "code")
    commit = run.run("git", "rev-parse", "HEAD").stdout.strip()
    for path in run.folder.rglob("data/**/*.manifest.json"):
        edit_json(path, lambda manifest: manifest["git"].update(commit=commit))
    run.node("report")  # which tells the commits
    agree(run.folder)
    run.dvc("commit", "-f")
    run.run("git", "commit", "-qam", "run")
    return run


def test_it_holds_and_a_node_makes_the_same_again(inside, tmp_path):
    tree = audit(inside.folder, None, Selection(("lists@1",)), tmp_path, print)
    verdicts = {c["name"]: c["verdict"] for c in tree["checks"]}
    assert verdicts.pop("near-duplicates of evaluation prompts") == "counted"
    assert verdicts.pop("the chain behind the numbers") == "not checked"
    assert tree["holds"] and verdicts == dict.fromkeys(verdicts, "holds"), tree["checks"]
    (again,) = [c for c in tree["checks"] if c["name"] == "lists@1"]
    assert again["detail"].startswith("bit-identical; ")
    assert inside.run("git", "status", "--porcelain").stdout == "", "nothing of the repository is changed"


def test_it_is_found_by_a_revision_and_from_the_top(inside):
    with open_run(inside.folder, "HEAD") as run:
        assert run.folder.name == "sums" and {c.verdict for c in check_lineage(run)} == {"holds"}
    with open_run(inside.folder.parents[1], str(inside.folder)) as run:
        assert not run.own and {c.verdict for c in check_lineage(run)} == {"holds"}


def test_code_that_its_commit_lacks_is_named(inside, tmp_path):
    shutil.copytree(inside.folder.parents[1], tmp_path / "repository", symlinks=True)
    folder = tmp_path / "repository/studies/sums"
    edit_text(folder / "larpo/lists/recipes.py", "\nimport", "\n# changed\nimport")
    agree(folder)
    failures = check_of(folder, "lineage", "code is committed").failures
    assert failures and failures[0].startswith("lists@1: ran larpo/lists/recipes.py as it is not in commit "), failures
