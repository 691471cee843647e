"""The table of a benchmark's items, and of its items with what was answered to them."""

from collections.abc import Iterable

import pandas as pd

from larpo.errors import ParameterError
from larpo.hashing import unit_interval

Item = tuple[str, str, list[dict[str, str]], str, str | None]
"""prompt_id, source, messages, answer, meta"""


def build_items(rows: Iterable[Item], count: int | None = None) -> pd.DataFrame:
    """Items, each once; `count` of them by a hash of their ids, in the source's order, or all."""
    items = pd.DataFrame(list(rows), columns=["prompt_id", "source", "messages", "answer", "meta"])
    items = items.drop_duplicates("prompt_id", ignore_index=True)
    if count is None:
        return items
    if count > len(items):
        raise ParameterError("items", f"{count} asked for, the source has {len(items)}; expected at most that")
    order = items["prompt_id"].map(lambda p: unit_interval("choose", p)).sort_values(kind="stable")
    return items.loc[sorted(order.index[:count])].reset_index(drop=True)


def build_outputs(texts: Iterable[str], **columns: list) -> pd.DataFrame:
    """Greedy outputs that were made elsewhere, for the items "0", "1", …; how long they are in tokens is not known."""
    outputs = pd.DataFrame({"text": list(texts), **columns}).assign(sample=-1, turn=0, finish_reason="stop")
    return outputs.assign(prompt_id=[str(i) for i in range(len(outputs))])


def join_items(outputs: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Outputs, one or more of each item, with the columns messages and answer of their items; (R,) rows in order."""
    return outputs.merge(items[["prompt_id", "messages", "answer"]], on="prompt_id", how="left", validate="many_to_one")


def greedy(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The rows of greedy answers before any revision."""
    return evaluations[(evaluations["sample"] < 0) & (evaluations["turn"] == 0)]
