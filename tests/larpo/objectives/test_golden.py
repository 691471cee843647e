"""Golden values of every objective, worked out by hand. TRL's losses of the same batches: training/test_trl.py."""

import math

import pytest

from larpo.objectives import build
from tests.larpo.objectives.ranked_lists import make

LOG2 = math.log(2)
NDCG = {"weight": "ndcg"}


@pytest.mark.parametrize(
    ("name", "params", "policy", "rewards", "expected"),
    [
        ("pairwise", {}, [2, -2], [3, 1], 0.126928),
        ("dpo", {}, [2, -2], [3, 1], 0.126928),
        ("contrastive", {}, [2, 0, -2], [3, 2, 1], 0.407606),
        ("contrastive", {}, [2, 0, -2], [3, 3, 1], 0.126928),
        ("lambdarank", {}, [2, 0, -2], [3, 2, 1], 0.753451),
        ("lambdarank", {}, [2, 0, -2], [3, 3, 1], 0.440190),
        ("lambdarank", {}, [2, 0, -2], [3, 1, 1], 0.440190),
        ("lambdarank", NDCG, [2, 0, -2], [3, 2, 1], 0.107779),
        ("lambdarank", NDCG, [0, 2, -2], [3, 2, 1], 0.239527),
        ("lambdarank", NDCG, [0, -2, 2], [3, 2, 1], 0.788256),
        ("listmle", {}, [2, 0, -2], [3, 2, 1], 0.720868),
    ],
)
def test_of_the_paper(name, params, policy, rewards, expected):
    """β = 0.5 and reference −3 everywhere, policy −3 + (2, 0, −2): γ = (1, 0, −1).

    s(x) = log(1 + e^−x): s(1) = 0.313262, s(2) = 0.126928, s(−1) = 1.313262.
    pairwise on (1, −1): s(2).
    contrastive: log(1 + e^−1 + e^−2) = log 1.503215 = 0.407606; with r = (3, 3, 1) the second is no
        negative: s(2).
    lambdarank: s(1) + s(2) + s(1) = 0.753451; with a tie one s(1) drops out: 0.440190.
    listmle: 0.407606 for the first place, s(1) for the second, 0 for the last: 0.720868.
    ndcg: gains (1, ½, 0), discounts (1, 0.630930, ½), ideal 1 + 0.315465 = 1.315465. Policy in reward order:
        w12 = ½·0.369070/1.315465 = 0.140281, w13 = 1·½/1.315465 = 0.380094, w23 = ½·0.130930/1.315465 =
        0.049765; s(1)(w12 + w23) + s(2) w13 = 0.059534 + 0.048245.
        γ = (0, 1, −1), ranks (2, 1, 3): w12 = 0.140281, w13 = 0.130930/1.315465 = 0.099531, w23 =
        ½·½/1.315465 = 0.190047; s(−1) w12 + s(1) w13 + s(2) w23 = 0.184225 + 0.031179 + 0.024122.
        γ = (0, −1, 1), ranks (2, 3, 1): w12 = 0.049765, w13 = 0.369070/1.315465 = 0.280562, w23 = 0.190047;
        s(1) w12 + s(−1) w13 + s(−2) w23 = 0.015589 + 0.368451 + 0.404216, s(−2) = 2.126928.
    """
    batch = make([p - 3.0 for p in policy], [-3.0] * len(policy), rewards)
    assert build(name, beta=0.5, **params)(batch).tolist() == pytest.approx([expected], abs=2e-6)


PAIR = {"policy": [-4, -9], "reference": [-6, -8], "lengths": [4, 6]}
TURNED = {"policy": [-9, -4], "reference": [-6, -8], "lengths": [6, 4]}
THREE = {"policy": [-4, -9, -2], "lengths": [4, 6, 4]}


@pytest.mark.parametrize(
    ("name", "params", "columns", "expected"),
    [
        ("ipo", {}, PAIR, 18.777778),
        ("ipo", {"tau": 0.5}, PAIR, 0.111111),
        ("slic_hf", {}, PAIR, 0.4),
        ("slic_hf", {}, TURNED, 6.9),
        ("slic_hf", {"delta": 6, "nll_weight": 0.5}, PAIR, 3.0),
        ("rrhf", {}, PAIR, 1.0),
        ("rrhf", {}, THREE, 2.5),
        ("rrhf", {"nll_weight": 0.1}, THREE, 1.6),
        ("rrhf", {}, THREE | {"rewards": [2, 2, 1]}, 2.5),
        ("rrhf", {}, THREE | {"rewards": [2, 1, 1]}, 1.5),
        ("cpo", {"beta": 0.5}, PAIR, 1.078889),
        ("cpo", {"beta": 0.5, "nll_weight": 0.2}, TURNED, 2.878889),
        ("kto", {"beta": 0.5}, PAIR | {"mismatched": [2]}, 0.682426),
        ("kto", {"beta": 0.5}, PAIR | {"mismatched": [-3]}, 0.646482),
        ("kto", {"beta": 0.5, "desirable_weight": 2, "undesirable_weight": 3}, PAIR | {"mismatched": [2]}, 1.547277),
        ("rdpo", {"beta": 0.5, "alpha": 0.25}, PAIR, 0.313262),
        ("rdpo", {"beta": 0.5, "alpha": 0}, PAIR, 0.201413),
        ("simpo", {}, PAIR, 0.474077),
        ("simpo", {"beta": 1, "gamma_beta_ratio": 1}, PAIR, 0.974077),
    ],
)
def test_of_baselines(name, params, columns, expected):
    """s = (−4, −9), s^ref = (−6, −8), |y| = (4, 6): ρ = (2, −1), Δ = 3, s̄ = (−1, −3/2), ρ̄ = (1/2, −1/6), Δ̄ = 2/3.
    Turned round: s = (−9, −4), |y| = (6, 4), s̄ = (−3/2, −1). S(x) = log(1 + e^−x).

    ipo: (2/3 − 5)² = (13/3)² = 169/9; τ = ½: (2/3 − 1)² = 1/9.
    slic_hf: max(0, 1 + 4 − 9) = 0 and 0.1 · 4 = 0.4; turned: max(0, 1 + 9 − 4) = 6 and 0.9; δ = 6, λ = ½:
        max(0, 6 + 4 − 9) = 1 and ½ · 4 = 2.
    rrhf: max(0, −3/2 + 1) = 0 and 1. Three, s̄ = (−1, −3/2, −1/2): (1,2) 0, (1,3) 1/2, (2,3) 1, and 1: 2.5; λ = 0.1:
        1.5 + 0.1. r = (2, 2, 1): (1,2) drops out, it was 0. r = (2, 1, 1): (2,3) drops out: 1/2 + 1.
    cpo: β(s_w − s_l) = 2.5, S(2.5) = 0.078889, and 1; turned: S(−2.5) = 2.578889, and 0.2 · 3/2 = 0.3.
    kto: β = ½. z = 2: 1 − σ(0) = 0.5 and 1 − σ(½ · 3) = 0.182426. z = 0, as the mean is negative: 1 − σ(1) =
        0.268941 and 1 − σ(½) = 0.377541. Weights 2, 3: 2 · 0.5 + 3 · 0.182426.
    rdpo: ½ · 3 + ¼(4 − 6) = 1, S(1) = 0.313262; α = 0: S(1.5) = 0.201413.
    simpo: 2(−1 + 3/2) − ¼ · 2 = ½, S(½) = 0.474077; β = 1, ratio 1: ½ − 1, S(−½) = 0.974077.
    """
    assert build(name, **params)(make(**columns)).tolist() == pytest.approx([expected], abs=2e-6)


@pytest.mark.parametrize(
    ("name", "params", "rewards", "expected"),
    [
        ("pairwise", {}, [2, 1], LOG2),
        ("contrastive", {}, [4, 3, 2, 1], math.log(4)),
        ("contrastive", {}, [4, 4, 2, 2], math.log(3)),
        ("lambdarank", {}, [4, 3, 2, 1], 6 * LOG2),
        ("lambdarank", {}, [4, 4, 2, 2], 4 * LOG2),
        ("lambdarank", NDCG, [3, 2, 1], 0.395191),
        ("lambdarank", NDCG, [4, 4, 2, 2], 0.595217),
        ("listmle", {}, [4, 3, 2, 1], math.log(24)),
        ("listmle", {}, [4, 4, 2, 2], math.log(24)),
        ("ipo", {}, [2, 1], 25.0),
        ("ipo", {"tau": 0.5}, [2, 1], 1.0),
        ("kto", {}, [2, 1], 1.0),
        ("kto", {"desirable_weight": 2, "undesirable_weight": 3}, [2, 1], 2.5),
        ("rdpo", {"alpha": 0.5}, [2, 1], 1.313262),
        ("slic_hf", {}, [2, 1], 0.6),
        ("cpo", {"beta": 0.5}, [2, 1], 1.813262),
        ("simpo", {}, [2, 1], 1.194218),
        ("rrhf", {}, [2, 1], 1.666667),
    ],
)
def test_at_the_reference(name, params, rewards, expected):
    """The policy's own values must not matter; s^ref = (−6, −8, …), |y| = (4, 6, …), s̄^ref = (−3/2, −4/3).

    C(4,2) = 6 pairs; rewards (4,4,2,2) leave 4 strict ones, and 2 negatives below the positive: log 3.
    ndcg: (w12 + w13 + w23) log 2 of `test_of_the_paper` = 0.570140 · 0.693147. r = (4,4,2,2): gains (1, 1, 0, 0),
    discounts (1, 0.630930, ½, 0.430677), ideal 1.630930; Σ |d_i − d_j| over i in {1,2}, j in {3,4} = 2 · 1.630930 −
    2 · 0.930677 = 1.400506, so 1.400506/1.630930 · log 2 = 0.595217.
    ipo: (1/(2 · 0.1))² = 25, (1/(2 · ½))² = 1. kto: (1 + 1)/2, (2 + 3)/2. rdpo: S(½(4 − 6)) = S(−1) = 1.313262.
    slic_hf: max(0, 1 + 6 − 8) = 0 and 0.1 · 6. cpo: S(½ · 2) = 0.313262 and 3/2. simpo: 2(−3/2 + 4/3) − ½ = −5/6,
    S(−5/6) = log(1 + 2.300976) = 1.194218. rrhf: max(0, −4/3 + 3/2) = 1/6 and 3/2.
    """
    m = len(rewards)
    batch = make([-40, -90, -7, -3][:m], [-6, -8, -9, -1][:m], rewards, lengths=[4, 6, 5, 5][:m], mismatched=[5.0])
    value = build(name, **params).at_reference(batch)
    assert value.tolist() == pytest.approx([expected], abs=2e-6)
    assert not value.requires_grad
