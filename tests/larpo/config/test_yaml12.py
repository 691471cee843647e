"""The one reader of YAML gives what DVC's gives."""

import datetime

import pytest
from dvc.utils import dict_sha256
from dvc.utils.serialize import load_yaml, loads_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from larpo.config import yaml12
from larpo.config.overlays import read_sections
from larpo.errors import UserError
from larpo.load import load_params
from tests.conftest import ROOT, TINY_PARAMS

SCALARS = ["1e-6", "-1E+5", "1.e3", ".5", "060", "0o17", "0x1f", "0b11", "3:20", "1_000", "yes", "No", "on", "OFF", "~"]
SCALARS += ["null", "Null", "true", "TRUE", "y", "+12", "-0", "0.1_0", "'1e-6'", '"060"', "a: b", "!!str 3", ".inf"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.sampled_from(SCALARS) | st.text("-+.:_eExob0189", min_size=1, max_size=8), min_size=1, max_size=6))
def test_every_scalar_is_what_dvc_reads(scalars):
    text = "free:\n" + "".join(f"  k{i}: {scalar}\n" for i, scalar in enumerate(scalars))
    found = []
    for reader in (yaml12.parse, loads_yaml):
        try:
            found.append(repr(reader(text)))  # so that NaN equals itself, and 1 is neither 1.0 nor true
        except yaml12.UNREADABLE as error:
            found.append(type(error).__name__)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "file", ["dvc.yaml", "params.yaml", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("studies/*.yaml"))]
)
def test_the_projects_own_files(file):
    assert yaml12.read(ROOT / file) == load_yaml(ROOT / file)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.sampled_from(SCALARS)
        | st.text("a 0o17:e-\n'#", max_size=12),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text("ab0", min_size=1, max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_again(tree):
    """A study's parameters go through a file: text that looks like a number stays text."""
    assert yaml12.parse(yaml12.write({"a": tree})) == {"a": tree}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: found duplicate key"),
        ("a: {b: 1, b: 2}", "line 1: found duplicate key"),
        ('a: {"1": 1, 1: 2}', "a.1: stands twice, as '1' and as 1"),
        ("a: [{d: 2024-03-01}]", "a.0.d: 2024-03-01 is a date to YAML; put it in quotes"),
        ("a: &a {b: [*a]}", "a.b.0: holds itself"),
        ("a: {[1]: 2}", "expected a name as key, found (1,)"),
        ("a: {~: 2}", "expected a name as key, found None"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("- " * 100_000, "nested more than 100 deep"),
        ("a: 2024-13-01", "not valid YAML"),
        ("a: =", "not valid YAML"),
        ("[1]", "expected a mapping of sections, found list"),
        ("", "expected a mapping of sections, found NoneType"),
    ],
)
def test_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "o.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_sections(tmp_path / "o.yaml")
    assert words in str(caught.value) and "\n" not in str(caught.value) and "o.yaml" in str(caught.value)


def test_a_merge_key_may_stand_beside_what_it_overrides():
    assert yaml12.parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


def test_why_dates_are_refused():
    """DVC hashes a stage's parameters through JSON, after the node has run."""
    with pytest.raises(TypeError):
        dict_sha256({"params": {"policy.date": datetime.date(2024, 3, 1)}})


def test_free_options_are_numbers(tmp_path):
    text = TINY_PARAMS.format(policy=tmp_path).replace(
        "save_steps: 1", "save_steps: 1\n  trainer_options: {adam_epsilon: 1e-6}"
    )
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").train.trainer_options == {"adam_epsilon": 1e-6}
