"""Node `reference@s`: log π_ref of every response in the lists behind its list's prompt, computed once.

No reference model sits in memory while training, and another objective or learning rate reuses this. With
`reference.mismatched` each list's prompt is also scored with the best response of the next list.

The same policy sampled this iteration's responses, and the engine's log-probabilities of them must be the same.
"""

import json
import math
from dataclasses import asdict, replace
from functools import cache, partial

import pandas as pd
import torch
from transformers import PreTrainedModel

from larpo import tables
from larpo.lists.read import check_list_tokens, mismatched_responses, read_lists, response_lists
from larpo.models.load import load_model
from larpo.training import drift
from larpo.training.exactness import check_exact
from larpo.training.forward import way_of
from larpo.training.logps import response_logps
from larpo.training.micro_batches import within
from larpo.training.packing import pack, tokens_of
from larpo.workspace.files import write_json
from larpo.workspace.progress import say
from tasks.frame.launch import Processes, launched
from tasks.frame.node import Node, command
from tasks.frame.parts import batches, in_parts


def main(iteration: str) -> None:
    """Write data/reference/ITERATION.parquet."""
    node = Node("reference", iteration)
    params = node.params
    if launched(params.reference.launch, "tasks.reference", iteration):
        return
    with node:
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
        exactness, processes = node.scratch / "exactness.json", Processes()
        autocast = params.reference.autocast == "bfloat16"

        @cache
        def model() -> PreTrainedModel:
            model = load_model(policy, params.policy.dtype).to(processes.device).eval()
            check_list_tokens(model, lists, candidates_path)
            exact = check_exact(model, lists, node.stage, autocast)
            if node.leads:
                write_json(exactness, exact)
                say(f"{node.stage}: {way_of(model)}")
            return model

        def make(start: int, end: int) -> pd.DataFrame:
            at_once = order[start:end]
            packed = pack([lists[i] for i in at_once]).to(processes.device)
            with torch.inference_mode(), torch.autocast(processes.device.type, torch.bfloat16, enabled=autocast):
                logps, lengths = (t.cpu() for t in response_logps(model(), packed))
            # A mismatched response stands behind the list's own m; its value goes to the list's first row.
            rows = [
                (i, float(logps[b, j]), int(lengths[b, j]), float(logps[b, m]) if mismatched and j == 0 else math.nan)
                for b, i in enumerate(at_once)
                for m in (sizes[i],)
                for j in range(m)
            ]
            return pd.DataFrame(rows, columns=["list", "reference_logp", "n_tokens", "mismatched_logp"])

        order, bounds = list(range(len(lists))), batches(len(lists), params.reference.lists_per_batch or 1)
        if tokens := params.reference.tokens_per_batch:
            size = partial(tokens_of, packed=way_of(model()).packed)
            order.sort(key=lambda i: -size([lists[i]]))
            bounds = [(group[0], group[-1] + 1) for group in within([lists[i] for i in order], tokens, size)]
        values = in_parts(node, bounds, make, unit="lists", processes=processes)
        if not node.leads:
            return
        values = values.sort_values("list", kind="stable", ignore_index=True)
        result = frame.drop(columns="reward").join(values)
        tables.write(result[tables.SCHEMAS["reference"].names], "reference", node.out("reference"))
        apart = drift.from_sampler(params, iteration, result)
        if isinstance(apart, drift.Drift):
            apart.check(node.stage)
            node.note(drift=asdict(apart))
        say(f"{node.stage}: drift from the sampler: {apart}")
        node.note(reference_policy=which, dtype=params.training_dtype, **json.loads(exactness.read_text()))
        node.rows(read=len(frame), written=len(result))


if __name__ == "__main__":
    command(main)
