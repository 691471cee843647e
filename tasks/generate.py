"""Node `generate@POLICY-BENCHMARK`: what a checkpoint answers to a benchmark's items, every raw output kept.

Greedy answers (or one sampled answer, where the benchmark judges one and params give it a temperature), samples at
each temperature, and revisions of the greedy answer (iterative refinement). Scoring is another node: a new parser reads
these outputs again.
"""

import pandas as pd

from larpo import tables
from larpo.benchmarks import build_benchmark
from larpo.benchmarks.judge import check_key
from larpo.benchmarks.refinement import revised
from larpo.engines import Sampling
from larpo.hashing import seed_of
from tasks.frame.generator import Generator, note_cut
from tasks.frame.node import Node, command


def main(policy: str, benchmark: str) -> None:
    """Write data/generate/POLICY-BENCHMARK.parquet."""
    node = Node("generate", f"{policy}-{benchmark}")
    params = node.params
    bench = build_benchmark(params, benchmark)
    if getattr(bench, "judge", None) is not None:
        check_key(bench.judge, bench.judge_name)  # hours of generation must not end at a missing key
    wanted = params.benchmarks[benchmark].generate
    # The same seed for every policy: checkpoints meet the same items and the same random draws.
    node.seed = seed_of(params.seed, "evaluate", benchmark)
    with node:
        items = tables.read("items", node["items"])
        generator = Generator(node, node.checkpoint("policy"))
        first, greedy = (Sampling(1, t, wanted.max_new_tokens) for t in (wanted.temperature, 0.0))
        tag = f"one-t{wanted.temperature:g}" if wanted.temperature else "greedy"
        parts = [generator.run(items, first, tag).assign(temperature=wanted.temperature, sample=-1, turn=0)]
        asked = items
        for turn in range(1, wanted.refinements + 1):
            asked = asked.assign(messages=revised(asked["messages"], parts[-1]["text"]))
            parts.append(generator.run(asked, greedy, f"turn{turn}").assign(temperature=0.0, sample=-1, turn=turn))
        # The order of a source may mean something (easy items first); an id is a hash, so its order does not.
        chosen = set(sorted(items["prompt_id"])[: wanted.sampled_items])
        for temperature in wanted.temperatures if wanted.samples else []:
            sampling = Sampling(wanted.samples, temperature, wanted.max_new_tokens)
            part = generator.run(items[items["prompt_id"].isin(chosen)], sampling, f"t{temperature:g}")
            parts.append(part.assign(temperature=temperature, sample=part["index"], turn=0))
        frame = pd.concat(parts, ignore_index=True)
        frame["n_tokens"] = frame["token_ids"].map(len)
        order = {p: i for i, p in enumerate(items["prompt_id"])}
        # Per item: greedy (or the one output at its own temperature), its revisions, then the temperatures in the order
        # they were asked for.
        place = {0.0: -1, wanted.temperature: -1} | {t: i for i, t in enumerate(wanted.temperatures)}
        frame = frame.assign(o=frame["prompt_id"].map(order), t=frame["temperature"].map(place))
        frame = frame.sort_values(["o", "t", "turn", "sample"], kind="stable")
        tables.write(frame[tables.SCHEMAS["outputs"].names], "outputs", node.out("generate"))
        node.note(tokens=int(frame["n_tokens"].sum()))
        note_cut(node, frame, f"benchmarks.{benchmark}.generate.max_new_tokens", wanted.max_new_tokens)
        node.rows(read=len(items), written=len(frame))


if __name__ == "__main__":
    command(main)
