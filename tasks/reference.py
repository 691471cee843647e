"""Node `reference@s`: log π_ref of every response in the lists behind its list's prompt, computed once.

No reference model sits in memory while training, and another objective or learning rate reuses this. With
`reference.mismatched` each list's prompt is also scored with the best response of the next list.

The same policy sampled this iteration's responses, and the engine's log-probabilities of them must be the same.
"""

import json
import math
from dataclasses import asdict, replace

import pandas as pd
import torch

from larpo import tables
from larpo.lists.read import check_list_tokens, mismatched_responses, read_lists, response_lists
from larpo.models.load import load_model
from larpo.training import drift
from larpo.training.exactness import check_exact
from larpo.training.forward import way_of
from larpo.training.logps import response_logps
from larpo.training.packing import pack
from larpo.workspace.files import write_json
from larpo.workspace.progress import say
from tasks.frame.node import Node, command
from tasks.frame.parts import batches, in_parts


def main(iteration: str) -> None:
    """Write data/reference/ITERATION.parquet."""
    with Node("reference", iteration) as node:
        params = node.params
        which = params.reference_policy(iteration)
        policy, lists_path, candidates_path = node.checkpoint(("policy", which)), node["lists"], node["candidates"]
        frame = read_lists(lists_path, candidates_path)
        lists = response_lists(frame)
        sizes = [len(entry.response_ids) for entry in lists]
        if mismatched := params.reference.mismatched:
            lists = [
                replace(entry, response_ids=[*entry.response_ids, other])
                for entry, other in zip(lists, mismatched_responses(lists, lists_path), strict=True)
            ]
        model, exactness = None, node.scratch / "exactness.json"

        def make(start: int, end: int) -> pd.DataFrame:
            nonlocal model
            if model is None:
                model = load_model(policy, params.policy.dtype).to(device).eval()
                check_list_tokens(model, lists, candidates_path)
                write_json(exactness, check_exact(model, lists, node.stage))
                say(f"{node.stage}: {way_of(model)}")
            with torch.inference_mode():
                logps, lengths = (t.cpu() for t in response_logps(model, pack(lists[start:end]).to(device)))
            # A mismatched response stands behind the list's own m; its value goes to the list's first row.
            rows = [
                (float(logps[b, j]), int(lengths[b, j]), float(logps[b, m]) if mismatched and j == 0 else math.nan)
                for b, m in enumerate(sizes[start:end])
                for j in range(m)
            ]
            return pd.DataFrame(rows, columns=["reference_logp", "n_tokens", "mismatched_logp"])

        device = "cuda" if torch.cuda.is_available() else "cpu"
        values = in_parts(node, batches(len(lists), params.reference.lists_per_batch), make, unit="lists")
        result = frame.drop(columns="reward").join(values)
        tables.write(result[tables.SCHEMAS["reference"].names], "reference", node.out("reference"))
        apart = drift.from_sampler(params, iteration, result)
        if isinstance(apart, drift.Drift):
            apart.check(node.stage)
            node.note(drift=asdict(apart))
        say(f"{node.stage}: drift from the sampler: {apart}")
        node.note(reference_policy=which, dtype=params.policy.dtype, **json.loads(exactness.read_text()))
        node.rows(read=len(frame), written=len(result))


if __name__ == "__main__":
    command(main)
