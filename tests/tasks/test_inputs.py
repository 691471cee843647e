"""Node `inputs`: what lies outside is seen when it changes, and only by the nodes that read it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks.inputs
from larpo.errors import UserError
from larpo.sources import hub
from tests.conftest import Project
from tests.tasks.conftest import change, record

ROWS = "".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(40))
OWN = "from own_helper import SHORT\n\ndef brief(response) -> float:\n    return -len(response) / SHORT\n"
MINE = {"source": "dataset", "dataset": "mine.jsonl", "answer_field": "answer", "per_iteration": 4}


@pytest.fixture
def folder(workspace: Path) -> Path:
    Path("mine.jsonl").write_text(ROWS)
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    Path("own_reward.py").write_text(OWN)
    Path("own_helper.py").write_text("SHORT = 10\n")
    sft = {"previous": "0", "learning_rate": 1e-3, "data": MINE | {"solution_field": "answer"}, "examples": 2}
    sft["data"] = {k: v for k, v in sft["data"].items() if k != "per_iteration"}
    held_out = {"items": 4, "options": {"rule": "final_number"}, "generate": {"max_new_tokens": 4}}
    change(
        prompts=MINE,
        sft={"base": sft},
        score={"reward": "own_reward.py:brief"},
        benchmarks={
            "held_out": held_out,
            "gsm8k": {"benchmark": "gsm8k", "data": "mine.jsonl", "generate": {"max_new_tokens": 4}},
        },
    )
    return workspace


def records() -> dict[str, bytes]:
    return {p.relative_to("data/inputs").as_posix(): p.read_bytes() for p in Path("data/inputs").rglob("*.json")}


def append(path: str, text: str) -> Callable[[], int]:
    return lambda: Path(path).write_text(Path(path).read_text() + text)


@pytest.mark.parametrize(
    ("spoil", "changed"),
    [
        (lambda: None, set()),
        (lambda: Path("mine.jsonl").touch(), set()),
        (
            append("mine.jsonl", ROWS[:1] and '{"prompt": "9 + 9 =", "answer": "18"}\n'),
            {"prompts", "sft/base", "benchmarks/gsm8k"},
        ),
        (append("own_reward.py", "# longer\n"), {"score"}),
        (append("own_helper.py", "# longer\n"), {"score"}),
        (append("pairs.jsonl", "\n"), set()),
    ],
    ids=["nothing", "its time", "the dataset", "own code", "what own code imports", "what nothing names"],
)
def test_a_change_is_in_the_records_that_name_it_and_in_no_other(folder, capsys, spoil, changed):
    tasks.inputs.main()
    before, manifest = records(), Path("data/inputs.manifest.json").read_bytes()
    assert {"policy.json", "sft/base.json", "benchmarks/held_out.json", "lists.json"} <= before.keys()
    assert all(str(folder) not in content.decode() for name, content in before.items() if name != "policy.json")
    capsys.readouterr()
    spoil()
    tasks.inputs.main()
    assert {name.removesuffix(".json") for name, content in records().items() if before[name] != content} == changed
    assert (Path("data/inputs.manifest.json").read_bytes() == manifest) == (not changed)
    assert bool(capsys.readouterr().out) == bool(changed), "nothing to do, nothing said"


def test_own_code_is_recorded_with_what_it_imports_and_never_run(folder):
    Path("own_helper.py").write_text("raise SystemExit\n")
    tasks.inputs.main()
    (code,) = record("data/inputs/score.json")
    assert (code["kind"], list(code["files"])) == ("code", ["own_helper.py", "own_reward.py"])


def test_the_hub_is_asked_once_and_its_commit_is_taken_where_it_is_away(folder, monkeypatch, capsys):
    change(policy={"model": "owner/model"})
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "_sha", lambda *_: "a" * 40)
    tasks.inputs.main()
    before = records()
    assert record("data/inputs/policy.json")[0]["version"] == "a" * 40
    monkeypatch.setattr(hub, "unreachable", lambda: "no network")
    tasks.inputs.main()
    assert records() == before
    assert (
        "owner/model: the hub cannot be reached (no network); taken is commit aaaaaaaaaaaa" in capsys.readouterr().out
    )
    change(policy={"model": "owner/other"})
    with pytest.raises(UserError, match=r"^params\.yaml: policy\.model: owner/other: the hub cannot be reached"):
        tasks.inputs.main()
    assert records() == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda: Path("mine.jsonl").rename("mine.jsonl.dvc"),
            "mine.jsonl: not here; DVC tracks it: `dvc pull mine.jsonl`",
        ),
        (lambda: Path("mine.jsonl").unlink(), r"prompts\.dataset: mine\.jsonl: not found; expected a file"),
        (lambda: Path("own_reward.py").unlink(), r"score\.reward: own_reward\.py:brief: no such module here"),
    ],
)
def test_what_is_not_there_is_one_line(folder, spoil, words):
    spoil()
    change(
        benchmarks={"held_out": {"items": 4, "options": {"rule": "final_number"}, "generate": {"max_new_tokens": 4}}}
    )
    with pytest.raises(UserError, match=words):
        tasks.inputs.main()


NARROW = {
    "tasks": [{"name": "chain_sum", "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}]
}
SFT = {"previous": "0", "learning_rate": 1e-3, "data": NARROW, "examples": 300}
HELD_OUT = {"items": 99, "generate": {"max_new_tokens": 4}}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"prompts": NARROW | {"per_iteration": 300}}, ("prompts.tasks: the generators: 140", "prompts.per_iteration")),
        (
            {"prompts": NARROW | {"per_iteration": 9}, "benchmarks": {"held_out": HELD_OUT}},
            ("prompts.tasks: the generators: 60", "99 asked for by benchmarks.held_out.items; expected at most 60"),
        ),
        ({"sft": {"base": SFT}}, ("sft.base.data.tasks: the generators: 140", "300 asked for by sft.base.examples")),
        (
            {"prompts": {"source": "sums", "sums": {"digits": 1}, "per_iteration": 300}},
            ("prompts.source: sums: 58 different", "300 asked for by prompts.per_iteration"),
        ),
        ({"prompts": MINE | {"per_iteration": 40}}, ("prompts.dataset: mine.jsonl:", "prompts.per_iteration")),
    ],
    ids=["a generator", "its held-out part", "fine-tuning", "sums", "a file"],
)
def test_fewer_prompts_than_asked_for_are_refused_before_anything_is_made(workspace, sections, words):
    Path("mine.jsonl").write_text(ROWS)
    change(**sections)
    with pytest.raises(UserError) as refused:
        tasks.inputs.main()
    assert all(word in str(refused.value) for word in ("params.yaml: ", *words)), str(refused.value)
    assert not Path("data/inputs").exists()


def test_under_dvc_a_changed_file_runs_what_reads_it(project: Project, warm_nodes):
    """`prompts@1` reads the file, `policy` does not; a second time nothing runs, and dvc.lock stays as it is."""
    project.variables = warm_nodes
    (project.folder / "mine.jsonl").write_text(ROWS)
    text = project.folder / "params.yaml"
    start = text.read_text().index("prompts:\n")
    end = text.read_text().index("engine:")
    text.write_text(text.read_text()[:start] + f"prompts: {json.dumps(MINE)}\n" + text.read_text()[end:])

    def ran() -> list[str]:
        said = project.dvc("repro", "prompts@1", "policy").stdout
        return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]

    assert sorted(ran()) == ["inputs", "policy", "prompts@1"]
    lock = (project.folder / "dvc.lock").read_bytes()
    assert ran() == ["inputs"] and (project.folder / "dvc.lock").read_bytes() == lock
    (project.folder / "mine.jsonl").write_text(ROWS + '{"prompt": "9 + 9 =", "answer": "18"}\n')
    assert ran() == ["inputs", "prompts@1"]
    sources = json.loads((project.folder / "data/prompts/1.manifest.json").read_text())["notes"]["sources"]
    assert [(s["name"], s["kind"]) for s in sources] == [("mine.jsonl", "file")]
