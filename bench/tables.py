"""How long the node `lists` takes, and what memory, from a `candidates` table of a large run.

`python bench/tables.py [PROMPTS]` makes the table in a temporary folder (10 responses × 3 iterations for each of 60,000
prompts, 100 tokens each; about a minute) and measures the node's whole process, as `python -m tasks.lists` runs it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from larpo import tables

ROOT = Path(__file__).parents[1]
TOKENS, RESPONSES, ITERATIONS = 100, 10, 3


def candidates(prompts: int, seed: int = 0) -> Iterator[pa.Table]:
    """The table, one iteration of 1,000 prompts after the other. One response in twenty repeats its neighbour."""
    rng, schema = np.random.default_rng(seed), tables.SCHEMAS["candidates"]
    for iteration in range(1, ITERATIONS + 1):
        for start in range(0, prompts, 1000):
            count = min(1000, prompts - start) * RESPONSES
            prompt = np.repeat(np.arange(start, start + count // RESPONSES), RESPONSES)
            ids = rng.integers(0, 49_152, (count, TOKENS), dtype=np.int32)
            again = np.flatnonzero(rng.random(count) < 0.05)
            ids[again] = ids[again - 1]
            ends = np.arange(count + 1, dtype=np.int32)
            rewards = rng.normal(size=count)
            columns = {
                "prompt_id": [f"{i:016x}" for i in prompt * 2_654_435_761],
                "response_id": [f"{i:016x}" for i in rng.integers(0, 2**63, count)],
                "iteration": np.full(count, iteration),
                "temperature": np.full(count, 0.7),
                "seed": np.full(count, 0),
                "text": [row.tobytes().hex()[:400] for row in ids],
                "prompt_token_ids": pa.ListArray.from_arrays(ends * 50, np.resize(ids, count * 50)),
                "token_ids": pa.ListArray.from_arrays(ends * TOKENS, ids.ravel()),
                "finish_reason": np.where(rng.random(count) < 0.1, "length", "stop"),
                "origin": ["policy"] * count,
                "logp": rewards - 100,
                "reward": rewards,
                "correct": rewards > 0,
                "reward_name": ["final_number"] * count,
            }
            yield pa.table(columns, schema=schema)


def questions(prompts: int) -> pd.DataFrame:
    messages = [{"role": "user", "content": "?"}]
    ids = [f"{i * 2_654_435_761:016x}" for i in range(prompts)]
    return pd.DataFrame({"prompt_id": ids, "source": "s", "messages": [messages] * prompts}).assign(
        answer=None, solution=None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="?", type=int, default=60_000)
    prompts = parser.parse_args().prompts
    with tempfile.TemporaryDirectory(prefix="larpo-bench-") as folder:
        project = Path(folder)
        for name in ("dvc.yaml", "params.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, project)
        for name in ("larpo", "tasks"):
            (project / name).symlink_to(ROOT / name)
        (project / "data").mkdir()
        (project / "data/samples").symlink_to(ROOT / "data/samples")
        params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
        last = list(params["iterations"])[-1]
        rows = tables.write_parts(candidates(prompts), "candidates", project / f"data/candidates/{last}.parquet")
        tables.write(questions(prompts), "prompts", project / f"data/prompts/{last}.parquet")
        start = time.perf_counter()
        command = [sys.executable, "-m", "tasks.lists", str(last)]
        process = subprocess.Popen(command, cwd=project, env=os.environ | {"LARPO_WARM": ""})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            sys.exit("the node failed")
        lists = tables.read("lists", project / f"data/lists/{last}.parquet")
        print(
            f"{rows} candidates, {len(lists)} rows of {lists['prompt_id'].nunique()} lists: {seconds:.1f} s, "
            f"{usage.ru_utime + usage.ru_stime:.1f} s of a processor, peak {usage.ru_maxrss / 2**20:.2f} GiB"
        )


if __name__ == "__main__":
    main()
