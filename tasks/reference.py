"""Node `reference@s`: log π_ref of every response in the lists behind its list's prompt, computed once.

No reference model sits in memory while training, and another objective or learning rate reuses this. With
`reference.mismatched` each list's prompt is also scored with the best response of the next list.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import torch

from larpo import tables
from larpo.lists.read import check_list_tokens, mismatched_responses, read_lists, response_lists
from larpo.models.load import load_model
from larpo.training.logps import response_logps
from larpo.training.packing import pack
from tasks.frame.files import read_part, write_part
from tasks.frame.node import Node, command, load_params, progress


def main(iteration: str) -> None:
    """Write data/reference/ITERATION.parquet."""
    params = load_params()
    params.entry("iterations", iteration)
    which = params.reference_policy(iteration)
    policy = f"data/policy/{which}"
    lists_path, candidates_path = f"data/lists/{iteration}.parquet", f"data/candidates/{iteration}.parquet"
    out = f"data/reference/{iteration}.parquet"
    with Node(
        "reference",
        iteration,
        params,
        uses=["reference", f"iterations.{iteration}"],
        inputs=[policy, lists_path, candidates_path],
        outputs=[out],
        manifest=f"data/reference/{iteration}.manifest.json",
    ) as node:
        frame = read_lists(lists_path, candidates_path)
        lists = response_lists(frame)
        sizes = [len(entry.response_ids) for entry in lists]
        if mismatched := params.reference.mismatched:
            lists = [
                replace(entry, response_ids=[*entry.response_ids, other])
                for entry, other in zip(lists, mismatched_responses(lists, lists_path), strict=True)
            ]
        size = params.reference.lists_per_batch
        starts = list(range(0, len(lists), size))
        paths = {s: node.scratch / f"part-{s:08d}.part" for s in starts}
        done = {s: part for s in starts if (part := read_part(paths[s])) is not None}
        todo = [s for s in starts if s not in done]
        if todo:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = load_model(policy, params.policy.dtype).to(device).eval()
            check_list_tokens(model, lists, candidates_path)
        for start in progress(todo, node.stage, "lists", lambda s: min(size, len(lists) - s)):
            batch = lists[start : start + size]
            with torch.inference_mode():
                logps, lengths = (t.cpu() for t in response_logps(model, pack(batch).to(device)))
            # A mismatched response stands behind the list's own m; its value goes to the list's first row.
            rows = [
                (float(logps[b, j]), int(lengths[b, j]), float(logps[b, m]) if mismatched and j == 0 else math.nan)
                for b, m in enumerate(sizes[start : start + size])
                for j in range(m)
            ]
            part = pd.DataFrame(rows, columns=["reference_logp", "n_tokens", "mismatched_logp"])
            write_part(part, paths[start])
        parts = [done[s] if s in done else read_part(paths[s]) for s in starts]
        values = pd.concat(parts, ignore_index=True)
        result = values.assign(prompt_id=frame["prompt_id"], response_id=frame["response_id"])
        tables.write(result[tables.SCHEMAS["reference"].names], "reference", node.out(out))
        node.note(reference_policy=which, dtype=params.policy.dtype)
        node.rows(read=len(frame), written=len(result))


if __name__ == "__main__":
    command(main)
