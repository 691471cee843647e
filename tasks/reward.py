"""Node `reward`: the reward model that `score@s` reads, fetched or trained on preference pairs; or none, for rules.

Killed in the middle of training, it resumes from the last checkpoint in scratch.
"""

from pathlib import Path
from typing import Any

from larpo.config.reward import RewardParams
from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.models.remote_code import settle
from larpo.models.resolve import Checkpoint
from larpo.rewards.accuracy import pair_accuracy, read_check
from larpo.rewards.checkpoint import check_template, fetch_classifier, reward_checkpoint, write_identity
from larpo.sources.pairs import Pair, read_pairs
from larpo.sources.prompts import conversation
from larpo.workspace.files import write_json
from larpo.workspace.progress import say
from tasks.frame.node import Node, command


def main() -> None:
    """Write data/reward: reward.json (identity), and for a model its weights, tokenizer and metrics.json."""
    node = Node("reward")
    params = node.params.reward
    node.seed = seed_of(params.train.seed, "reward") if params.train else None
    with node:
        if params.source is None:
            folder = node.out("reward")
            folder.mkdir(parents=True)
            node.note(reward=write_identity(folder, params, None))
            return
        # Before hours of training: whether the data are there.
        checks = {name: read_check(params, name) for name in params.checks}
        metrics: dict[str, Any] = {}
        folder = node.out("reward")
        start = None if params.policy is None else node.checkpoint("policy")
        checkpoint = node.checkpoints["reward.model"] = reward_checkpoint(params, start, node.scratch)
        check_template(params, checkpoint, [conversation(node.params.prompts, "x")])
        if params.train:
            from larpo.training.determinism import deterministic

            with deterministic(node.seed, "reward.train", params.train.deterministic):
                identity, held_out, counts, dropped = train(node, params, checkpoint, folder)
            made = settle(folder, checkpoint)
            metrics["held_out"] = pair_accuracy(made, params, held_out)
            metrics["dropped"] = dropped
            node.rows(read=sum(counts.values()) + sum(dropped.values()), written=counts["train"], dropped=dropped)
        else:
            made, identity = fetch(params, checkpoint, folder)
        for name, (pairs, dropped) in checks.items():
            metrics.setdefault("checks", {})[name] = pair_accuracy(made, params, pairs) | {"dropped": dropped}
        if metrics:
            write_json(folder / "metrics.json", metrics)
        if "held_out" in metrics:
            say(f"{node.stage}: held-out accuracy {words(metrics['held_out'])}")
        for name, found in metrics.get("checks", {}).items():
            say(f"{node.stage}: {name}: accuracy {words(found)}")
        node.note(reward=identity, **metrics)


def fetch(params: RewardParams, checkpoint: Checkpoint, folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint as it is, in our layout."""
    if params.kind == "pairrm":
        from larpo.rewards.pairrm_model import fetch_pairrm

        model, tokenizer, facts = fetch_pairrm(params, checkpoint)
    else:
        model, tokenizer, facts = fetch_classifier(params, checkpoint, params.dtype, new_head=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = settle(folder, checkpoint)
    return made, write_identity(folder, params, tokenizer, **facts)


def train(
    node: Node, params: RewardParams, checkpoint: Checkpoint, folder: Path
) -> tuple[dict[str, Any], list[Pair], dict[str, int], dict[str, int]]:
    """Fit the model to the training pairs; returns its identity, the held-out pairs and the counts."""
    from larpo.rewards.encoding import Encoder
    from larpo.training.arguments import training_arguments
    from larpo.training.pair_trainer import BradleyTerryTrainer, encode_pairs
    from larpo.training.trainer import StopOnLimits
    from tasks.frame.train import check_commit, run

    settings = params.train
    check_commit()
    args = training_arguments(settings, "reward.train", "pairs", node.scratch / "checkpoints", node.seed)
    pairs, dropped = read_pairs(settings.data, "reward.train.data")
    # Training keeps float32 weights whatever dtype scores are computed in.
    model, tokenizer, facts = fetch_classifier(params, checkpoint, "float32", new_head=True)
    encoder = Encoder(tokenizer, params.max_length, f"params.yaml: reward: {params.source}")
    kept, held_out, too_long, cut = encode_pairs(encoder, pairs, settings.held_out)
    dropped |= {"too_long": too_long} if too_long else {}
    if not kept or not held_out:
        raise UserError(
            f"params.yaml: reward.train.held_out: {settings.held_out:g} leaves {len(kept)} training pairs and "
            f"{len(held_out)} held-out ones; expected some of both"
        )
    say(f"{node.stage}: {len(kept)} training pairs, {len(held_out)} held out, dropped {dropped or 'none'}")
    trainer = BradleyTerryTrainer(
        model, args, kept, tokenizer.pad_token_id, processing_class=tokenizer, callbacks=[StopOnLimits(node.stage)]
    )
    run(node, trainer, folder, folder / "training")
    counts = {"train": len(kept), "held_out": len(held_out)}
    trained = {"data": settings.data.name, **counts, "steps": trainer.state.global_step, "prompts_cut": cut}
    return write_identity(folder, params, tokenizer, trained=trained, **facts), held_out, counts, dropped


def words(found: dict[str, Any]) -> str:
    a = found["accuracy"]
    return (
        f"{100 * a['value']:.1f} % ({100 * a['low']:.1f}–{100 * a['high']:.1f}) on {found['pairs']} pairs; the longer "
        f"response is the better one in {100 * found['longer_is_better']:.1f} %"
    )


if __name__ == "__main__":
    command(main)
