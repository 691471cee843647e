"""What an engine may be asked for."""

from larpo.config.params import Params
from larpo.engines import ENGINES
from larpo.errors import ParameterError


def check(params: Params) -> None:
    """Refuse unknown engines, and temperatures that cannot share the responses or would make them all the same."""
    ENGINES.check(params.engine.name, "engine.name")
    if params.engine.batch_invariant and params.engine.name != "vllm":
        raise ParameterError(
            "engine.batch_invariant", f"is a mode of vLLM, found engine.name {params.engine.name!r}; leave it false"
        )
    k = params.sample.responses
    for s, iteration in params.iterations.items():
        key, temperatures = f"iterations.{s}.temperatures", iteration.temperatures
        if 0 in temperatures and k > 1:
            raise ParameterError(
                key, f"temperature 0 gives {k} identical responses; expected > 0 (sample.responses is k)"
            )
        if k % len(temperatures):
            raise ParameterError(key, f"{len(temperatures)} temperatures cannot share sample.responses={k} equally")
