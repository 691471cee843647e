"""The paper's objectives: golden values worked out by hand, properties, gradients."""

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

NAMES = ["pairwise", "contrastive", "lambdarank", "listmle"]
LISTS = NAMES[1:]  # any number of responses
LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("name", "params", "policy", "rewards", "expected"),
    [
        ("pairwise", {}, [2, -2], [3, 1], 0.126928),
        ("dpo", {}, [2, -2], [3, 1], 0.126928),
        ("contrastive", {}, [2, 0, -2], [3, 2, 1], 0.407606),
        ("lambdarank", {}, [2, 0, -2], [3, 2, 1], 0.753451),
        ("listmle", {}, [2, 0, -2], [3, 2, 1], 0.720868),
        ("contrastive", {}, [2, 0, -2], [3, 3, 1], 0.126928),
        ("lambdarank", {}, [2, 0, -2], [3, 3, 1], 0.440190),
        ("lambdarank", {}, [2, 0, -2], [3, 1, 1], 0.440190),
        ("lambdarank", {"weight": "ndcg"}, [2, 0, -2], [3, 2, 1], 0.107779),
        ("lambdarank", {"weight": "ndcg"}, [0, 2, -2], [3, 2, 1], 0.239527),
        ("lambdarank", {"weight": "ndcg"}, [0, -2, 2], [3, 2, 1], 0.788256),
    ],
)
def test_golden(name, params, policy, rewards, expected):
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
    loss = build(name, beta=0.5, **params)(batch)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "params", "rewards", "expected"),
    [
        ("pairwise", {}, [2, 1], LOG2),
        ("contrastive", {}, [4, 3, 2, 1], math.log(4)),
        ("contrastive", {}, [4, 4, 2, 2], math.log(3)),
        ("lambdarank", {}, [4, 3, 2, 1], 6 * LOG2),
        ("lambdarank", {}, [4, 4, 2, 2], 4 * LOG2),
        ("listmle", {}, [4, 3, 2, 1], math.log(24)),
        ("listmle", {}, [4, 4, 2, 2], math.log(24)),
        ("lambdarank", {"weight": "ndcg"}, [3, 2, 1], 0.395191),
    ],
)
def test_at_reference_golden(name, params, rewards, expected):
    """C(4,2) = 6 pairs; rewards (4,4,2,2) leave 4 strict ones, and 2 negatives below the positive: log 3.

    ndcg: (w12 + w13 + w23) log 2 of `test_golden` = 0.570140 · 0.693147 = 0.395191.
    """
    batch = make([-5.0] * len(rewards), None, rewards)
    assert build(name, **params).at_reference(batch).tolist() == pytest.approx([expected], abs=2e-6)


@pytest.mark.parametrize("weight", ["none", "ndcg"])
@relaxed
@given(data=lists(high=8, strict_first=False))
def test_step_0_is_at_reference(weight, data):
    """Policy = reference up to a rounding of 1e-3 nats: the forward pass gives the closed form."""
    _, reference, rewards = data
    noise = 1e-3 * torch.cos(torch.arange(len(rewards), dtype=torch.float64) * 7)
    for policy, tolerance in ((reference, 1e-9), (reference + noise, 3e-3)):
        batch = make(policy, reference, rewards)
        names = NAMES if len(rewards) == 2 and weight == "none" else LISTS
        for name in names:
            objective = build(name, **({"weight": weight} if name == "lambdarank" else {}))
            torch.testing.assert_close(objective(batch), objective.at_reference(batch), rtol=0, atol=tolerance)


@relaxed
@given(data=lists(high=2), beta=st.floats(0.01, 5))
def test_two_responses_make_all_four_equal(data, beta):
    batch = make(*data)
    losses = [build(name, beta=beta)(batch).item() for name in NAMES]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9, abs=1e-9)


@relaxed
@given(data=lists(), shift=st.floats(-1000, 1000))
def test_shift_invariance(data, shift):
    policy, reference, rewards = data
    for name in LISTS:
        loss = build(name)(make(policy, reference, rewards))
        shifted = build(name)(make(policy + shift, reference, rewards))
        torch.testing.assert_close(shifted, loss, rtol=1e-9, atol=1e-9)


@relaxed
@given(data=lists(), seed=st.integers(0, 2**16))
def test_order_of_arrival_does_not_matter_once_sorted(data, seed):
    """Shuffled responses, sorted by reward again (unstably within ties), give the same loss.

    ListMLE scores the order itself, so it is checked on lists without ties only.
    """
    policy, reference, rewards = data
    policy = policy.where(rewards < rewards[0], policy[0])  # contrastive's positive: one value among ties
    reference = reference.where(rewards < rewards[0], reference[0])
    shuffle = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    order = shuffle[rewards[shuffle].argsort(descending=True, stable=True)]
    names = LISTS if len(rewards.unique()) == len(rewards) else LISTS[:2]
    for name in names:
        loss = build(name)(make(policy, reference, rewards))
        resorted = build(name)(make(policy[order], reference[order], rewards[order]))
        torch.testing.assert_close(resorted, loss, rtol=1e-9, atol=1e-9)


@relaxed
@given(data=lists(), column=st.integers(0, 6), filler=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_padding_changes_nothing(data, column, filler):
    """A padded column with any content, at any place, leaves the loss and every gradient as they were."""
    policy, reference, rewards = (x.float() for x in data)
    at = min(column, len(rewards))
    mask = torch.ones(len(rewards), dtype=torch.bool)

    def padded(x: Tensor, value) -> Tensor:
        return torch.cat([x[:at], torch.full((1,), value, dtype=x.dtype), x[at:]])

    for name in NAMES if len(rewards) == 2 else LISTS:
        loss, grad = loss_and_grad(name, policy, reference=reference, rewards=rewards)
        more, more_grad = loss_and_grad(
            name,
            padded(policy, filler),
            reference=padded(reference, filler),
            rewards=padded(rewards, filler),
            mask=padded(mask, False),
            lengths=padded(torch.full(rewards.shape, 7), 0),
        )
        torch.testing.assert_close(more, loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(more_grad, padded(grad, 0), rtol=1e-6, atol=1e-7)
        assert more_grad[at] == 0


@pytest.mark.parametrize("name", LISTS)
def test_ragged_batch_equals_its_rows(name):
    rows = [[-5.0, -9.0], [-3.0, -2.0, -8.0, -1.0], [-4.0], [-7.0, -7.5, -2.0]]
    wide = [row + [math.nan] * (4 - len(row)) for row in rows]
    mask = [[True] * len(row) + [False] * (4 - len(row)) for row in rows]
    batch = make(wide, [[-4.0] * 4] * 4, [[9.0, 8.0, 8.0, 1.0]] * 4, mask)
    objective = build(name, beta=0.7)
    alone = [make(row, [-4.0] * len(row), [9.0, 8.0, 8.0, 1.0][: len(row)]) for row in rows]
    for value in (objective, objective.at_reference):
        torch.testing.assert_close(value(batch), torch.cat([value(b) for b in alone]))
    assert objective(batch)[2] == 0  # one response alone has nothing to be ranked against


@pytest.mark.parametrize("name", NAMES)
def test_equal_rewards_state_no_preference(name):
    """Loss and gradient exactly 0; ListMLE has no notion of a tie and only has to stay finite."""
    m = 2 if name == "pairwise" else 4
    loss, grad = loss_and_grad(name, torch.tensor([-1.0, -2.0, -3.0, -4.0])[:m], rewards=[0.5] * m)
    if name == "listmle":
        assert loss.isfinite().all()
        assert grad.isfinite().all()
    else:
        assert loss.item() == 0
        assert grad.tolist() == [0] * m
        assert build(name).at_reference(make([-1.0] * m, rewards=[0.5] * m)).item() == 0


@pytest.mark.parametrize("weight", ["none", "ndcg"])
@settings(max_examples=15, deadline=None)
@given(data=lists(high=5, span=20.0))
def test_gradients_match_finite_differences(weight, data):
    policy, reference, rewards = data
    if weight == "ndcg":  # weights step where ranks change: keep γ apart, in the drawn order
        policy = reference + policy.argsort().argsort() * 0.7
    for name in NAMES if len(rewards) == 2 else LISTS:
        objective = build(name, beta=0.8, **({"weight": weight} if name == "lambdarank" else {}))

        def loss(x: Tensor, objective=objective) -> Tensor:
            return objective(make(x, reference, rewards))

        assert torch.autograd.gradcheck(loss, policy.clone().requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-5)


@relaxed
@given(
    st.lists(st.sampled_from([-1e4, -300.0, -1.0, 0.0, 1e4]), min_size=2, max_size=5), st.sampled_from([-1e4, 0.0, 1e4])
)
def test_extreme_log_probabilities_stay_finite(policy, reference):
    """β·(log π − log π_ref) up to ±2000 in float32; each column's gradient stays within β·(m − 1)."""
    for name in NAMES if len(policy) == 2 else LISTS:
        others = [0.0] * (len(policy) - 1)
        loss, grad = loss_and_grad(name, torch.tensor(policy), reference=[reference, *others])
        assert -1e-3 <= loss.item() < math.inf
        assert grad.isfinite().all()
        assert grad.abs().max() <= 0.1 * (len(policy) - 1) * 1.001


@relaxed
@given(data=lists(span=30.0), step=st.floats(0.1, 20))
def test_raising_the_best_lowers_the_loss(data, step):
    policy, reference, rewards = data
    raised = policy.clone()
    raised[0] += step
    for name in NAMES if len(rewards) == 2 else LISTS:
        before, after = (build(name)(make(p, reference, rewards)).item() for p in (policy, raised))
        assert after < before


def test_gradient_reaches_the_policy_alone():
    policy = torch.tensor([[-1.0, -2.0, -4.0]], requires_grad=True)
    reference = torch.tensor([[-2.0, -2.0, -2.0]], requires_grad=True)
    batch = ListBatch(policy, reference, torch.ones(1, 3), torch.tensor([[3.0, 2, 1]]), torch.ones(1, 3) > 0)
    build("listmle")(batch).sum().backward()
    assert policy.grad.abs().sum() > 0
    assert reference.grad is None
    assert not build("listmle").at_reference(batch).requires_grad


@pytest.mark.parametrize("given_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_raised_before_any_arithmetic(name, given_dtype):
    """Near 300 bfloat16 has a spacing of 2: a difference or product taken in it would show."""
    used = torch.float64 if given_dtype == torch.float64 else torch.float32
    policy = torch.tensor([-300.0, -302.0], dtype=given_dtype)
    reference = torch.tensor([-301.3, -299.1], dtype=given_dtype)
    objective = build(name, beta=0.1)
    batch = make(policy, reference)
    assert batch.policy_logps.dtype == objective(batch).dtype == objective.at_reference(batch).dtype == used
    exact = objective(make(policy.double(), reference.double()))
    torch.testing.assert_close(objective(batch).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("listmel", {}, "objective: 'listmel' does not exist; did you mean 'listmle'"),
        ("zzz", {}, "objective: 'zzz' does not exist; expected one of contrastive, cpo, dpo"),
        ("listmle", {"bta": 1}, "objective_options.bta: .*did you mean 'beta'"),
        ("listmle", {"weight": "ndcg"}, "objective_options.weight: .*expected one of beta"),
        ("pairwise", {"beta": 0}, "objective_options.beta: .*greater than 0, found 0"),
        ("dpo", {"beta": -0.1}, "objective_options.beta: .*greater than 0, found -0.1"),
        ("listmle", {"beta": math.nan}, "beta: .*found nan"),
        ("listmle", {"beta": math.inf}, "beta: .*finite.*found inf"),
        ("listmle", {"beta": "abc"}, "beta: .*number.*found 'abc'"),
        ("lambdarank", {"weight": "dcg"}, "weight: .*'none' or 'ndcg', found 'dcg'"),
    ],
)
def test_build_refuses(name, params, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **params)
    assert "\n" not in str(error.value)


def test_build_binds_defaults_and_aliases():
    assert build("dpo").name == "pairwise"
    assert build("lambdarank").params == {"beta": 0.1, "weight": "none"}
    assert build("listmle", beta="1e-2").params == {"beta": 0.01}  # YAML reads 1e-2 as a string


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rewards": [[3.0, 2, 1], [1, 2, 3]]}, r"row 1: rewards must not rise.*\[1.0, 2.0, 3.0\]"),
        ({"rewards": [[3.0, 2, 1], [math.nan, 2, 1]]}, "row 1: rewards must be finite"),
        ({"lengths": [[4, 0, 4], [4, 4, 4]]}, r"row 0: lengths must be at least 1.*\[4, 0, 4\]"),
        ({"mask": [[1, 1, 1], [1, 1, 0]]}, "mask must be torch.bool, found torch.int64"),
    ],
)
def test_list_batch_refuses(columns, message):
    with pytest.raises(UserError, match=message):
        make([[-1.0, -2, -3]] * 2, **columns)


def test_list_batch_refuses_shapes_and_pairwise_refuses_longer_lists():
    flat = torch.zeros(2, 3)
    with pytest.raises(UserError, match=r"one shape \(B, m\).*'mask': \(2, 2\)"):
        ListBatch(flat, flat, flat + 1, flat, torch.ones(2, 2, dtype=torch.bool))
    batch = make([[-1.0, -2, -3]] * 2, mask=[[True, True, False], [True, True, True]])
    with pytest.raises(UserError, match="expected 2 responses per list, found 3 in row 1"):
        build("pairwise")(batch)
