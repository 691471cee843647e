"""What a run will need, computed before anything is fetched: memory, tokens, GPU hours, judges, and whether it fits.

    plan = build_plan(load_params("params.yaml"), Assumptions(gpus=8))
    print(render_plan(plan))
    plan.failed        # lines; empty where everything fits together

Nothing here loads weights or asks a network. Every number is an `Estimate`, what its printed formula gives.
"""

from larpo.plan.assumptions import Assumptions
from larpo.plan.formula import Estimate
from larpo.plan.launch import load_with
from larpo.plan.memory import Sharding
from larpo.plan.planner import build_plan
from larpo.plan.plans import Check, JudgeCalls, NodePlan, Plan
from larpo.plan.render import render_plan, to_json

__all__ = [
    "Assumptions",
    "Check",
    "Estimate",
    "JudgeCalls",
    "NodePlan",
    "Plan",
    "Sharding",
    "build_plan",
    "load_with",
    "render_plan",
    "to_json",
]
