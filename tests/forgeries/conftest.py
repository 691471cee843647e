"""A finished run with every kind of node, and copies of it to forge."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from larpo.audit.bytes.check import check_bytes
from larpo.audit.draw import draw
from larpo.audit.lineage.check import check_lineage
from larpo.audit.open import AuditedRun
from larpo.audit.rerun.nodes import choose, run_again
from larpo.audit.results import Check
from larpo.audit.science.check import check_science
from tasks.frame import warm
from tests.conftest import Project
from tests.faults.conftest import every_kind

Audit = Callable[[Path, int], Iterator[Check]]
OTHER_MACHINE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "FAISS_SIMD_LEVEL": "NONE",
    "OMP_NUM_THREADS": "2",
}
"""Kernels without the processor's vector units, and other sums: what another machine computes."""


@pytest.fixture(scope="session")
def warmed() -> Iterator[dict[str, str]]:
    with warm.server({"OMP_NUM_THREADS": "1"}) as variables:
        yield variables


def finished(folder: Path, policy: Path, variables: dict[str, str]) -> Project:
    project = every_kind(folder, policy)
    project.variables = variables
    project.dvc("repro")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "run")
    return project


@pytest.fixture(scope="session")
def honest(tmp_path_factory, tiny_policy, warmed) -> Path:
    """Never changed; LARPO_FORGERIES_RUN names one that was made before."""
    if made := os.environ.get("LARPO_FORGERIES_RUN"):
        return Path(made)
    return finished(tmp_path_factory.mktemp("honest") / "project", tiny_policy, warmed).folder


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory, tiny_policy) -> Path:
    """The same graph, run by another machine."""
    with warm.server(OTHER_MACHINE) as variables:
        return finished(tmp_path_factory.mktemp("elsewhere") / "project", tiny_policy, variables).folder


@pytest.fixture(scope="session")
def default_audit(warmed, tmp_path_factory) -> Audit:
    """The checks of `larpo audit` of an own run, one by one, so that a test may stop at the first that names it."""
    workspace = tmp_path_factory.mktemp("again")

    def checks(folder: Path, seed: int) -> Iterator[Check]:
        run = AuditedRun(folder)
        run.draw = draw(seed)
        yield from check_bytes(run)
        yield from check_lineage(run)
        yield from check_science(run, trusted=True)
        yield from run_again(run, choose(run, [], False), print, workspace=workspace, variables=warmed)

    return checks
