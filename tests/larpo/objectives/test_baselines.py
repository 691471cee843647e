"""The baselines: golden values worked out by hand, properties, gradients. TRL's losses: test_trl.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from larpo.errors import UserError
from larpo.objectives import ListBatch, build
from tests.larpo.objectives.ranked_lists import lists, loss_and_grad, make, relaxed

PAIRS = ["ipo", "slic_hf", "cpo", "kto", "rdpo", "simpo"]
NAMES = [*PAIRS, "rrhf"]
WITH_REFERENCE = ["ipo", "kto", "rdpo"]  # the loss depends on log-ratios alone
# Without the terms that only imitate the better response, what is left states a preference.
PREFERENCE_ONLY = {"slic_hf": {"nll_weight": 0}, "cpo": {"nll_weight": 0}, "rrhf": {"nll_weight": 0}}


def names_for(rewards: Tensor) -> list[str]:
    return NAMES if len(rewards) == 2 else ["rrhf"]


@st.composite
def ragged(draw, **options):
    """`lists` with lengths: (policy, columns of `make`)."""
    policy, reference, rewards = draw(lists(**options))
    lengths = draw(st.lists(st.integers(1, 40), min_size=len(rewards), max_size=len(rewards)))
    mismatched = draw(st.floats(-20, 20))
    return policy, {
        "reference": reference,
        "rewards": rewards,
        "lengths": torch.tensor(lengths),
        "mismatched": [mismatched],
    }


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
def test_golden(name, params, columns, expected):
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
    loss = build(name, **params)(make(**columns))
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("ipo", {}, 25.0),
        ("ipo", {"tau": 0.5}, 1.0),
        ("kto", {}, 1.0),
        ("kto", {"desirable_weight": 2, "undesirable_weight": 3}, 2.5),
        ("rdpo", {"alpha": 0.5}, 1.313262),
        ("slic_hf", {}, 0.6),
        ("cpo", {"beta": 0.5}, 1.813262),
        ("simpo", {}, 1.194218),
        ("rrhf", {}, 1.666667),
    ],
)
def test_at_reference_golden(name, params, expected):
    """The policy's own values (−40, −90) must not matter; s^ref = (−6, −8), |y| = (4, 6), s̄^ref = (−3/2, −4/3).

    ipo: (1/(2 · 0.1))² = 25, (1/(2 · ½))² = 1. kto: (1 + 1)/2, (2 + 3)/2. rdpo: S(½(4 − 6)) = S(−1) = 1.313262.
    slic_hf: max(0, 1 + 6 − 8) = 0 and 0.1 · 6. cpo: S(½ · 2) = 0.313262 and 3/2. simpo: 2(−3/2 + 4/3) − ½ = −5/6,
    S(−5/6) = log(1 + 2.300976) = 1.194218. rrhf: max(0, −4/3 + 3/2) = 1/6 and 3/2.
    """
    batch = make([-40, -90], [-6, -8], lengths=[4, 6], mismatched=[5.0])
    value = build(name, **params).at_reference(batch)
    assert value.tolist() == pytest.approx([expected], abs=2e-6)
    assert not value.requires_grad


@relaxed
@given(data=ragged(strict_first=False))
def test_step_0_is_at_reference(data):
    """Policy = reference up to a rounding of 1e-3 nats per response gives `at_reference`, ties included."""
    _, columns = data
    columns["mismatched"] = [1e-4]
    reference = columns["reference"]
    noise = 1e-3 * torch.cos(torch.arange(len(reference), dtype=torch.float64) * 7)
    for name in names_for(reference):
        # ipo at τ = ½: at 0.1 the slope at the reference is −10, and 2e-3 nats are 0.02.
        objective = build(name, **({"tau": 0.5} if name == "ipo" else {}))
        expected = objective.at_reference(make(reference - 30, **columns))
        for policy, tolerance in ((reference, 1e-4), (reference + noise, 3e-2)):
            torch.testing.assert_close(objective(make(policy, **columns)), expected, rtol=0, atol=tolerance)


@relaxed
@given(data=ragged(high=2))
def test_gradient_directions(data):
    """The better response is never pushed down, the worse never up; where the loss has a slope, both move."""
    policy, columns = data
    for name in PAIRS:
        if name == "ipo":
            continue  # its target is a point: beyond it both turn round (next test)
        loss, (better, worse) = loss_and_grad(name, policy, PREFERENCE_ONLY.get(name), **columns)
        assert better <= 0 <= worse
        if name == "slic_hf":
            assert (better, worse) == ((-1, 1) if loss > 0 else (0, 0))
        if name in ("cpo", "rdpo"):
            assert better == -worse  # sums: one pair, one slope


@relaxed
@given(data=ragged(high=2), tau=st.floats(0.05, 5))
def test_ipo_pulls_to_its_target_from_both_sides(data, tau):
    """With Δ̄ = 1/(2τ) loss and gradient are 0; above it the better response is pushed down."""
    _, columns = data
    n = columns["lengths"][0]
    for beyond, sign in ((0.0, 0), (0.5, 1), (-0.5, -1)):
        policy = columns["reference"].clone()
        policy[0] += n * (1 / (2 * tau) + beyond)
        loss, (better, worse) = loss_and_grad("ipo", policy, {"tau": tau}, **columns)
        assert loss.item() == pytest.approx(beyond**2, abs=1e-6)
        assert better.item() == pytest.approx(2 * beyond / n.item(), abs=1e-6)
        if sign:
            assert better.sign() == sign == -worse.sign()


@relaxed
@given(data=ragged(span=60.0), step=st.floats(0.1, 20))
def test_raising_the_best_never_raises_the_loss(data, step):
    policy, columns = data
    raised = policy.clone()
    raised[0] += step
    for name in set(names_for(policy)) - {"ipo"}:
        before, after = (build(name)(make(p, **columns)).item() for p in (policy, raised))
        assert after <= before
        assert name == "kto" or after < before  # kto's sigmoid saturates in floating point


@relaxed
@given(data=ragged(span=60.0), shift=st.floats(-300, 300))
def test_what_moves_policy_and_reference_together(data, shift):
    """Objectives on log-ratios do not see a shift of both; those without a reference do not see the reference."""
    policy, columns = data
    both = columns | {"reference": columns["reference"] + shift}
    for name in names_for(policy):
        loss = build(name)(make(policy, **columns))
        moved = build(name)(make(policy + shift if name in WITH_REFERENCE else policy, **both))
        torch.testing.assert_close(moved, loss, rtol=1e-6, atol=1e-6)


@relaxed
@given(data=ragged(high=2), shift=st.floats(-300, 300))
def test_what_one_shift_of_the_policy_leaves(data, shift):
    """R-DPO's and CPO's and SLiC-HF's preference are of the difference of two sums; KTO has no such freedom."""
    policy, columns = data
    for name in ("rdpo", "cpo", "slic_hf"):
        objective = build(name, **PREFERENCE_ONLY.get(name, {}))
        torch.testing.assert_close(
            objective(make(policy + shift, **columns)), objective(make(policy, **columns)), rtol=1e-6, atol=1e-6
        )


@relaxed
@given(data=ragged(high=2), beta=st.floats(0.01, 2), alpha=st.floats(0.01, 2))
def test_rdpo_is_dpo_with_a_length_margin(data, beta, alpha):
    """α = 0 or equal lengths: DPO. The longer the better response, the smaller the loss and the push."""
    policy, columns = data
    dpo, rdpo = build("dpo", beta=beta), build("rdpo", beta=beta, alpha=alpha)
    batch = make(policy, **columns)
    torch.testing.assert_close(build("rdpo", beta=beta, alpha=0)(batch), dpo(batch))
    equal = make(policy, **columns | {"lengths": torch.tensor([9, 9])})
    torch.testing.assert_close(rdpo(equal), dpo(equal))
    longer = make(policy, **columns | {"lengths": columns["lengths"] + torch.tensor([5, 0])})
    assert rdpo(longer) <= rdpo(batch)


def test_which_objectives_take_token_means():
    """A response three times as long with three times the log-probability: the same to a mean, not to a sum."""
    short = make([-4, -9], [-6, -8], lengths=[4, 6], mismatched=[1.0])
    long = make([-12, -27], [-18, -24], lengths=[12, 18], mismatched=[1.0])
    for name in NAMES:
        same = torch.allclose(build(name)(short), build(name)(long))
        assert same == (name in ("ipo", "simpo", "rrhf")), name
    for name in ("cpo", "rrhf"):  # the NLL alone: a token mean; SLiC-HF's is a sum
        difference = [build(name, nll_weight=2)(x) - build(name, nll_weight=1)(x) for x in (short, long)]
        torch.testing.assert_close(*difference)
    difference = [build("slic_hf", nll_weight=2)(x) - build("slic_hf", nll_weight=1)(x) for x in (short, long)]
    torch.testing.assert_close(3 * difference[0], difference[1])


@pytest.mark.parametrize("name", NAMES)
def test_equal_rewards_state_no_preference(name):
    """Loss, gradient and value at the reference exactly 0, beside a row that has a preference."""
    policy = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]])
    columns = {"rewards": [[0.5, 0.5], [1, 0]], "lengths": [[3, 4], [2, 5]], "mismatched": [1.0, 2.0]}
    loss, grad = loss_and_grad(name, policy, **columns)
    assert loss[0] == 0 != loss[1]
    assert grad[0].tolist() == [0, 0] != grad[1].tolist()
    at_reference = build(name).at_reference(make(policy, policy, **columns))
    assert at_reference[0] == 0 != at_reference[1]


def test_rrhf_skips_tied_pairs():
    """r = (2, 1, 1): the order of the two tied responses gives neither loss nor gradient between them."""
    policy = torch.tensor([-1.0, -30.0, -20.0], dtype=torch.float64)  # both far below the best: no hinge is active
    loss, grad = loss_and_grad("rrhf", policy, {"nll_weight": 0}, rewards=[2, 1, 1])
    assert loss.item() == 0 and grad.tolist() == [0, 0, 0]
    loss, _ = loss_and_grad("rrhf", policy, {"nll_weight": 0}, rewards=[3, 2, 1])
    assert loss.item() == pytest.approx(10 / 7)


@relaxed
@given(
    data=ragged(),
    where=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    filler=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]),
)
def test_padding_changes_nothing(data, where, filler):
    """Padded columns with any content, at any places, leave the loss and every gradient as they were."""
    policy, columns = data
    policy = policy.float()
    columns |= {"mask": torch.ones(len(policy), dtype=torch.bool), "reference": columns["reference"].float()}
    columns["rewards"] = columns["rewards"].float()
    fillers = {"reference": filler, "rewards": filler, "lengths": 0, "mask": False}
    padded_policy, padded = policy, dict(columns)
    real = torch.arange(len(policy))
    for at in where:
        at = min(at, len(padded_policy))
        real = real + (real >= at)

        def insert(x: Tensor, value, at=at) -> Tensor:
            return torch.cat([x[:at], torch.full((1,), value, dtype=x.dtype), x[at:]])

        padded_policy = insert(padded_policy, filler)
        padded |= {key: insert(padded[key], value) for key, value in fillers.items()}
    for name in names_for(policy):
        loss, grad = loss_and_grad(name, policy, **columns)
        more, more_grad = loss_and_grad(name, padded_policy, **padded)
        torch.testing.assert_close(more, loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(more_grad[real], grad, rtol=1e-6, atol=1e-7)
        assert more_grad.count_nonzero() == grad.count_nonzero()  # and so none on padding


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_its_rows(name):
    """But for kto's z, which is a mean over the batch: with the same value in every row it is the same."""
    rows = [([-5.0, -9.0], [3, 8]), ([-3.0, -2.0], [4, 1]), ([-7.0, -7.5], [2, 2])]
    columns = {"reference": [-4.0, -6.0], "mismatched": [1.5]}
    alone = [make(p, lengths=n, **columns) for p, n in rows]
    batch = make([p for p, _ in rows], [[-4.0, -6.0]] * 3, lengths=[n for _, n in rows], mismatched=[1.5] * 3)
    for value in (build(name), build(name).at_reference):
        torch.testing.assert_close(value(batch), torch.cat([value(b) for b in alone]))


@relaxed
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=4))
def test_kto_z_is_the_mean_of_the_mismatched_cut_off_at_0(values):
    """Also a list without a preference counts in z: its prompt is as good as another."""
    n = len(values)
    rewards = [[1, 0]] + [[1, 1]] * (n - 1)
    batch = make([[-4.0, -9.0]] * n, [[-6.0, -8.0]] * n, rewards, mismatched=values)
    z = max(0.0, sum(values) / n)
    expected = 1 / (1 + math.exp(0.1 * (2 - z))) + 1 / (1 + math.exp(0.1 * (z + 1)))
    assert build("kto")(batch)[0].item() == pytest.approx(expected, rel=1e-9)


def test_kto_z_carries_no_gradient():
    mismatched = torch.tensor([2.0], requires_grad=True)
    policy = torch.tensor([[-4.0, -9.0]], requires_grad=True)
    ones = torch.ones(1, 2)
    batch = ListBatch(policy, ones, ones, torch.tensor([[1.0, 0.0]]), ones.bool(), mismatched)
    build("kto")(batch).sum().backward()
    assert mismatched.grad is None and policy.grad.count_nonzero() == 2


def test_kto_without_mismatched_names_the_parameter():
    with pytest.raises(UserError, match=r"kto.*`reference.mismatched: true`"):
        build("kto")(make(**PAIR))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("entries", [1, 3])
def test_pair_objectives_refuse_other_lengths(name, entries):
    mask = [[True, True, False], [k < entries for k in range(3)]]
    batch = make([[-1.0, -2, -3]] * 2, mask=mask, mismatched=[0.0, 0.0])
    with pytest.raises(UserError, match=f"objective {name}: expected 2 responses per list, found {entries} in row 1"):
        build(name)(batch)


def test_rrhf_takes_one_response_alone():
    loss, grad = loss_and_grad("rrhf", torch.tensor([-4.0]))
    assert loss.item() == 0 and grad.tolist() == [0]


@settings(max_examples=20, deadline=None)
@given(data=ragged(high=4, span=20.0))
def test_gradients_match_finite_differences(data):
    policy, columns = data
    policy = policy + 0.0137 * torch.arange(1, len(policy) + 1) ** 2  # off the kinks that drawn round numbers hit
    for name in names_for(policy):

        def loss(x: Tensor, name=name) -> Tensor:
            return build(name)(make(x, **columns))

        assert torch.autograd.gradcheck(loss, policy.clone().requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-4)


@relaxed
@given(st.lists(st.sampled_from([-1e4, -300.0, -1.0, 0.0, 1e4]), min_size=2, max_size=2), st.sampled_from([-1e4, 1e4]))
def test_extreme_log_probabilities_stay_finite(policy, reference):
    for name in NAMES:
        columns = {"reference": [reference, 0.0], "mismatched": [reference]}
        loss, grad = loss_and_grad(name, torch.tensor(policy), **columns)
        assert loss.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("given_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_raised_before_any_arithmetic(name, given_dtype):
    used = torch.float64 if given_dtype == torch.float64 else torch.float32
    policy = torch.tensor([-300.0, -302.0], dtype=given_dtype)
    reference = torch.tensor([-301.3, -299.1], dtype=given_dtype)
    mismatched = torch.tensor([1.3], dtype=given_dtype)
    lengths, rewards, mask = torch.tensor([[3, 7]]), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2) > 0
    batch = ListBatch(policy[None], reference[None], lengths, rewards, mask, mismatched)
    objective = build(name)
    assert batch.mismatched.dtype == objective(batch).dtype == objective.at_reference(batch).dtype == used
    exact = objective(make(policy.double(), reference.double(), lengths=[3, 7], mismatched=mismatched.double()))
    torch.testing.assert_close(objective(batch).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ipo", {"beta": 0.1}, "objective_options.beta: .*expected one of tau"),
        ("simpo", {"gamma": 0.5}, "objective_options.gamma: 'gamma' does not exist"),
        ("rdpo", {"alpha": -1}, "objective_options.alpha: .*greater than or equal to 0, found -1"),
        ("kto", {"beta": 0}, "objective_options.beta: .*greater than 0"),
        ("slichf", {}, "did you mean 'slic_hf'"),
    ],
)
def test_build_refuses(name, params, message):
    with pytest.raises(UserError, match=message):
        build(name, **params)


def test_mismatched_of_another_shape():
    with pytest.raises(UserError, match=r"mismatched: expected one value per list, \(1,\), found \(2,\)"):
        make(**PAIR, mismatched=[1.0, 2.0])
