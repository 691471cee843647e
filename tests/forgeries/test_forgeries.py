"""Every forgery is named by the default audit, whatever it draws; an honest run, of this machine or another, is never
accused. `make test-forgeries` runs all of it, `make test` what needs no further run."""

import shutil
from pathlib import Path

import pytest

from larpo.audit.draw import draw
from larpo.audit.open import AuditedRun
from larpo.audit.results import verdict_of
from larpo.audit.science.check import OUTPUTS, REFERENCE, VECTORS, check_numbers
from larpo.hashing import seed_of
from tests.forgeries.conftest import Audit
from tests.forgeries.forger import reported_again, sealed
from tests.forgeries.forgeries import AFTER, FORGERIES

SEEDS = 50
KINDS = "policy sft prompts items sample reward score candidates lists reference train generate evaluate best_of_n"
KINDS += " embed retrieve report"
pytestmark = pytest.mark.forgeries


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "project", symlinks=True))


def test_there_are_enough_of_every_kind():
    forged = [name.partition(":")[0] for name in [*FORGERIES, *AFTER]]
    assert len(forged) >= 40 and set(KINDS.split()) <= set(forged)


@pytest.mark.parametrize("name", [*FORGERIES, *AFTER])
def test_a_forgery_is_named(copy, default_audit: Audit, name):
    forge, line = (FORGERIES | AFTER)[name]
    if name in FORGERIES:
        forge(copy)
        reported_again(copy)
    else:
        forge(copy)
    sealed(copy)
    told = []
    for check in default_audit(copy, seed=seed_of(name)):
        told += [*check.failures, *check.behind]
        if any(one.startswith(line) for one in told):
            assert verdict_of([check])[0] != "holds"
            return
    pytest.fail(f"not named; told: {list(dict.fromkeys(line[:160] for line in told))[:40]}")


def test_the_hashes_agree(copy, default_audit: Audit):
    """A forgery that a wrong hash gave away would be no forgery."""
    FORGERIES["generate: every greedy answer right"][0](copy)
    reported_again(copy)
    sealed(copy)
    checks = [c for c in default_audit(copy, 1) if c.part in ("bytes", "lineage")]
    assert {c.verdict for c in checks} == {"holds"}, [c for c in checks if c.verdict != "holds"]


@pytest.mark.parametrize("where", ["honest", "elsewhere"])
def test_an_honest_run_is_never_accused(request, default_audit: Audit, where):
    """The whole audit once, and what it draws by lot by 50 seeds."""
    folder = request.getfixturevalue(where)
    checks = list(default_audit(folder, 0))
    assert verdict_of(checks) == ("holds", ""), [c for c in checks if c.failures or c.behind]
    for seed in range(SEEDS):
        run = AuditedRun(folder)
        run.draw = draw(seed, rows=16)
        for name in (OUTPUTS, REFERENCE, "rewards", VECTORS):
            check = check_numbers(run, name, trusted=True)
            assert check.verdict == "holds", (seed, check)
