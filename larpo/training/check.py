"""What the sections that train may say."""

from pathlib import Path

from larpo.config.params import Params
from larpo.errors import ParameterError

LOST = "examples would be left out, and nothing would count them"
OTHERWISE = "the step is a mean over all its examples, in batches that the parameters say"
AGAIN = "a run that was stopped could not go on as if it never was"
HARMFUL = {
    "dataloader_drop_last": LOST,
    "auto_find_batch_size": OTHERWISE,
    "per_device_train_batch_size": OTHERWISE,
    "gradient_accumulation_steps": OTHERWISE,
    "train_sampling_strategy": OTHERWISE,
    "ignore_data_skip": AGAIN,
    "save_only_model": AGAIN,
}
"""Options of the Trainer that would change what is learnt without a word."""
NOT_IN_OBJECTIVES = {
    "label_smoothing_factor": "the objective is the loss; nothing would be smoothed",
    "neftune_noise_alpha": "noise in the embeddings would make a policy differ from its own reference",
}
"""Those that SFT knows, and training on lists or pairs ignores or is harmed by."""


def check(params: Params) -> None:
    """Refuse a configuration of several processes that is not there, weights too coarse to train, and options that
    would be ignored or do harm."""
    if params.reference.autocast != params.train.autocast:
        raise ParameterError(
            "reference.autocast",
            f"{params.reference.autocast}, train.autocast is {params.train.autocast}: policy and reference are "
            "compared, and so computed alike; expected the same in both",
        )
    sections = [("train", params.train), *[(f"sft.{name}", sft) for name, sft in params.sft.items()]]
    for key, section in sections:
        if params.policy.dtype != "float32" and section.optimizer != "adamw_8bit":
            raise ParameterError(
                "policy.dtype",
                f"steps of training vanish in {params.policy.dtype}; expected float32 (train.autocast=bfloat16 for "
                f"speed), or {key}.optimizer=adamw_8bit, which rounds stochastically",
            )
    for key, section in [("reference", params.reference), *sections]:
        if section.launch is not None and not Path(section.launch).is_file():
            raise ParameterError(f"{key}.launch", f"{section.launch}: not found; expected an Accelerate configuration")
    if params.reward.train is not None:
        sections.append(("reward.train", params.reward.train))
    for key, section in sections:
        refused = HARMFUL if key.startswith("sft.") else HARMFUL | NOT_IN_OBJECTIVES
        if "optim" in section.trainer_options and section.optimizer != "adamw":
            raise ParameterError(f"{key}.trainer_options", f"'optim' beside {key}.optimizer; expected one of them")
        for option in section.trainer_options:
            if option in refused:
                raise ParameterError(f"{key}.trainer_options", f"{option!r} cannot be set here: {refused[option]}")
