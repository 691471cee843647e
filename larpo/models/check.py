"""What the sections that name a model may say."""

import re
from pathlib import Path

from larpo.config.params import Params
from larpo.errors import ParameterError


def check(params: Params) -> None:
    """Refuse half a description of `scratch`, and code of a hub model that no commit pins: what runs would be whatever
    its author publishes next."""
    if (params.policy.model == "scratch") != (params.policy.architecture is not None):
        raise ParameterError(
            "policy.architecture", "describes the model `scratch` and nothing else; set both or neither"
        )
    for key, section in (("policy", params.policy), ("reward", params.reward)):
        model = str(section.model)
        local = model == "scratch" or model.startswith(("pypi:", ".", "/")) or Path(model).exists()
        if section.trust_remote_code and not local and not re.fullmatch("[0-9a-f]{40}", section.revision or ""):
            raise ParameterError(
                f"{key}.revision",
                f"{key}.trust_remote_code lets code of {model} run, so it has to be pinned; expected the full hash of "
                f"a commit (40 digits of 0-9a-f), found {section.revision!r}",
            )
