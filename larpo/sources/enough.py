"""Whether a run's sources have as many different prompts as it asks for: told before anything is made of them."""

from collections.abc import Iterator
from pathlib import Path

from larpo.config.params import Params
from larpo.config.sections import SourceParams
from larpo.registry import is_own
from larpo.sources.prompts import draw

SECONDS = 1.5
"""Computing time for a draw; what is not known by then is told by the node that draws the prompts."""
READ_BYTES = 16 * 2**20  # a larger file is read by that node alone


def check_enough(params: Params) -> None:
    """Refuse what `draw` would refuse later: fewer prompts than an iteration, a fine-tuning or held_out asks for.

    Data that would have to be fetched and own code, which is not run here, are left to their nodes.

    Raises
    ------
    UserError
    """
    for section, source, count, held_out, asked in _draws(params):
        if not is_looked_at(source):
            continue
        try:
            # Whatever the seed, there are as many.
            draw(source, count, 0, held_out, section, asked=asked, seconds=SECONDS)
        except TimeoutError:
            continue


def is_looked_at(source: SourceParams) -> bool:
    """Whether it is a generator, or a file that is small enough to be read here."""
    return not is_own(source.source) and (source.source != "dataset" or _is_small(source.dataset))


def _draws(params: Params) -> Iterator[tuple[str, SourceParams, int, bool, str]]:
    """Every draw of a known number: section, source, number, whether of the held-out part, who asks."""
    yield "prompts", params.prompts, params.prompts.per_iteration, False, "prompts.per_iteration"
    for name, entry in params.benchmarks.items():
        if entry.benchmark == "held_out" and entry.items:
            yield "prompts", params.prompts, entry.items, True, f"benchmarks.{name}.items"
    for name, sft in params.sft.items():
        if sft.examples:
            yield f"sft.{name}.data", sft.data, sft.examples, False, f"sft.{name}.examples"


def _is_small(data: str | None) -> bool:
    return data is not None and Path(data).is_file() and Path(data).stat().st_size <= READ_BYTES
