"""The rule errs as seldom as it declares, by simulation with fixed seeds, and decides what it should."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from larpo.studies.rule import (
    Evidence,
    Procedure,
    against,
    holm,
    interval,
    of_items,
    of_seeds,
    p_value,
    standard_error,
    verdict,
)
from tests.larpo.studies.conftest import RULE, made, study_of

LOOKS, ANYTIME = Procedure.LOOKS, Procedure.ANYTIME
LEVEL, DECLARED = 0.0294, (8, 16)


def decided(x: np.ndarray, low: float = 0.0) -> tuple[float, float]:
    """Shares of simulated studies, rows of seeds' differences, that say `better than low` and `worse than low`."""
    found = []
    for row in x:
        ends = [interval(of_seeds(row[:n]), LOOKS, LEVEL) for n in DECLARED]
        found.append(next((1 if a > low else -1 for a, b in ends if a > low or b < low), 0))
    return np.mean(np.array(found) > 0), np.mean(np.array(found) < 0)


def test_size_and_power_are_as_declared():
    """Two looks at .0294: .05 in both directions together under no difference (.052 by 200,000 simulated studies), and
    .94 at one standard deviation."""
    x = np.random.default_rng(0).normal(size=(12_000, 16))
    better, worse = decided(x)
    assert 0.045 < better + worse <= 0.055 and abs(better - worse) < 0.006
    better, worse = decided(x[:4000] + 1)
    assert 0.93 < better < 0.95 and worse == 0


def test_not_worse_errs_as_seldom_at_the_margin():
    """A difference of exactly −margin: `no worse` is then said in half of .05."""
    x = 0.02 * np.random.default_rng(1).normal(size=(8000, 16)) - 0.02
    assert decided(x, -0.02)[0] <= 0.0275


def test_size_of_a_peak_on_a_plateau():
    """F6 asks the middle cell, fixed beforehand, to beat both ends: on a plateau that is said far less often than .055,
    and `does not hold`, Holm over two claims, no more often either where the margin is far."""
    names = ("low", "middle", "high")
    claims = [{"says": end, "more": ["middle"], "less": [end]} for end in ("low", "high")]
    scale = {"base": "b.yaml", "rule": RULE | {"looks": [*DECLARED], "level": LEVEL}}
    study = study_of(cells={n: {"label": n} for n in names}, scales={"cpu": scale}, claims={"F6": claims}, figure=None)
    rng, found = np.random.default_rng(2), []
    for _ in range(1500):
        found.append(made(study, {n: rng.normal(size=16).tolist() for n in names})["findings"]["F6"]["verdict"])
    assert found.count("holds") / len(found) <= 0.0275
    assert found.count("does not hold") / len(found) <= 0.055


def test_the_e_value_may_be_read_after_every_seed():
    """Under no difference it ever decides, in 64 looks, in at most .05 of the studies; at one standard deviation it
    does by 32 seeds in nearly all (.99)."""
    x = np.random.default_rng(3).normal(size=(1500, 64))
    n = np.arange(2, 65)
    mean = x.cumsum(1)[:, 1:] / n
    se = np.sqrt((np.square(x).cumsum(1)[:, 1:] - n * mean**2) / (n - 1) / n)
    ever = np.zeros(len(x), bool)
    for i, count in enumerate(n):
        half = interval(Evidence(0.0, 1.0, int(count), float(count - 1)), ANYTIME, 0.05)[1]
        ever |= np.abs(mean[:, i]) > half * se[:, i]
    assert ever.mean() <= 0.05
    half = interval(Evidence(0.0, 1.0, 32, 31.0), ANYTIME, 0.05)[1]
    assert ((mean[:, 30] + 1) > half * se[:, 30]).mean() > 0.95


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=8, unique=True), st.floats(-100, 100))
@settings(max_examples=50, deadline=None)
def test_intervals_are_what_p_values_do_not_reject(values, value):
    evidence = of_seeds(values)
    for procedure in Procedure:
        low, high = interval(evidence, procedure, LEVEL)
        assert low <= evidence.mean <= high
        p = p_value(evidence, value, procedure)
        if min(abs(value - low), abs(value - high)) > 1e-6:
            assert (p > LEVEL) == (low < value < high)
        mirrored = interval(of_seeds([-v for v in values]), procedure, LEVEL)
        assert mirrored == pytest.approx((-high, -low), rel=1e-9, abs=1e-9)
    widths = [b - a for a, b in (interval(evidence, p, LEVEL) for p in (LOOKS, ANYTIME))]
    assert widths[0] < widths[1], "reading at any time has its price"


def test_by_hand():
    """1, 2, 6: mean 3, s² = (4 + 1 + 9)/2 = 7, s/√3 = √(7/3) = 1.527525; t(0.975, 2) = 4.302653, half 6.572410. The
    e-value at 0 with u = (3 / 1.527525)² / 2 = 1.928571: (1/2) · (2.928571 / (1 + u/4))^1.5 = (1/2) · 1.975904^1.5."""
    e = of_seeds([1.0, 2.0, 6.0])
    assert interval(e, LOOKS, 0.05) == pytest.approx((3 - 6.572410, 3 + 6.572410), abs=1e-5)
    assert p_value(e, 0.0, ANYTIME) == pytest.approx(min(1, 1 / (0.5 * 1.975904**1.5)), abs=1e-5)
    assert interval(of_seeds([4.0]), LOOKS, 0.05) == (-math.inf, math.inf)
    assert interval(of_seeds([0.0, 0.0]), LOOKS, 0.05) == (0, 0), "the arms are the same"
    assert interval(of_seeds([1.0, 1.0]), LOOKS, 0.05) == (-math.inf, math.inf), "no random part"
    assert standard_error(0.4, 0.6) == pytest.approx(0.2 / 3.919928, abs=1e-6)


def test_items_with_seeds_as_a_second_level():
    """One seed: the items' error alone. Two seeds ±.02: s²/S = .0008/2 = .0004, se² = .01² + .0004."""
    one, two = of_items([0.05], [0.01]), of_items([0.03, 0.07], [0.01, 0.01])
    assert interval(one, LOOKS, 0.05) == pytest.approx((0.05 - 0.0195996, 0.05 + 0.0195996), abs=1e-6)
    assert two.se == pytest.approx(math.sqrt(0.0005)) and two.df == pytest.approx(0.0005**2 / 0.0004**2)
    assert of_items([0.05, 0.05], [0.01, 0.01]).se == pytest.approx(0.01), "seeds do not shrink what items add"


@pytest.mark.parametrize(
    ("ends", "not_worse", "expected"),
    [
        ((1, 3), False, "better"),
        ((-3, -1), False, "worse"),
        ((-1, 1.5), False, "same"),
        ((-1, 3), False, "undecided"),
        ((0.1, 0.2), False, "better"),
        ((-1, 3), True, "same"),
        ((-1.9, -0.1), True, "same"),
        ((-3, -1), True, "worse"),
        ((-3, 1), True, "undecided"),
        ((0, 0), False, "same"),
        ((-math.inf, math.inf), True, "undecided"),
    ],
)
def test_verdicts_of_an_interval(ends, not_worse, expected):
    assert verdict(*ends, margin=2, not_worse=not_worse) == expected


def test_holm_by_hand():
    """.01, .04, .03 → 3 · .01, then 2 · .03, then .04 raised to what went before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_keeps_the_order_and_never_lowers(values):
    found = holm(values)
    assert all(b >= a for a, b in zip(values, found, strict=True))
    ranked = [found[i] for i in np.argsort(values, kind="stable")]
    assert all(a <= b for a, b in pairwise(ranked))


def test_evidence_against_a_claim():
    """Below 0; or between the margins, where a positive difference is claimed; never for one beyond the margin."""
    below, inside, above = (of_seeds(np.array([0.9, 1.0, 1.1, 1.0]) * m) for m in (-0.05, 0.001, 0.05))
    assert against(below, 0.02, False, LOOKS) < LEVEL and against(below, 0.02, True, LOOKS) < LEVEL
    assert against(inside, 0.02, False, LOOKS) < LEVEL and against(inside, 0.02, True, LOOKS) == 1
    assert against(above, 0.02, False, LOOKS) == 1
