"""What the sections `benchmarks` and `best_of_n` may ask for."""

from contextlib import suppress

from larpo.benchmarks import BENCHMARKS, build_benchmark
from larpo.config.params import Params
from larpo.errors import ParameterError, unknown
from larpo.registry import OwnCodeError


def check(params: Params) -> None:
    """Refuse unknown benchmarks and settings, data that are not there, and more samples than are drawn."""
    for name, entry in params.benchmarks.items():
        BENCHMARKS.check(entry.benchmark, f"benchmarks.{name}.benchmark")
    for name, entry in params.benchmarks.items():
        sampled = entry.generate.sampled_items
        if None not in (sampled, entry.items) and sampled > entry.items:
            raise ParameterError(
                f"benchmarks.{name}.generate.sampled_items",
                f"{sampled} of {entry.items} items; expected at most `items`",
            )
        if entry.judge is not None and not params.judges:
            raise ParameterError(
                f"benchmarks.{name}.judge", f"{entry.judge!r}: the section `judges` is empty; describe it there"
            )
        if entry.judge is not None and entry.judge not in params.judges:
            raise unknown(f"benchmarks.{name}.judge", entry.judge, list(params.judges))
        with suppress(OwnCodeError):  # the nodes that use it look again
            build_benchmark(params, name)
    for name, entry in params.best_of_n.items():
        samples = params.benchmarks[entry.benchmark].generate.samples
        if max(entry.ns) > samples:
            raise ParameterError(
                f"best_of_n.{name}.ns",
                f"best of {max(entry.ns)} needs as many samples, benchmarks.{entry.benchmark}.generate.samples is "
                f"{samples}",
            )
