"""The flow on real DVC and Prefect: order, retries, what is skipped, experiments, nothing left running."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import temporary_settings

from flows.run import ARTIFACT, RunFailed, larpo, main
from larpo.config import yaml12
from larpo.errors import UserError
from larpo.workspace.clone import Workspace
from larpo.workspace.overrides import changed_params
from larpo.workspace.repro import Output
from tests.conftest import larpo_command
from tests.flows.conftest import NODES, ROOT, Project, Serving


@pytest.fixture
def api(serving: Serving) -> Iterator[None]:
    with temporary_settings(serving.settings):
        yield


def task_states() -> dict[str, tuple[str, int]]:
    """Name of each task run of the last flow run: its final state's name and how often it was tried."""
    with get_client(sync_client=True) as client:
        last = client.read_flow_runs(limit=1, sort="START_TIME_DESC")[0]
        for _ in range(100):  # task run states reach the server as events, a moment later
            runs = [r for r in client.read_task_runs(limit=200) if r.flow_run_id == last.id]
            if runs and all(r.state is not None and r.state.name not in ("Running", "Pending") for r in runs):
                break
            time.sleep(0.1)
        return {r.name: (r.state.name, r.run_count) for r in runs}


def test_runs_in_order_and_retries(project: Project, api: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARPO_TEST_FAIL", "sample@1")
    assert larpo() == dict.fromkeys(NODES, "Completed")
    assert sorted(project.started()) == sorted([*NODES[:-1], "sample@1"])  # twice: the first try failed
    spans = project.spans()
    for before, after in [("policy", "sample@1"), ("prompts@1", "sample@1"), ("sample@1", "train@1")]:
        assert spans[before][1] < spans[after][0]
    heavy = sorted(span for name, span in spans.items() if name != "prompts@1")
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(heavy))
    states = task_states()
    assert set(states) == set(NODES)
    assert states["sample@1"] == ("Completed", 2)

    with get_client(sync_client=True) as client:
        artifact = next(a for a in client.read_artifacts(limit=5, sort="CREATED_DESC") if a.key == ARTIFACT)
    rows = [" ".join(line.split()) for line in artifact.data.splitlines()]
    assert "| Policy | Greedy | Pass@1 | Pass@8 | Tokens | Reward |" in rows
    assert "| 1 | 25.0 (20.0–30.0) | 50.0 | – | 7.0 | – |" in rows
    assert (project.folder / "report/index.html").as_uri() in artifact.data


def test_up_to_date_nodes_do_not_run(finished: Project, api: None) -> None:
    (finished.folder / "data/sample/1.txt").unlink()
    assert larpo() == dict.fromkeys(NODES, "UpToDate") | {"sample@1": "Restored"}
    assert finished.started() == []
    states = task_states()
    assert (states["sample@1"], states["report"]) == (("Restored", 1), ("UpToDate", 1))


def test_the_real_graph_is_found_up_to_date(finished_project, api: None, tmp_path, monkeypatch) -> None:
    """Prefect's tasks for lists@1 and all that it needs, in the finished run of the tiny policy."""
    monkeypatch.chdir(finished_project.copy(tmp_path / "real").folder)
    needed = ["policy", "prompts@1", "sample@1", "reward", "score@1", "candidates@1", "lists@1"]
    assert larpo(targets=["lists@1"]) == {"inputs": "Completed"} | dict.fromkeys(needed, "UpToDate")


def test_bad_input_is_not_tried_again(project: Project, api: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARPO_TEST_REFUSE", "sample@1")
    with pytest.raises(RunFailed) as caught:
        larpo(targets=["train"])
    expected = "sample@1: prompts.parquet row 3: expected text, found nothing; not run: train@1"
    assert str(caught.value) == expected
    assert sorted(project.started()) == ["policy", "prompts@1", "sample@1"]
    runs, changed = project.folder / ".larpo/runs", ["sample.responses=4"]
    with pytest.raises(RunFailed) as caught:
        larpo(targets=["train"], overrides=changed)
    assert str(caught.value) == expected and list(runs.iterdir()) == [], "what it needed came from the cache"
    with pytest.raises(RunFailed) as caught:
        larpo(targets=["train"], overrides=["prompts.per_iteration=4"])
    assert str(caught.value) == f"{expected}; kept in {next(runs.iterdir())}: prompts@1"


def test_changed_parameters_make_an_experiment(finished: Project, api: None) -> None:
    project = finished
    # An uncommitted change of the project belongs to the run as well.
    (project.folder / "report.py").write_text((project.folder / "report.py").read_text() + "\n# edited\n")
    before = (project.folder / "params.yaml").read_bytes()
    head = project.call("git", "rev-parse", "HEAD")

    outcomes = larpo(overrides=["train.learning_rate=3e-3"])
    assert project.started() == ["train@1", "evaluate@1-held_out"]
    assert [outcomes[n] for n in NODES] == ["Restored"] * 3 + ["Completed", "Restored", "Completed", "Completed"]
    assert (project.folder / "params.yaml").read_bytes() == before
    assert project.call("git", "rev-parse", "HEAD") == head

    (name,) = project.dvc("exp", "list", "--name-only").split()
    shown = project.dvc("exp", "show", "--csv", "--only-changed")
    assert name in shown
    assert "0.003" in shown
    assert list((project.folder / ".larpo/runs").iterdir()) == []
    assert (project.folder / f".larpo/reports/{name}/index.html").is_file()
    assert ".larpo" not in project.call("git", "status", "--porcelain")

    (project.folder / "data/evaluate/1-held_out.txt").unlink()
    project.dvc("exp", "apply", name)
    assert "learning_rate: 0.003" in (project.folder / "params.yaml").read_text()
    assert (project.folder / "data/evaluate/1-held_out.txt").is_file()
    assert "up to date" in project.dvc("status")


def test_larpo_exp_leaves_the_folder_as_it_is(project: Project) -> None:
    """Without Prefect, and with files that Git does not know."""
    (project.folder / "mine.jsonl").write_text("{}")
    state = (project.folder / "params.yaml").read_bytes(), project.call("git", "status", "--porcelain")
    done = larpo_command(project.folder, "exp", "-S", "train.learning_rate=3e-3")
    assert done.returncode == 0, done.stderr
    assert sorted(project.started()) == sorted(NODES[:-1])
    name = "learning-rate-3e-3"
    said = done.stdout.splitlines()
    assert said[-2] == f"compare: dvc metrics diff HEAD {name}; take it over: dvc exp apply {name}"
    assert (
        said[-3] == str(project.folder / f".larpo/reports/{name}/index.html") and "held_out: % of items" in done.stdout
    )
    assert state == ((project.folder / "params.yaml").read_bytes(), project.call("git", "status", "--porcelain"))
    assert project.dvc("exp", "list", "--name-only").split() == [name]
    again = larpo_command(project.folder, "exp", "--iterations", "1")
    assert again.returncode == 2 and "nothing differs from params.yaml" in again.stderr


def test_a_clone_sees_the_files_that_parameters_name_though_git_does_not_hold_them(project: Project) -> None:
    """A dataset of one's own in data/, which .gitignore leaves out; `..` never leads out of the clone."""
    own = project.folder / "data/own/rows.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    with (project.folder / ".gitignore").open("a") as file:
        file.write("/data/\n")
    (project.folder / ".git/info/exclude").write_text("my-*\n")
    (project.folder / "my-model").mkdir()
    (project.folder / "my-model/config.json").write_text("{}")
    outside = project.folder.parent / "outside.txt"
    outside.write_text("x")
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["prompts"] |= {"dataset": "data/own/rows.jsonl", "prompt_field": "../outside.txt"}
    params["policy"]["model"] = "my-model"
    workspace = Workspace(project.folder, "clone")
    workspace.open(yaml.safe_dump(params))
    assert (workspace.folder / "data/own/rows.jsonl").read_text() == "{}"
    assert (workspace.folder / "my-model/config.json").is_file(), "a checkpoint's name needs no slash"
    assert not (workspace.folder.parent / "outside.txt").exists()
    workspace.close()
    assert own.read_text() == "{}", "closing removes the link, not what it leads to"


def test_a_clone_forgets_stages_that_its_parameters_do_not_have(finished: Project) -> None:
    """DVC reads and writes all of dvc.lock with each node: of fifty stages for the sixteen of a small run."""
    lock = finished.folder / "dvc.lock"
    held = yaml.safe_load(lock.read_text())
    assert set(held["stages"]) == set(NODES)
    lock.write_text(yaml.safe_dump(held | {"stages": held["stages"] | {"train@9": held["stages"][NODES[-1]]}}))
    finished.call("git", "add", "dvc.lock")
    finished.call("git", "commit", "-q", "-m", "another iteration was run")
    workspace = Workspace(finished.folder, "clone")
    workspace.open((finished.folder / "params.yaml").read_text())
    assert yaml.safe_load((workspace.folder / "dvc.lock").read_text()) == held
    workspace.close()


def test_sections_are_laid_over_before_anything_else(project: Project) -> None:
    """The shipped profile fits the project's own parameters, and an override is laid over it."""
    text = changed_params(
        project.folder, overrides=["sample.responses=6"], overlays=[ROOT / "configs/params-tiny.yaml"]
    )
    found = yaml.safe_load(text)
    assert (list(found["iterations"]), found["retrieval"], list(found["benchmarks"])) == (["1"], {}, ["held_out"])
    assert (found["sample"]["responses"], found["prompts"]["per_iteration"]) == (6, 16)
    assert found["benchmarks"]["held_out"]["generate"]["max_new_tokens"] == 16


def test_own_code_is_named_where_params_yaml_has_braces(project: Project) -> None:
    """DVC writes `{reward: mine.py:reward}`, which YAML does not read."""
    path = project.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(params, default_flow_style=True))
    overrides = ["score.reward=mine.py:reward", "benchmarks.held_out.options.rule=final_number"]
    path.write_text(changed_params(project.folder, overrides=overrides))
    found = yaml12.read(path)
    params["train"] = found["train"]
    held_out = params["benchmarks"]["held_out"] | {"options": {"rule": "final_number"}}
    assert found["score"]["reward"] == "mine.py:reward" and found["benchmarks"]["held_out"] == held_out
    assert {**found, "score": 0, "benchmarks": 0} == {**params, "score": 0, "benchmarks": 0}


def test_more_iterations_continue_the_last(project: Project) -> None:
    text = changed_params(project.folder, iterations=2)
    assert text is not None
    assert text.startswith("# a comment")
    (project.folder / "params.yaml").write_text(text)
    assert changed_params(project.folder, iterations=2) is None
    fewer = changed_params(project.folder, iterations=1)
    assert fewer is not None
    two, one = yaml.safe_load(text), yaml.safe_load(fewer)
    assert two["iterations"]["2"] == {"previous": "1", "temperatures": [0.8]}
    assert two["evaluate"]["policies"] == ["0", "1", "2"]
    assert list(one["iterations"]) == ["1"]
    assert one["evaluate"]["policies"] == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": ["train.learning_rat=1"]}, "train.learning_rat: does not exist; did you mean 'learning_rate'"),
        ({"overrides": ["train.learning_rate"]}, "override 'train.learning_rate': expected key=value"),
        ({"overrides": ["train.epochs=1,2"]}, "expected one value; a list is written"),
        ({"overrides": ["train.learning_rate=-1"]}, "train.learning_rate: input should be greater than 0, found -1"),
        ({"objective": "listmel"}, "did you mean 'listmle'"),
        ({"iterations": 0}, "iterations: expected 1 or more, found 0"),
    ],
)
def test_wrong_parameters_are_one_line(project: Project, arguments: dict, message: str) -> None:
    before = (project.folder / "params.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        changed_params(project.folder, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (project.folder / "params.yaml").read_bytes() == before


def test_command_refuses_before_anything_runs(project: Project, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["flows.run", "--set", "sample.reponses=4"])
    monkeypatch.setattr("flows.server.some_server", None)  # nor is a server started
    assert main() == 2 and project.started() == []
    assert capsys.readouterr().err == "error: params.yaml: sample.reponses: does not exist; did you mean 'responses'?\n"


# kill -9 hits a light node: a heavy one's slot would stay taken for a minute, which the next tests would wait for.
@pytest.mark.parametrize(
    ("number", "node"), [(signal.SIGTERM, "policy"), (signal.SIGINT, "prompts@1"), (signal.SIGKILL, "prompts@1")]
)
def test_a_killed_run_leaves_no_process(project: Project, serving: Serving, number: int, node: str) -> None:
    env = os.environ | serving.variables | {"LARPO_TEST_SLEEP": node}
    command = [sys.executable, "-m", "flows.run", "--target", node]
    with (project.folder.parent / "output").open("w") as out:
        run = subprocess.Popen(command, cwd=project.folder, env=env, stdout=out, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not project.started():
        assert run.poll() is None, (project.folder.parent / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(project.processes()) >= 4  # the run, its supervisor, dvc, the stage
    before = (project.folder.parent / "output").read_text()
    run.send_signal(number)
    run.wait(30)
    project.wait_until_gone(20)
    printed = (project.folder.parent / "output").read_text().removeprefix(before)
    assert printed == ("" if number == signal.SIGKILL else "stopped\n")


def test_runs_without_a_server(project: Project) -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.run", "--target", "prompts"]
    done = subprocess.run(command, cwd=project.folder, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 Completed, 0 Restored, 0 UpToDate"
    assert "prompts@1: try 1" in done.stderr
    assert (project.folder / ".prefect/prefect.db").is_file()
    project.wait_until_gone(10)


def test_output_of_a_node_cannot_pass_for_dvc() -> None:
    output = Output("train@1")
    for line in ["Running stage 'train@1':", "Stage 'train@1' didn't change, skipping"]:
        output.read(line)
    assert output.outcome == "ran"
