"""Tokens against the numbers that drew them, trainings against what AdamW can reach, and the auditor's draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from larpo.audit.draw import draw
from larpo.audit.science.outputs import ACCUSED, EDGE, LAMBDAS, outside, surprise
from larpo.audit.science.policies import reach
from larpo.config.sections import TrainParams
from larpo.engines import Sampling
from larpo.engines.transformers_engine import Draw


def logits(rows: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_what_the_engine_draws_lies_in_its_range_and_nothing_else_does(temperature, top_p):
    sampling = Sampling(1, temperature, 4, top_p)
    engine = Draw(200, sampling, 11)
    scores = logits(200, 1)
    tokens, _ = engine(0, torch.arange(200), scores)
    numbers = engine.uniform[0][:, 0]
    assert outside(scores, tokens, numbers, temperature, top_p).max() < EDGE["float32"] / 100
    # On another machine logits are off by rounding, and no draw is accused.
    rounded = scores + 1e-5 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(2))
    assert outside(rounded, tokens, numbers, temperature, top_p).max() < EDGE["float32"]
    others = (tokens + 1) % 50
    assert (outside(scores, others, numbers, temperature, top_p) > EDGE["float32"]).float().mean() > 0.95


def evidence(scores: torch.Tensor, tokens: torch.Tensor) -> float:
    return float(np.logaddexp.reduce(surprise(scores, tokens, 1.0, 1.0)) - math.log(len(LAMBDAS)))


@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 8))
def test_honest_tokens_are_not_called_unlike_their_policys(seed, spread):
    scores = logits(300, seed, spread)
    drawn = torch.multinomial(scores.softmax(-1), 1, generator=torch.Generator().manual_seed(seed + 1))[:, 0]
    assert evidence(scores, drawn) < -math.log(ACCUSED)


def test_tokens_that_the_policy_would_hardly_say_are():
    scores = logits(60, 3)
    assert evidence(scores, scores.argmin(-1)) > -math.log(ACCUSED)


@pytest.mark.parametrize("steps", [1, 5, 60])
@pytest.mark.parametrize("gradients", ["one way", "growing", "at random", "once"])
def test_no_weight_leaves_the_reach_of_adamw(steps, gradients):
    """Gradients that carry a weight far: the bound is none if one gets past it, and of no use if none comes near."""
    params = TrainParams(learning_rate=0.01)
    weight = torch.nn.Parameter(torch.zeros(20))
    optimizer = torch.optim.AdamW([weight], lr=params.learning_rate, weight_decay=0.0, eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    for t in range(steps):
        weight.grad = {
            "one way": torch.ones(20),
            "growing": torch.full((20,), (0.999 / 0.9) ** t),
            "at random": torch.randn(20, generator=generator),
            "once": torch.ones(20) * (t == steps // 2) + 1e-12,
        }[gradients]
        optimizer.step()
    share = float(weight.detach().abs().max()) / reach(params, steps)
    assert share <= 1 + 1e-5
    assert gradients != "growing" or share > 0.8


def test_a_draw_is_repeatable_unforeseeable_and_even():
    things = [list(range(10)), list(range(100, 300)), [7000]]
    one = draw(5, 30).some("x", things)
    assert one == draw(5, 30).some("x", things) != draw(6, 30).some("x", things)
    assert one != draw(5, 30).some("y", things) and draw().seed != draw().seed
    assert len(set(one)) == len(one) == 30 and 7000 in one
    assert sum(i < 10 for i in one) == 10 and sum(100 <= i < 300 for i in one) == 19
    assert sorted(draw(1, 500).some("x", things)) == sorted(i for stratum in things for i in stratum)
