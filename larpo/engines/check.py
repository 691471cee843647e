"""What an engine may be asked for."""

import json
from pathlib import Path
from typing import Any

from larpo.config.params import Params
from larpo.engines import ENGINES
from larpo.errors import ParameterError


def check(params: Params) -> None:
    """Refuse unknown engines, and temperatures that cannot share the responses or would make them all the same."""
    ENGINES.check(params.engine.name, "engine.name")
    k = params.sample.responses
    for s, iteration in params.iterations.items():
        key, temperatures = f"iterations.{s}.temperatures", iteration.temperatures
        if 0 in temperatures and k > 1:
            raise ParameterError(
                key, f"temperature 0 gives {k} identical responses; expected > 0 (sample.responses is k)"
            )
        if k % len(temperatures):
            raise ParameterError(key, f"{len(temperatures)} temperatures cannot share sample.responses={k} equally")
    described = Path(params.policy.model) / "config.json"
    if described.is_file():
        try:
            config = json.loads(described.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return  # the node that loads it tells what is wrong with it
        check_heads(params.engine.options, config, params.policy.model)


def check_heads(options: dict[str, Any], config: Any, model: str) -> None:
    """Refuse to spread a model over GPUs that its attention heads cannot share; `config` is its config.json. Keys and
    values of fewer heads are copied, each as often as the others."""
    gpus = options.get("tensor_parallel_size", 1)
    section = config if isinstance(config, dict) else {}
    section = section["text_config"] if isinstance(section.get("text_config"), dict) else section
    heads = section.get("num_attention_heads")
    shared = section.get("num_key_value_heads") or heads
    if not all(isinstance(n, int) and n > 0 for n in (gpus, heads, shared)):
        return
    if heads % gpus or max(shared, gpus) % min(shared, gpus):
        fits = [n for n in range(1, heads + 1) if not heads % n and not max(shared, n) % min(shared, n)]
        raise ParameterError(
            "engine.options.tensor_parallel_size",
            f"{gpus} GPUs cannot share the {heads} attention heads ({shared} of keys and values) of {model}; expected "
            f"one of {', '.join(map(str, fits))}",
        )
