"""Nodes that ask a judge, executed again without asking: from the recorded answers or not at all."""

from pathlib import Path

from larpo.audit.open import PARAMS
from larpo.audit.rerun.clone import copy
from larpo.benchmarks import build_benchmark
from larpo.benchmarks.judge import NOBODY
from larpo.config import yaml12
from larpo.config.judges import JudgeParams
from larpo.config.params import Params


def judge_of(params: Params, node: str) -> JudgeParams | None:
    """The judge that `evaluate@POLICY-BENCHMARK` asks, and for which `generate@POLICY-BENCHMARK` wants a key."""
    kind, _, key = node.partition("@")
    name = key.partition("-")[2]
    if kind not in ("evaluate", "generate") or name not in params.benchmarks:
        return None
    return getattr(build_benchmark(params, name), "judge", None)


def without_asking(answers: Path, store: Path, folder: Path) -> None:
    """Copy the answers to `store`, and let every judge in the params.yaml of `folder` be on a server that needs a key
    and does not exist: a request that the store does not answer is then refused before it is sent. An answer's key
    holds the judge's model and the request, not the server."""
    for file in answers.glob("*.jsonl"):
        copy(file, store / file.name)
    path = folder / PARAMS
    raw = yaml12.read(path)
    for judge in (raw.get("judges") or {}).values():
        judge["base_url"] = NOBODY
    path.write_text(yaml12.write(raw), "utf-8")
