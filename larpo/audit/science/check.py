"""The run's numbers computed again from its own tables, by the code of whoever audits: which checks, in which order.

Paths are relative to the run's folder, which is the working folder while a check runs: parameters may name data
relative to it.
"""

import contextlib
from collections.abc import Callable, Iterator

from larpo.audit import isolation
from larpo.audit.lineage.code import untrusted
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude, unchecked
from larpo.audit.science import leaks, outputs, policies, retrieval, rewards, sampling, scores, trained_reward, training
from larpo.audit.science.report import report
from larpo.config.params import Params
from larpo.errors import UserError, one_line
from larpo.models.remote_code import EVERY, TOKENIZER
from larpo.registry import OwnCodeError
from larpo.sources.hub import NotFetched

PART = "science"
BEST_OF_N = "picks of best of N"
VECTORS, NEAREST = "vectors are their texts", "nearest passages"
TRAINED, ACCURACY = "the trained reward", "accuracy of the trained reward"
TEXTS = "texts are their tokens"
OUTPUTS = "responses and outputs are their policies'"
REFERENCE, STEP0 = "reference log-probabilities", "losses at step 0"
INHERITED, REACH = "policies beside their weights", "weights within reach of their training"
CHECKS: dict[str, Callable[[AuditedRun, str], Check]] = {
    "no evaluation prompt in training": leaks.prompts_apart,
    "near-duplicates of evaluation prompts": leaks.near_prompts,
    "prompts": sampling.prompts,
    "items": sampling.items,
    "ids": sampling.ids,
    "as many as asked for": sampling.rows,
    TEXTS: sampling.tokens,
    OUTPUTS: outputs.outputs,
    TRAINED: trained_reward.trained,
    ACCURACY: trained_reward.held_out,
    "rewards": rewards.rewards,
    "candidates": training.candidates,
    "lists": training.lists,
    INHERITED: policies.inherited,
    REFERENCE: training.reference,
    STEP0: training.step0,
    REACH: policies.within_reach,
    "scores of raw outputs": scores.outputs_scored,
    "metrics": scores.metrics,
    BEST_OF_N: scores.picked,
    VECTORS: retrieval.vectors,
    NEAREST: retrieval.nearest_passages,
    "report": report,
}
WHERE: dict[str, Callable[[Params], bool]] = {
    BEST_OF_N: lambda params: bool(params.best_of_n),
    TRAINED: lambda params: params.reward.train is not None,
    ACCURACY: lambda params: params.reward.train is not None,
    VECTORS: lambda params: bool(params.retrieval),
    NEAREST: lambda params: bool(params.retrieval),
}
"""Checks of what not every run has."""


def check_science(run: AuditedRun, trusted: bool = False) -> Iterator[Check]:
    """Every check of this part; one that cannot read a table fails with that table's line. `trusted`: code that the
    run's checkpoints bring may run, where its parameters say so."""
    for name in CHECKS:
        if name not in WHERE or WHERE[name](run.params):
            yield check_numbers(run, name, trusted)


def check_numbers(run: AuditedRun, name: str, trusted: bool = False) -> Check:
    """One of CHECKS."""
    folders = weights(run, name)
    if absent := [path for path in folders if path in run.left_out and not (run.folder / path).exists()]:
        return unchecked(PART, name, f"{absent[0]} is not in the pack")
    loads = name not in (INHERITED, REACH)  # those read files and load no model
    with contextlib.chdir(run.folder):
        if loads and (why := untrusted(run, folders, trusted, TOKENIZER if name == TEXTS else EVERY)):
            return unchecked(PART, name, why)
        tried = len(isolation.refused)
        try:
            return CHECKS[name](run, name)
        except OwnCodeError as error:
            return unchecked(PART, name, error.reason)
        except (UserError, OSError) as error:
            if len(isolation.refused) > tried:
                why = f"it needs {isolation.refused[-1]}, and nothing is fetched for a run that is not this project's"
                return unchecked(PART, name, why)
            if isinstance(error, NotFetched):
                return unchecked(PART, name, one_line(error))
            if run.unfinished:
                return unchecked(PART, name, f"{run.unfinished}; {one_line(error)}")
            return conclude(PART, name, 1, "a table or a file cannot be read", [str(error)])
        except Exception as error:  # noqa: BLE001 - the run may have been written by anyone, and other checks go on
            line = f"{type(error).__name__}: {one_line(error)}"
            return conclude(PART, name, 1, "what the run holds does not fit together", [line])


def weights(run: AuditedRun, name: str) -> list[str]:
    """Folders of weights that a check loads: what a pack may leave out."""
    params = run.params
    if name in ("rewards", BEST_OF_N) and params.reward.source is not None:
        return ["data/reward"]
    if name in (TRAINED, ACCURACY):
        return ["data/reward", *([params.reward.start] if name == TRAINED and params.reward.policy else [])]
    if name in (TEXTS, OUTPUTS):
        made = {*(i.previous for i in params.iterations.values()), *params.evaluate.policies}
        return [f"data/policy/{p}" for p in sorted(made)]
    if name in (INHERITED, REACH):
        trained = policies.predecessors(run)
        return [f"data/policy/{p}" for p in sorted({*trained, *trained.values()})]
    if name == REFERENCE:
        return [f"data/policy/{params.reference_policy(s)}" for s in params.iterations]
    return [f"data/policy/{i.previous}" for i in params.iterations.values()] if name == STEP0 else []
