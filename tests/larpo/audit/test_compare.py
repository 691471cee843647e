"""How two versions of an output differ: the first place by hand, any flipped byte, and what counts as the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from larpo import tables
from larpo.audit.compare import files, rules, values
from larpo.audit.compare.files import first_difference
from larpo.audit.compare.rules import STEP, Comparison, Terms
from larpo.audit.compare.samples import sign_flip
from larpo.errors import UserError
from larpo.graph import kinds

ELSEWHERE = Terms(repeatable=False)
KINDS = kinds()


def compare(kind: str, expected: Path, found: Path, terms: Terms | None = None) -> Comparison:
    return rules.compare(KINDS[kind].compare, expected, found, terms)


def responses(texts: list[str], cut: tuple[int, ...] = (), temperature: float = 1.0) -> pd.DataFrame:
    """Two responses per prompt; a text's characters are its tokens."""
    n = len(texts)
    return pd.DataFrame(
        {
            "prompt_id": [f"p{i // 2}" for i in range(n)],
            "response_id": [f"r{i}" for i in range(n)],
            "iteration": 1,
            "temperature": temperature,
            "seed": 7,
            "text": texts,
            "prompt_token_ids": [[1, i // 2] for i in range(n)],
            "token_ids": [[ord(c) for c in text] for text in texts],
            "finish_reason": ["length" if i in cut else "stop" for i in range(n)],
            "origin": "policy",
        }
    )


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Files of a few hundred bytes are read in several chunks, as large ones are."""
    monkeypatch.setattr(files, "CHUNK", 64)


@pytest.fixture
def pair(tmp_path: Path):
    """Write two frames as one table, return the two paths."""

    def written(table: str, expected: pd.DataFrame, found: pd.DataFrame) -> tuple[Path, Path]:
        paths = tmp_path / "expected" / "1.parquet", tmp_path / "found" / "1.parquet"
        for frame, path in zip((expected, found), paths, strict=True):
            tables.write(frame, table, path)
        return paths

    return written


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two equal folders with a small file of each kind that outputs consist of."""
    folder = tmp_path_factory.mktemp("kinds") / "expected"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {"a": torch.randn(4, 3), "b": torch.randn(5).to(torch.bfloat16), "c": torch.tensor(2.0)}
    save_file(tensors, folder / "model.safetensors")
    np.save(folder / "vectors.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    (folder / "metrics.json").write_text(json.dumps({"loss": [0.5, {"x": None}], "name": "é"}, indent=1))
    (folder / "page.html").write_text("<p>page</p>")
    tables.write(responses(["38", "39", "7", "7"]), "responses", folder / "sample.parquet")
    shutil.copytree(folder, folder.with_name("found"))
    return folder, folder.with_name("found")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_in_any_kind_of_file_is_found(folders, data):
    """Also where it makes the file unreadable or hits bytes that hold no value; and without one nothing is found."""
    expected, found = folders
    assert first_difference(expected, found) is None
    name = data.draw(st.sampled_from(files.files_of(expected)))
    original = (expected / name).read_bytes()
    content = bytearray(original)
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (found / name).write_bytes(content)
    try:
        byte = f"byte {at}: expected 0x{original[at]:02x}, found 0x{content[at]:02x} ({len(content)} bytes)"
        assert files.first_byte(expected / name, found / name) == byte
        told = first_difference(expected / name, found / name)
        assert told and "\n" not in told
        assert first_difference(expected, found) == f"{name}: {told}"
        assert compare("sample", expected, found).how == "differs"
    finally:
        (found / name).write_bytes(original)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": (2, "8")}, "row 2 (response_id r2), column text: expected '7', found '8'"),
        ({"token_ids": (1, [51, 58])}, "row 1 (response_id r1), column token_ids: element 1: expected 57, found 58"),
        ({"seed": (3, None)}, "row 3 (response_id r3), column seed: expected 7, found None"),
        ({"response_id": (0, "x")}, "row 0, column response_id: expected 'r0', found 'x'"),
        # Two columns of one row, and a later row: the first column of the first row.
        (
            {"finish_reason": (0, "length"), "text": (0, "3"), "origin": (1, "gold")},
            "row 0 (response_id r0), column text: expected '38', found '3'",
        ),
    ],
)
def test_a_table_names_its_first_row_and_column(pair, change, told):
    frame = responses(["38", "39", "7", "7"])
    other = frame.astype({"seed": object})
    for column, (row, new) in change.items():
        other.at[row, column] = new
    assert first_difference(*pair("responses", frame, other)) == told


def test_rows_are_counted_over_batches_and_missing_or_added_ones_named(pair, monkeypatch):
    monkeypatch.setattr(files, "ROWS", 3)
    frame = responses([str(i) for i in range(10)])
    other = frame.copy()
    other.at[8, "text"] = "x"
    told = "row 8 (response_id r8), column text: expected '8', found 'x'"
    assert first_difference(*pair("responses", frame, other)) == told
    assert first_difference(*pair("responses", frame, frame[:7])) == "row 7: missing; expected 10 rows, found 7"
    assert first_difference(*pair("responses", frame[:6], frame)) == "row 6: added; expected 6 rows, found 10"


def test_same_rows_in_another_encoding_are_told_apart_from_other_rows(pair):
    import pyarrow.parquet as pq

    expected, found = pair("responses", *[responses(["38", "39"])] * 2)
    pq.write_table(pq.read_table(expected), found, compression="snappy")
    assert first_difference(expected, found).startswith("same rows, written differently: byte ")
    assert compare("lists", expected, found).how == "differs"
    assert compare("lists", expected, found, ELSEWHERE).how == "within tolerance"


def test_long_texts_are_cut_around_the_difference():
    told = values.contrast("a" * 500, "a" * 400 + "b" + "a" * 99)
    assert told.startswith("character 400: expected 'aaa") and "ab" in told and len(told) < 200


def test_tensors_name_the_first_element_the_largest_difference_and_how_many(tmp_path):
    """b[1, 0] goes from 4 to 4.25 and c[0] from 1 to 0.5: two of three tensors, the largest |Δ| is 0.5."""
    tensors = {"a": torch.zeros(2), "b": torch.tensor([[1.0, 2], [4, 8]], dtype=torch.bfloat16), "c": torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["b"][1, 0], tensors["c"][0] = 4.25, 0.5
    save_file(tensors, tmp_path / "b.safetensors")
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    told = first_difference(*paths)
    # In the order of the file, which holds float32 before bfloat16.
    assert told == "tensor c, index [0]: expected 1.0, found 0.5; 2 of 3 tensors differ, largest |Δ| 0.5"
    save_file(tensors | {"c": torch.ones(2)}, paths[1])
    assert "tensor c: expected F32 [1], found F32 [2]" in first_difference(*paths)
    del tensors["c"]
    save_file(tensors, paths[1])
    assert "tensor c: missing" in first_difference(*paths)


def test_slices_of_a_tensor_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ELEMENTS", 6)  # two rows of three
    x = np.zeros((7, 3), np.float32)
    np.save(tmp_path / "a.npy", x)
    x[5, 2] = 1
    np.save(tmp_path / "b.npy", x)
    told = first_difference(tmp_path / "a.npy", tmp_path / "b.npy")
    assert told == "tensor array, index [5, 2]: expected 0.0, found 1.0; 1 of 1 tensors differ, largest |Δ| 1"


def test_json_names_the_path_of_the_key():
    assert values.first_key({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == "a.0.b: expected 1, found 2"
    assert values.first_key({"a": 1, "c": 0}, {"a": 1, "b": 0}) == "c: expected 0, found absent"
    assert values.first_key({"a": [1]}, {"a": [1, 2]}) == "a: expected 1 elements, found 2"
    assert values.first_key({"a": 1}, {"a": 1.0}) == "a: expected 1, found 1.0"
    assert values.first_key([float("nan")], [float("nan")]) is None


def test_folders_name_the_first_file(folders, tmp_path):
    expected = folders[0]
    other = shutil.copytree(expected, tmp_path / "other")
    (other / "page.html").rename(other / "zzz")
    assert first_difference(expected, other) == "page.html: missing"
    assert first_difference(other, expected) == "page.html: extra"
    assert first_difference(expected, tmp_path / "none") == "expected: expected a folder, found nothing"
    assert compare("policy", expected, other).difference == "page.html: missing"


# What counts as the same


def test_a_rule_that_does_not_exist(folders):
    with pytest.raises(UserError, match="rule: 'weight' does not exist; did you mean 'weights'"):
        rules.compare({"*": "weight"}, folders[0] / "page.html", folders[0] / "metrics.json")


def test_weights_are_measured_in_steps_of_the_optimiser(tmp_path):
    """Δ = 0.002 in one of four elements: root mean square √(0.002² / 4) = 0.001, half of it STEP at learning rate
    0.02 and all of it at 0.01. Copied weights have no learning rate: 0.002 / (1 + 0) is far from 1e-6."""
    save_file({"w": torch.zeros(4), "v": torch.ones(400)}, tmp_path / "a.safetensors")
    save_file({"w": torch.tensor([0, 0.002, 0, 0]), "v": torch.ones(400)}, tmp_path / "b.safetensors")
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert STEP == 0.1
    close = compare("train", *paths, Terms(learning_rate=0.02))
    assert close.how == "within tolerance" and "0.05 · learning rate (w), allowed 0.1" in close.detail
    far = compare("train", *paths, Terms(learning_rate=0.00999))
    assert far.how == "differs" and far.difference.startswith("tensor w, index [1]: expected 0.0, found 0.002")
    assert compare("policy", *paths).how == "differs"
    save_file({"w": torch.zeros(4), "v": torch.ones(400) * (1 + 5e-7)}, paths[1])
    assert compare("policy", *paths).how == "within tolerance"
    save_file({"w": torch.full((4,), float("nan")), "v": torch.ones(400)}, paths[1])
    assert compare("train", *paths, Terms(learning_rate=1.0)).how == "differs"


def reference(*logps: float) -> pd.DataFrame:
    ids = [f"r{i}" for i in range(len(logps))]
    return pd.DataFrame(
        {"prompt_id": "p", "response_id": ids, "reference_logp": logps, "n_tokens": 3, "mismatched_logp": None}
    )


def test_log_probabilities_may_deviate_and_nothing_else(pair):
    """|−9.0009 + 9| / (1 + 9) = 0.00009 ≤ 0.0001; −9.0011 gives 0.00011."""
    paths = pair("reference", reference(-1, -9), reference(-1, -9.0009))
    close = compare("reference", *paths)
    assert close.how == "within tolerance" and "9e-05 (reference_logp, row 1), allowed 0.0001" in close.detail
    far = compare("reference", *pair("reference", reference(-1, -9), reference(-1, -9.0011)))
    assert far.difference == (
        "row 1 (prompt_id p, response_id r1), column reference_logp: expected -9.0, found -9.0011"
    )
    other = compare("reference", *pair("reference", reference(-1, -9), reference(-1, -9).assign(n_tokens=[3, 4])))
    assert other.how == "differs" and "column n_tokens: expected 3, found 4" in other.difference
    assert compare("lists", *paths).how == "differs"


def test_a_rules_rewards_are_exact_and_a_models_are_not(pair):
    frame = pd.DataFrame({"response_id": ["r"], "reward": [1.0], "correct": [True], "reward_name": "x"})
    paths = pair("rewards", frame, frame.assign(reward=1.00001))
    assert compare("score", *paths).how == "differs"
    assert compare("score", *paths, Terms(rule=False)).how == "within tolerance"


def test_curves_hold_numbers_and_configurations_do_not(tmp_path):
    for folder, loss, eps in (("a", 2.0, 1.0), ("b", 2.002, 1.001)):
        home = tmp_path / folder
        home.mkdir()
        (home / "loss.tsv").write_text(f"step\tloss\n1\t{loss}\n")
        (home / "metrics.json").write_text(json.dumps({"loss": loss, "step": 1}))
        (home / "config.json").write_text(json.dumps({"eps": eps}))
    found = compare("train", tmp_path / "a", tmp_path / "b")
    assert found.difference == "config.json: eps: expected 1.0, found 1.001"
    (tmp_path / "b/config.json").write_text(json.dumps({"eps": 1.0}))
    found = compare("train", tmp_path / "a", tmp_path / "b")
    assert found.how == "within tolerance" and "0.00067, allowed 0.001" in found.detail  # 0.002 / (1 + 2)
    # Pairs that rounding alone orders: told on the same machine, and no question on another.
    for folder, share in (("a", 0.25), ("b", 0.5)):
        (tmp_path / folder / "reward_accuracy.tsv").write_text(f"step\treward_accuracy\n1\t{share}\n")
        (tmp_path / folder / "metrics.json").write_text(json.dumps({"reward_accuracy": share, "step": 1}))
    found = compare("train", tmp_path / "a", tmp_path / "b")
    assert found.difference == "metrics.json: reward_accuracy: expected 0.25, found 0.5"
    assert compare("train", tmp_path / "a", tmp_path / "b", ELSEWHERE).how == "within tolerance"


def test_the_sign_flip_test_by_hand():
    """d = (1, 1, 1): the sum 3 or −3 in 2 of 8 assignments, z = 3/√3; d = (1, 2, −3): the sum is 0, every one is as
    large. 100 times 1: z = 10. Zeros say nothing."""
    z, p = sign_flip(np.array([1, 0, 1, 1, 0]))
    assert (z, p) == (pytest.approx(3**0.5), 2 / 8)
    assert sign_flip(np.array([1, 2, -3])) == (0.0, 1.0)
    z, p = sign_flip(np.ones(100))
    assert z == pytest.approx(10) and p == pytest.approx(1.5239706e-23)
    assert sign_flip(np.zeros(4)) == (0.0, 1.0)


def test_the_sign_flip_test_rejects_as_often_as_it_says():
    """Samples of one distribution: at level 0.05 about 5 of 100 comparisons are rejected, by either branch."""
    rng = np.random.default_rng(0)
    for pairs in (12, 60):
        p = [sign_flip(rng.geometric(0.3, pairs) - rng.geometric(0.3, pairs))[1] for _ in range(1000)]
        assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.065


def right(rows: pd.DataFrame) -> np.ndarray:
    return (rows["text"] == "7").to_numpy(dtype=float)


def test_samples_of_another_machine_are_tested_and_of_the_same_one_compared(pair):
    rng = np.random.default_rng(1)
    a, b = ([*map(str, rng.choice([7, 8, 39], 400))] for _ in range(2))
    paths = pair("responses", responses(a), responses(b))
    assert compare("sample", *paths).how == "differs"
    found = compare("sample", *paths, Terms(repeatable=False, score=right))
    same = sum(x == y for x, y in zip(a, b, strict=True))
    assert found.how == "statistically alike" and f"sampled: {same} of 400 identical" in found.detail
    assert found.detail.endswith("each at 0.0003")  # 0.001 over length, share cut off and reward
    # 30 wrong answers made right, of the same length: 2 of 2^30 assignments, and the normal tail of √30.
    wrong = [i for i, text in enumerate(a) if text == "8"][:30]
    forged = ["7" if i in wrong else text for i, text in enumerate(a)]
    paths = pair("responses", responses(forged), responses(a))
    found = compare("sample", *paths, Terms(repeatable=False, score=right))
    assert found.how == "differs" and "reward -0.075 (z -5.48" in found.detail
    line = f"row {wrong[0]} (response_id r{wrong[0]}), column text: expected '7', found '8'"
    assert found.difference == line
    assert compare("sample", *paths, ELSEWHERE).how == "statistically alike"  # nothing but a rule tells 7 from 8
    # 30 answers cut off.
    paths = pair("responses", responses(a), responses(a, cut=tuple(range(30))))
    assert "cut off +0.075" in compare("sample", *paths, ELSEWHERE).detail
    assert compare("sample", *paths, ELSEWHERE).how == "differs"


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("prompt_id", "q", "column prompt_id"),
        ("temperature", 0.5, "column temperature"),
        ("seed", 8, "column seed"),
        ("prompt_token_ids", [9], "column prompt_token_ids"),
        ("origin", "gold", "column origin"),
    ],
)
def test_what_was_asked_is_the_same_on_any_machine(pair, column, value, told):
    frame = responses(["38", "39", "7", "8"])
    other = frame.copy()
    other.at[2, column] = value
    found = compare("sample", *pair("responses", frame, other), ELSEWHERE)
    assert found.how == "differs" and told in found.difference and found.difference.startswith("row 2 ")


def test_the_share_of_identical_greedy_texts_is_told(pair):
    frame = responses(["38", "39", "7", "8"]).drop(columns=["response_id", "iteration", "seed", "origin"])
    frame = frame.assign(temperature=[0.0, 1.0, 0.0, 1.0], sample=[-1, 0, -1, 0], turn=0, n_tokens=1)
    other = frame.copy()
    other.at[2, "text"] = "9"
    found = compare("generate", *pair("outputs", frame, other), ELSEWHERE)
    assert found.how == "statistically alike"
    assert "greedy: 1 of 2 identical" in found.detail and "sampled: 2 of 2 identical" in found.detail
