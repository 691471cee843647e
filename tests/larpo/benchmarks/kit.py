"""What the tests of benchmarks share: a run's parameters, benchmarks of one entry, files, refusals."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from larpo.benchmarks import Benchmark, build_benchmark
from larpo.benchmarks.judge import JudgeClient
from larpo.config.judges import JudgeParams
from larpo.config.params import Params, parse_params
from larpo.errors import UserError
from tests.chat_server import ChatServer
from tests.conftest import ROOT

DATA = ROOT.parent / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' published data is not beside the checkout")


def params(**changes: Any) -> Params:
    raw = {
        "policy": {"model": "x/y"},
        "iterations": {"1": {"previous": "0", "temperatures": [1.0]}},
        "prompts": {
            "per_iteration": 4,
            "tasks": [{"name": "chain_sum", "config": {"min_terms": 2, "max_terms": 2, "max_digits": 2}}],
        },
        "sample": {"max_new_tokens": 4},
        "score": {"reward": "final_number", "truncation_penalty": 0.5},
        "lists": {"recipe": "best_worst"},
        "train": {"learning_rate": 1e-5},
        "evaluate": {"policies": ["0"]},
        "benchmarks": {"b": {"items": 10, "generate": {"samples": 4, "temperatures": [0.7], "max_new_tokens": 4}}},
    }
    return parse_params(raw | changes)


def bench(kind: str, server: ChatServer | None = None, **entry: Any) -> Benchmark:
    """A benchmark with the settings of its entry; where a server is given it is the judge `j`."""
    judges = {"j": {"model": "judge", "base_url": server.url if server else None}}
    entry = {"benchmark": kind, "generate": {"max_new_tokens": 64}} | entry
    return build_benchmark(params(benchmarks={"b": entry}, judges=judges), "b")


def judge(server: ChatServer, folder: Path, **settings: Any) -> JudgeClient:
    settings = {"model": "m/judge", "base_url": server.url, "attempts": 3, "timeout": 5} | settings
    return JudgeClient(JudgeParams(**settings), folder, "test")


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def greedy_outputs(items: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    """Outputs in the reverse order of the items, under an index of their own."""
    columns = {"temperature": 0.0, "sample": -1, "turn": 0, "n_tokens": 9, "finish_reason": "stop"}
    frame = pd.DataFrame({"prompt_id": items["prompt_id"][::-1].tolist(), "text": texts}).assign(**columns)
    return frame.set_index(frame.index * 2 + 3)


def refused(words: Sequence[str], call: Callable[..., Any], *args: Any, **options: Any) -> None:
    """The call is refused in one line that has these words."""
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
