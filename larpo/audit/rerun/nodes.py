"""Nodes executed again, in a clean clone, and compared with what the run recorded.

This runs the run's own code, as `dvc repro` would. It runs a node's command itself and not through `dvc repro`: the
command, the code, the parameters and the inputs are those that dvc.yaml declares, and without DVC nothing can come out
of a cache. Every node gets the recorded inputs, never those that another node just made again, so that one that differs
hides no other.
"""

import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from larpo.audit.chain import meta_of, only_executed, whole_chain
from larpo.audit.compare.rules import Comparison, compare, worst
from larpo.audit.isolation import network_cut, stripped
from larpo.audit.open import AuditedRun
from larpo.audit.record import Manifest
from larpo.audit.rerun.clone import Changed, Clone, Unfit, temporary
from larpo.audit.rerun.judge import judge_of, without_asking
from larpo.audit.rerun.terms import terms_of
from larpo.audit.results import Check, fails, holds, unchecked
from larpo.audit.science.verdicts import recorded_answers
from larpo.benchmarks.judge import NOBODY
from larpo.errors import UserError, nearest, one_line
from larpo.workspace import project_folder
from larpo.workspace.dvc import environment, kind_of
from larpo.workspace.dvc_lock import LockedNode
from larpo.workspace.processes import Commands
from larpo.workspace.repro import BAD_INPUT

PART = "again"
GIVEN = "none of your variables, an empty home"
WORKSPACE = Path(".larpo/audit-again")
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
}
NOT_HERE = re.compile(
    r"not installed|\bCUDA\b|\bGPU\b|\bNVIDIA\b|couldn't connect|offline|connection|outgoing traffic|name resolution"
    r"|Max retries|out of memory|No space left|needs a key",
    re.IGNORECASE,
)
"""What a node of whatever version prints where this machine, not the run, is at fault."""


SHARE, LEAST = 0.1, 60
"""Of the seconds that the manifests tell, and seconds: after as long, an audit that drew its nodes begins no second one
of a kind."""


def run_again(
    run: AuditedRun,
    nodes: list[LockedNode],
    say: Callable[[str], None],
    *,
    limit: float = math.inf,
    workspace: Path | None = None,
    variables: dict[str, str] | None = None,
) -> list[Check]:
    """Execute nodes of `run` again and compare what they make; one check per node.

    Parameters
    ----------
    say
        Gets a line per node, and the nodes' own output.
    limit
        Seconds of this machine's clock after which no second node of a kind is begun.
    workspace
        Where temporary folders are made; default: .larpo/audit-again of the project in the working folder. The run's
        data, Git repository and cache are only read.
    variables
        Further ones of the nodes' environment. Nodes start cold unless they name a server of warm ones.
    """
    with temporary(workspace or project_folder() / WORKSPACE) as home:
        executor = Executor(run, home, say, variables or {})
        start, checks, kinds = time.monotonic(), [], set()
        for node in nodes:
            if kind_of(node.name) not in kinds or time.monotonic() - start < limit:
                checks.append(executor.check(node))
                kinds.add(kind_of(node.name))
    return [*checks, whole_chain(run, {c.name for c in checks if c.verdict != "not checked"})]


def choose(run: AuditedRun, names: list[str] | None, every: bool) -> list[LockedNode]:
    """The nodes to execute: every one or those of these names and kinds, in the order of the graph; or, in an order
    drawn by lot, those that nothing else checks, the first of each kind before any second, and one of all others.

    Raises
    ------
    UserError
        A name that is neither a node nor a kind of the run.
    """
    if every:
        return run.nodes
    if names:
        known = [*(node.name for node in run.nodes), *{kind_of(node.name) for node in run.nodes}]
        if wrong := [name for name in names if name not in known]:
            raise UserError(f"node {wrong[0]!r} is not in {run.folder}/dvc.lock{nearest(wrong[0], known)}")
        return [node for node in run.nodes if {node.name, kind_of(node.name)} & set(names)]
    needed, place = only_executed(run), Counter()
    drawn = []
    for node in run.draw.order("nodes", needed):
        drawn.append((place[kind := kind_of(node.name)], node))
        place[kind] += 1
    rest = run.draw.order("others", [node for node in run.nodes if node not in needed])[:1]
    return [*rest, *(node for _, node in sorted(drawn, key=lambda pair: pair[0]))]


def limit_of(run: AuditedRun) -> float:
    return max(LEAST, SHARE * sum(manifest.seconds for manifest in run.manifests.values()))


class Executor:
    """Executes nodes one after the other; clones are shared by nodes of one commit."""

    def __init__(self, run: AuditedRun, home: Path, say: Callable[[str], None], variables: dict[str, str]):
        self.run, self.home, self.say, self.variables = run, home, say, variables
        self.clones: dict[str, Clone] = {}

    def check(self, node: LockedNode) -> Check:
        """One node, executed and compared. Whatever stands in the way is the check's own result."""
        try:
            check = self._check(node)
        except Unfit as error:
            check = unchecked(PART, node.name, str(error), False)  # `whole_chain` tells whether a number rests on it
        except Changed as error:
            check = fails(PART, node.name, 1, "an input is not what dvc.lock records", [str(error)])
        except UserError as error:
            check = fails(PART, node.name, 1, "what the run holds of it cannot be read", [str(error)])
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            line = f"{type(error).__name__}: {one_line(error)[:200]}"
            check = fails(PART, node.name, 1, "its record or its files are not as a run leaves them", [line])
        except RuntimeError as error:  # of git and dvc
            check = unchecked(PART, node.name, one_line(error)[:300], False)
        self.say(f"{node.name}: {check.verdict}, {check.failures[0] if check.failures else check.detail}")
        return check

    def _check(self, node: LockedNode) -> Check:
        manifest = self.run.manifest(node)
        if (commit := manifest.git.commit) is None:
            raise Unfit("its manifest names no commit")
        if missing := [path for path in node.products if not (self.run.folder / path).exists()]:
            raise Unfit(f"{missing[0]} is not here; fetch it with `dvc pull`")
        if commit not in self.clones:
            self.clones[commit] = Clone(self.run, commit, self.home)
        clone = self.clones[commit]
        command, added = clone.command(node), clone.stage(node)
        with tempfile.TemporaryDirectory(dir=self.home) as store:
            variables = self._environment(node, clone, Path(store))
            if not self.run.own:
                self.say(f"{node.name}: a stranger's code, run as you with {GIVEN} and {network_cut()[1]}")
            self.say(f"{node.name}: {command} (took {manifest.seconds} s when recorded)")
            start = time.monotonic()
            status, line = self._execute(command, clone.folder, variables)
            seconds = time.monotonic() - start
        if status:
            return self._failed(node, status, line)
        facts = [f"{seconds:.1f} s (recorded: {manifest.seconds} s)"]
        if not self.run.own:
            facts.append(f"a stranger's code, run with {GIVEN} and {network_cut()[1]}")
        if added:
            facts.append(f"uncommitted, taken from the run's folder: {', '.join(added)}")
        elif manifest.git.dirty:
            facts.append("recorded with uncommitted changes, none of them in what dvc.yaml declares of this node")
        return self._compare(node, clone, manifest, facts)

    def _environment(self, node: LockedNode, clone: Clone, store: Path) -> dict[str, str]:
        """`store`: an empty folder for what a judge answers; without a copy of the recorded answers there are none."""
        clean = {k: v for k, v in environment().items() if k not in ("LARPO_WARM", "PYTHONPATH", "DVC_STAGE")}
        if not self.run.own:
            clean = stripped(clean, store)
        variables = clean | QUIET | {"LARPO_JUDGEMENTS": str(store)} | self.variables
        judge = judge_of(self.run.params, node.name)
        if judge is None:
            return variables
        if kind_of(node.name) == "generate":  # looks whether there is a key, and asks nobody
            return variables | {judge.api_key_env: variables.get(judge.api_key_env) or "none"}
        answers = recorded_answers(self.run.folder)
        if answers is None:
            raise Unfit(
                f"it asks judge {judge.model} and no recorded answers are at hand; nobody is asked twice: put them "
                "where LARPO_JUDGEMENTS points"
            )
        without_asking(answers, store, clone.folder)
        return {k: v for k, v in variables.items() if k != judge.api_key_env}

    def _execute(self, command: str, folder: Path, variables: dict[str, str]) -> tuple[int, str]:
        """Exit status, and the line that says why: the node's refusal, else its last."""
        last = refusal = ""

        def hear(line: str) -> None:
            nonlocal last, refusal
            self.say(last := line.strip())
            if last.startswith("error:"):
                refusal = last.removeprefix("error:").strip()

        words = [] if self.run.own else network_cut()[0]
        status = Commands().run([*words, "sh", "-c", command], folder, variables, hear)
        return status, refusal or last

    def _failed(self, node: LockedNode, status: int, line: str) -> Check:
        if status > 128:
            raise Unfit(f"killed here by signal {status - 128}; its last line: {line or 'none'}")
        if NOBODY in line and judge_of(self.run.params, node.name) is not None:
            raise Unfit(
                "it asks a judge and some of its answers are not among the recorded ones; nobody is asked twice"
            )
        if NOT_HERE.search(line):
            raise Unfit(line)
        what = "refuses the recorded inputs" if status == BAD_INPUT else f"ends with exit status {status}"
        return fails(PART, node.name, 1, f"executed again it {what}", [line or "it printed nothing"])

    def _compare(self, node: LockedNode, clone: Clone, manifest: Manifest, facts: list[str]) -> Check:
        terms = terms_of(self.run, node.name, manifest, clone.code.manifest(node))
        rules = meta_of(self.run, node.name).compare
        compared = {path: compare(rules, self.run.folder / path, clone.folder / path, terms) for path in node.products}
        failures = [f"{path}: {c.difference or c.detail}" for path, c in compared.items() if not c.same]
        detail = "; ".join([_relation(compared), *facts])
        if failures:
            return fails(PART, node.name, len(compared), detail, failures)
        return holds(PART, node.name, len(compared), detail)


def _relation(compared: dict[str, Comparison]) -> str:
    """How the outputs compare: the furthest from the same bytes, with what shows it."""
    whole = worst(list(compared.values()))
    if whole.how == "bit-identical":
        return "bit-identical"
    path = next(path for path, c in compared.items() if c is whole)
    return f"{whole.how}: {path}: {whole.detail}"
