"""Names of things: ours, anybody's own by a dotted path, and code that is run only where somebody says so."""

import hashlib
import sys
from pathlib import Path

import pytest

from larpo.errors import ParameterError, at
from larpo.registry import OwnCodeError, Registry, is_own, own_code, own_files, own_modules
from tests.conftest import tiny_params

THINGS = Registry("thing", {"path": "pathlib:Path", "data": 3})
CODE = "from registry_test.helper import TOLD\n\nclass Mine:\n    words = TOLD\n"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    (tmp_path / "registry_test").mkdir()
    (tmp_path / "registry_test/__init__.py").touch()
    (tmp_path / "registry_test/things.py").write_text(CODE)
    (tmp_path / "registry_test/helper.py").write_text("TOLD = 'mine'\n")
    (tmp_path / "registry_test/broken.py").write_text("raise RuntimeError('no\\nway')\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "registry_test"]:
        del sys.modules[name]


def test_own_code_runs_where_it_is_let_and_is_recorded(package):
    name = "registry_test.things:Mine"
    THINGS.check(name)
    with pytest.raises(OwnCodeError, match=f"^p.yaml: a.b: thing {name} is code of the run's own"), at("a", "p.yaml"):
        THINGS.load(name, "b")
    assert "registry_test" not in sys.modules and own_modules() == {}
    files = [f"registry_test/{file}.py" for file in ("__init__", "helper", "things")]
    assert list(own_files(name)) == list(own_files("registry_test/things.py:Mine")) == files
    assert own_files("registry_test.none:X") == own_files("none.py:X") == {}
    path = list(sys.path)
    with own_code():
        assert own_modules() == {}
        assert THINGS.load(name).words == "mine"
        recorded = own_modules()
    assert sys.path == path
    assert recorded["registry_test.things"] == hashlib.sha256(CODE.encode()).hexdigest()
    assert set(recorded) == {"registry_test", "registry_test.things", "registry_test.helper"}
    with pytest.raises(OwnCodeError):
        THINGS.load(name)


def test_own_code_by_its_file(package):
    """With what lies beside it; a plain function becomes what its kind needs."""
    Path("registry_test/alone_test.py").write_text("import helper\n\ndef mine():\n    return helper.TOLD\n")
    adapted = Registry("thing", {}, plain="larpo.hashing:digest")
    path = list(sys.path)
    with own_code():
        assert THINGS.load("registry_test/alone_test.py:mine")() == "mine"
        recorded = own_modules()
        with pytest.raises(ParameterError, match=r"is not JSON serializable"):
            adapted.load("registry_test/alone_test.py:mine")
    assert sys.path == path and list(recorded) == ["alone_test"]
    for name in ("alone_test", "helper"):
        del sys.modules[name]


def test_what_is_no_name_is_one_line(package):
    assert THINGS.load("path") is Path and THINGS.load("data") == 3
    with pytest.raises(ParameterError, match=r"^k: 'paht' does not exist; did you mean 'path'\?$"):
        THINGS.load("paht", "k")
    for name in ("os", "a:b:c", "a.:b", ".a:b", "a:b()", "a b:c", "../a:b"):
        assert not is_own(name)
    for name, reason in (
        ("registry_test.broken:X", "no way"),
        ("registry_test.things:Other", "has no attribute 'Other'"),
        ("registry_test.none:X", "No module named"),
    ):
        with own_code(), pytest.raises(ParameterError, match=reason) as caught:
            THINGS.load(name, "k")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"score": {"reward": "registry_test.broken:X"}},
        {"score": {"reward": "sum", "options": {"parts": [{"reward": "registry_test.broken:X"}]}}},
        {"lists": {"recipe": "registry_test.broken:X", "negatives": "random"}},
        {"train": {"objective": "registry_test.broken:X", "learning_rate": 1e-3}},
        {"engine": {"name": "registry_test.broken:X"}},
        {"prompts": {"source": "registry_test.broken:X", "per_iteration": 4}},
        {"benchmarks": {"b": {"benchmark": "registry_test.broken:X", "generate": {"max_new_tokens": 4}}}},
    ],
    ids=str,
)
def test_to_read_parameters_runs_no_own_code(package, sections):
    """With a module that cannot be imported: no room's check imports it."""
    from larpo.load import check_params

    check_params(tiny_params(**sections))
    assert "registry_test" not in sys.modules
