"""What holds of every objective: properties on drawn lists, gradients, ties, padding, precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from larpo.errors import UserError
from larpo.objectives import ListBatch, build
from tests.larpo.objectives.ranked_lists import lists, loss_and_grad, make, relaxed

PAPER = ["pairwise", "contrastive", "lambdarank", "listmle"]
BASELINES = ["ipo", "slic_hf", "cpo", "kto", "rdpo", "simpo", "rrhf"]
NAMES = PAPER + BASELINES
LISTS = ["contrastive", "lambdarank", "listmle", "rrhf"]  # any number of responses
PAIRS = [name for name in NAMES if name not in LISTS]
WITH_REFERENCE = [*PAPER, "ipo", "kto", "rdpo"]  # the loss depends on log-ratios alone
# Without the terms that only imitate the better response, what is left states a preference.
PREFERENCE_ONLY = {"slic_hf": {"nll_weight": 0}, "cpo": {"nll_weight": 0}, "rrhf": {"nll_weight": 0}}


def names_for(rewards: Tensor) -> list[str]:
    return NAMES if len(rewards) == 2 else LISTS


@st.composite
def ragged(draw, **options):
    """`lists` with lengths: (policy, columns of `make`)."""
    policy, reference, rewards = draw(lists(**options))
    lengths = torch.tensor(draw(st.lists(st.integers(1, 40), min_size=len(rewards), max_size=len(rewards))))
    mismatched = [draw(st.floats(-20, 20))]
    return policy, {"reference": reference, "rewards": rewards, "lengths": lengths, "mismatched": mismatched}


@pytest.mark.parametrize("weight", ["none", "ndcg"])
@relaxed
@given(data=ragged(high=8, strict_first=False))
def test_step_0_is_at_reference(weight, data):
    """Policy = reference up to a rounding of 1e-3 nats per response gives `at_reference`, ties included."""
    _, columns = data
    columns["mismatched"] = [1e-4]
    reference = columns["reference"]
    noise = 1e-3 * torch.cos(torch.arange(len(reference), dtype=torch.float64) * 7)
    for name in names_for(reference) if weight == "none" else ["lambdarank"]:
        # ipo at τ = ½: at 0.1 the slope at the reference is −10, and 2e-3 nats are 0.02.
        objective = build(name, **{"ipo": {"tau": 0.5}, "lambdarank": {"weight": weight}}.get(name, {}))
        expected = objective.at_reference(make(reference - 30, **columns))
        exact, close = (1e-9, 3e-3) if name in PAPER else (1e-4, 3e-2)
        for policy, tolerance in ((reference, exact), (reference + noise, close)):
            torch.testing.assert_close(objective(make(policy, **columns)), expected, rtol=0, atol=tolerance)


@relaxed
@given(data=lists(high=2), beta=st.floats(0.01, 5))
def test_two_responses_make_the_papers_four_equal(data, beta):
    losses = [build(name, beta=beta)(make(*data)).item() for name in PAPER]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9, abs=1e-9)


@relaxed
@given(data=ragged(span=60.0), shift=st.floats(-300, 300))
def test_what_shifts_leave(data, shift):
    """Objectives on log-ratios do not see a shift of policy and reference, those without a reference do not see the
    reference; of the policy alone those do not see it that look at differences of sums (KTO and means do)."""
    policy, columns = data
    both = columns | {"reference": columns["reference"] + shift}
    for name in names_for(policy):
        loss = build(name)(make(policy, **columns))
        moved = build(name)(make(policy + shift if name in WITH_REFERENCE else policy, **both))
        torch.testing.assert_close(moved, loss, rtol=1e-6, atol=1e-6)
        if name in (*PAPER, "rdpo", "cpo", "slic_hf"):
            objective = build(name, **PREFERENCE_ONLY.get(name, {}))
            moved, loss = (objective(make(p, **columns)) for p in (policy + shift, policy))
            torch.testing.assert_close(moved, loss, rtol=1e-6, atol=1e-6)


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
    for name in ["contrastive", "lambdarank", *(["listmle"] if len(rewards.unique()) == len(rewards) else [])]:
        loss = build(name)(make(policy, reference, rewards))
        resorted = build(name)(make(policy[order], reference[order], rewards[order]))
        torch.testing.assert_close(resorted, loss, rtol=1e-9, atol=1e-9)


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
        assert not more_grad[~padded["mask"]].any()


@pytest.mark.parametrize("name", NAMES)
def test_ragged_batch_equals_its_rows(name):
    """But for kto's z, which is a mean over the batch: with the same value in every row it is the same."""
    rows = [[-5.0, -9.0], [-3.0, -2.0, -8.0, -1.0], [-4.0], [-7.0, -7.5, -2.0]]
    rows = rows if name in LISTS else [[-5.0, -9.0], [-3.0, -2.0], [-7.0, -7.5]]
    wide = [row + [math.nan] * (4 - len(row)) for row in rows]
    mask = [[True] * len(row) + [False] * (4 - len(row)) for row in rows]
    others = [-4.0, -6.0, -5.0, -4.0], [9.0, 8.0, 8.0, 1.0]  # reference, rewards
    lengths = [3, 8, 2, 5]
    n = len(rows)
    batch = make(wide, *([column] * n for column in others), mask, [lengths] * n, [1.5] * n)
    alone = [make(row, *(column[: len(row)] for column in others), None, lengths[: len(row)], [1.5]) for row in rows]
    for value in (build(name), build(name).at_reference):
        torch.testing.assert_close(value(batch), torch.cat([value(b) for b in alone]))
    if name in LISTS:  # one response alone has nothing to be ranked against
        assert build(name)(batch)[2] == 0


@pytest.mark.parametrize("name", NAMES)
def test_equal_rewards_state_no_preference(name):
    """Loss, gradient and value at the reference exactly 0, beside a row that has a preference; ListMLE has no notion of
    a tie and only has to stay finite."""
    m = 4 if name in LISTS else 2
    policy = torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-3.0, -1.0, -2.0, -5.0]])[:, :m]
    columns = {"rewards": [[0.5] * m, [1, 0, 0, 0][:m]], "lengths": [[3, 4, 2, 5][:m]] * 2, "mismatched": [1.0, 2.0]}
    loss, grad = loss_and_grad(name, policy, **columns)
    if name == "listmle":
        assert loss.isfinite().all() and grad.isfinite().all()
        return
    assert loss[0] == 0 != loss[1]
    assert grad[0].tolist() == [0] * m != grad[1].tolist()
    at_reference = build(name).at_reference(make(policy, policy, **columns))
    assert at_reference[0] == 0 != at_reference[1]


def test_rrhf_skips_tied_pairs():
    """r = (2, 1, 1): the order of the two tied responses gives neither loss nor gradient between them."""
    policy = torch.tensor([-1.0, -30.0, -20.0], dtype=torch.float64)  # both far below the best: no hinge is active
    loss, grad = loss_and_grad("rrhf", policy, {"nll_weight": 0}, rewards=[2, 1, 1])
    assert loss.item() == 0 and grad.tolist() == [0, 0, 0]
    loss, _ = loss_and_grad("rrhf", policy, {"nll_weight": 0}, rewards=[3, 2, 1])
    assert loss.item() == pytest.approx(10 / 7)


@pytest.mark.parametrize("weight", ["none", "ndcg"])
@settings(max_examples=15, deadline=None)
@given(data=ragged(high=5, span=20.0))
def test_gradients_match_finite_differences(weight, data):
    policy, columns = data
    if weight == "ndcg":  # weights step where ranks change: keep γ apart, in the drawn order
        policy = columns["reference"] + policy.argsort().argsort() * 0.7
    policy = policy + 0.0137 * torch.arange(1, len(policy) + 1) ** 2  # off the kinks that drawn round numbers hit
    for name in names_for(policy) if weight == "none" else ["lambdarank"]:
        objective = build(name, **({"weight": weight, "beta": 0.8} if name == "lambdarank" else {}))

        def loss(x: Tensor, objective=objective) -> Tensor:
            return objective(make(x, **columns))

        assert torch.autograd.gradcheck(loss, policy.clone().requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-4)


@relaxed
@given(
    st.lists(st.sampled_from([-1e4, -300.0, -1.0, 0.0, 1e4]), min_size=2, max_size=5), st.sampled_from([-1e4, 0.0, 1e4])
)
def test_extreme_log_probabilities_stay_finite(policy, reference):
    """β·(log π − log π_ref) up to ±2000 in float32; in the paper's four each column's gradient stays within
    β·(m − 1)."""
    others = [0.0] * (len(policy) - 1)
    for name in NAMES if len(policy) == 2 else LISTS:
        loss, grad = loss_and_grad(name, torch.tensor(policy), reference=[reference, *others], mismatched=[reference])
        assert loss.isfinite().all() and grad.isfinite().all()
        if name in PAPER:
            assert loss.item() >= -1e-3
            assert grad.abs().max() <= 0.1 * (len(policy) - 1) * 1.001


@relaxed
@given(data=ragged(span=30.0), step=st.floats(0.1, 20))
def test_raising_the_best_lowers_the_loss(data, step):
    policy, columns = data
    raised = policy.clone()
    raised[0] += step
    for name in set(names_for(policy)) - {"ipo"}:  # its target is a point
        before, after = (build(name)(make(p, **columns)).item() for p in (policy, raised))
        assert after <= before
        assert name == "kto" or after < before  # kto's sigmoid saturates in floating point


@relaxed
@given(data=ragged(high=2))
def test_gradient_directions(data):
    """The better response is never pushed down, the worse never up; where the loss has a slope, both move."""
    policy, columns = data
    for name in set(BASELINES) - {"ipo", "rrhf"}:
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
    for name in BASELINES:
        same = torch.allclose(build(name)(short), build(name)(long))
        assert same == (name in ("ipo", "simpo", "rrhf")), name
    for name, factor in (("cpo", 1), ("rrhf", 1), ("slic_hf", 3)):  # the NLL alone: a token mean; SLiC-HF's is a sum
        by_one, by_three = (build(name, nll_weight=2)(x) - build(name, nll_weight=1)(x) for x in (short, long))
        torch.testing.assert_close(factor * by_one, by_three)


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


@pytest.mark.parametrize("name", ["listmle", "kto"])
def test_gradient_reaches_the_policy_alone(name):
    """Neither the reference nor kto's z carries one."""
    policy, reference, mismatched = (
        torch.tensor(x, requires_grad=True) for x in ([[-1.0, -2.0]], [[-2.0, -2.0]], [2.0])
    )
    batch = ListBatch(policy, reference, torch.ones(1, 2), torch.tensor([[3.0, 2]]), torch.ones(1, 2) > 0, mismatched)
    build(name)(batch).sum().backward()
    assert policy.grad.count_nonzero() == 2
    assert reference.grad is None and mismatched.grad is None


@pytest.mark.parametrize("given_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_raised_before_any_arithmetic(name, given_dtype):
    """Near 300 bfloat16 has a spacing of 2: a difference or product taken in it would show."""
    used = torch.float64 if given_dtype == torch.float64 else torch.float32
    policy, reference, mismatched = (
        torch.tensor(x, dtype=given_dtype) for x in ([-300.0, -302.0], [-301.3, -299.1], [1.3])
    )
    batch, objective = make(policy, reference, lengths=[3, 7], mismatched=mismatched), build(name)
    assert batch.policy_logps.dtype == batch.mismatched.dtype == used
    assert objective(batch).dtype == objective.at_reference(batch).dtype == used
    exact = objective(make(policy.double(), reference.double(), lengths=[3, 7], mismatched=mismatched.double()))
    torch.testing.assert_close(objective(batch).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("listmel", {}, "objective: 'listmel' does not exist; did you mean 'listmle'"),
        ("zzz", {}, "objective: 'zzz' does not exist; expected one of contrastive, cpo, dpo"),
        ("listmle", {"bta": 1}, "objective_options: 'bta' does not exist; did you mean 'beta'"),
        ("ipo", {"beta": 0.1}, "objective_options: 'beta' does not exist; expected one of tau"),
        ("simpo", {"gamma": 0.5}, "objective_options: 'gamma' does not exist"),
        ("pairwise", {"beta": 0}, "objective_options.beta: .*greater than 0, found 0"),
        ("rdpo", {"alpha": -1}, "objective_options.alpha: .*greater than or equal to 0, found -1"),
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


FLAT = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rewards": [[3.0, 2, 1], [1, 2, 3]]}, r"row 1: rewards must not rise.*\[1.0, 2.0, 3.0\]"),
        ({"rewards": [[3.0, 2, 1], [math.nan, 2, 1]]}, "row 1: rewards must be finite"),
        ({"lengths": [[4, 0, 4], [4, 4, 4]]}, r"row 0: lengths must be at least 1.*\[4, 0, 4\]"),
        ({"mask": [[1, 1, 1], [1, 1, 0]]}, "mask must be torch.bool, found torch.int64"),
        ({"mismatched": [1.0]}, r"mismatched: expected one value per list, \(2,\), found \(1,\)"),
    ],
)
def test_list_batch_refuses(columns, message):
    with pytest.raises(UserError, match=message):
        make([[-1.0, -2, -3]] * 2, **columns)
    with pytest.raises(UserError, match=r"one shape \(B, m\).*'mask': \(2, 2\)"):
        ListBatch(FLAT, FLAT, FLAT + 1, FLAT, torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("entries", [1, 3])
def test_objectives_of_pairs_refuse_other_lengths(name, entries):
    mask = [[True, True, False], [k < entries for k in range(3)]]
    batch = make([[-1.0, -2, -3]] * 2, mask=mask, mismatched=[0.0, 0.0])
    with pytest.raises(UserError, match=f"objective {name}: expected 2 responses per list, found {entries} in row 1"):
        build(name)(batch)


def test_kto_without_mismatched_names_the_parameter():
    with pytest.raises(UserError, match=r"kto.*`reference.mismatched: true`"):
        build("kto")(make([-4.0, -9.0]))
