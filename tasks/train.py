"""Node `train@s`: θ_s ← θ_s − lr · ∇ L_rank over the lists (Algorithm 1, lines 4 and 5).

Killed in the middle, it resumes from the last checkpoint in scratch and ends with the same weights.
"""

import json

from larpo.hashing import seed_of
from larpo.lists.read import check_list_tokens
from larpo.lists.training import read_training_lists
from larpo.models.load import load_model, load_tokenizer
from larpo.objectives import build
from larpo.training.arguments import budget, training_arguments
from larpo.training.changes import share_changed
from larpo.training.determinism import deterministic
from larpo.training.exactness import check_exact
from larpo.training.list_trainer import ListTrainer, check_step0, first_batch_loss, without_noise
from larpo.training.trainer import StopOnLimits
from larpo.workspace.files import write_json
from tasks.frame.files import read_json_part
from tasks.frame.launch import launched
from tasks.frame.node import Node, command
from tasks.frame.train import check_commit, run


def main(iteration: str) -> None:
    """Write data/policy/ITERATION and the training curves in data/train/ITERATION."""
    node = Node("train", iteration)
    params = node.params
    if launched(params.train.launch, "tasks.train", iteration):
        return
    check_commit()
    node.seed = seed_of(params.seed, "train", iteration)
    with node:
        policy, candidates_path = node.checkpoint("policy"), node["candidates"]
        lists = read_training_lists(node["lists"], candidates_path, node["reference"])
        objective = build(params.train.objective, **params.train.objective_options)
        args = training_arguments(params.train, "train", "lists", node.scratch / "checkpoints", node.seed)
        tokenizer = load_tokenizer(policy)
        checks = node.scratch / "step0.json"
        with deterministic(node.seed, "train", params.train.deterministic):
            # As the paper trains: without dropout's noise in the log-ratios.
            model = without_noise(load_model(policy, params.policy.dtype))
            check_list_tokens(model, [entry.tokens for entry in lists], candidates_path)
            if node.leads and read_json_part(checks) is None:
                exact = check_exact(model.to(args.device), [entry.tokens for entry in lists], node.stage, args.bf16)
                loss, expected = first_batch_loss(model, lists[: params.train.checked_lists], objective, args.bf16)
                if params.reference_policy(iteration) == params.iterations[iteration].previous:
                    check_step0(loss, expected, params.training_dtype)
                write_json(checks, exact | {"step0_loss": loss, "step0_expected": expected})
            trainer = ListTrainer(
                model,
                args,
                lists,
                objective,
                budget=budget(params.train, "lists"),
                processing_class=tokenizer,
                callbacks=[StopOnLimits(node.stage)],
            )
            run(node, trainer, weights := node.out("policy"), node.out("train"))
        if not node.leads:
            return
        node.note(**json.loads(checks.read_text()), steps=trainer.state.global_step, lists=len(lists))
        node.note(weights_changed=share_changed(policy, weights))
        node.rows(read=len(lists), written=len(lists))


if __name__ == "__main__":
    command(main)
