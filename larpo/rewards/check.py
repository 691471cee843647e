"""What the sections `score` and `reward` may say of a reward and of the model that it reads."""

from contextlib import suppress

from larpo.config.params import Params
from larpo.errors import ParameterError
from larpo.registry import OwnCodeError
from larpo.rewards import MODELS, REWARDS, parts


def check(params: Params) -> None:
    """Refuse unknown rewards and options, and a reward without its model, before anything is loaded."""
    score, reward = params.score, params.reward
    REWARDS.check(score.reward, "score.reward")
    for name, options in parts(score):
        model = (None,) if name in MODELS else ()
        if model and (reward.source is None or reward.kind != name):
            found = "null" if reward.source is None else f"{reward.source!r} of reward.kind={reward.kind}"
            raise ParameterError(
                "reward.model",
                f"score.reward asks for {name}, found {found}; set reward.model to a checkpoint and reward.kind to "
                f"{name}",
            )
        try:
            with suppress(OwnCodeError):  # the nodes that score look again
                REWARDS.load(name, "score.reward")(*model, **options)
        except TypeError as error:
            names = ", ".join(options)
            raise ParameterError("score.options", f"{name}: found {names}: {error}") from None
    if reward.train is not None and (reward.source is None or reward.kind != "sequence_classification"):
        raise ParameterError(
            "reward.train",
            "trains a sequence_classification model; expected reward.model or reward.start to name what it starts "
            f"from, found model={reward.model!r}, kind={reward.kind}",
        )
    if reward.checks and reward.source is None:
        raise ParameterError("reward.checks", "there is no model to check; set reward.model or reward.start")
