"""What the sections that train may say."""

from __future__ import annotations

from pathlib import Path

from larpo.config.params import Params
from larpo.errors import ParameterError


def check(params: Params) -> None:
    """Refuse a configuration of several processes that is not there."""
    for key, section in [("train", params.train), *[(f"sft.{name}", sft) for name, sft in params.sft.items()]]:
        if section.launch is not None and not Path(section.launch).is_file():
            raise ParameterError(f"{key}.launch", f"{section.launch}: not found; expected an Accelerate configuration")
