"""Objectives: from the log-probabilities of ranked responses to one loss per list.

    loss = build("listmle", beta=0.1)(ListBatch(policy_logps, reference_logps, lengths, rewards, mask))

One list is the responses to one prompt in falling reward order, y_1 the best. `ranking` holds the paper's
four, `baselines` the methods that it is compared with. Equal rewards state no preference.

A new objective is one function with its value at the reference, and one `@register` line, in one of these
two modules or in a new one that is imported here (docs/objectives.md).
"""

from larpo.objectives import baselines, ranking  # noqa: F401 - importing them registers what they hold
from larpo.objectives.batch import ListBatch
from larpo.objectives.registry import Objective, build, register

__all__ = ["ListBatch", "Objective", "build", "register"]
