"""The lists that an iteration trains on, with their rewards and reference log-probabilities."""

from larpo import tables
from larpo.errors import UserError
from larpo.lists.read import mismatched_responses, read_lists, response_lists
from larpo.training.list_trainer import TrainingList


def read_training_lists(lists_path: str, candidates_path: str, reference_path: str) -> list[TrainingList]:
    """Lists with rewards and reference log-probabilities; refuses missing and mismatched reference rows."""
    frame = read_lists(lists_path, candidates_path)
    reference = tables.read("reference", reference_path)
    joined = frame.merge(reference, on=["prompt_id", "response_id"], how="left", validate="many_to_one")
    missing = joined["reference_logp"].isna().to_numpy()
    if missing.any():
        raise UserError(
            f"{reference_path}: no row for response {joined['response_id'][int(missing.argmax())]} and "
            f"{int(missing.sum()) - 1} others of {lists_path}; run `dvc repro --force` on the reference node"
        )
    other = (joined["n_tokens"] != joined["token_ids"].map(len)).to_numpy()
    if other.any():
        raise UserError(
            f"{reference_path}: response {joined['response_id'][int(other.argmax())]} has another length than in "
            f"{candidates_path}; run `dvc repro --force` on the reference node"
        )
    lists = response_lists(frame)
    firsts = joined.drop_duplicates("prompt_id")
    mismatched: list[tuple[list[int], float] | None] = [None] * len(lists)
    if (given := firsts["mismatched_logp"].notna().to_numpy()).any():
        if not given.all():
            raise UserError(
                f"{reference_path}: response {firsts['response_id'].iloc[int(given.argmin())]} has no mismatched_logp, "
                "other lists' first responses have; run `dvc repro --force` on the reference node"
            )
        mismatched = list(zip(mismatched_responses(lists, lists_path), firsts["mismatched_logp"], strict=True))
    groups = joined.groupby("prompt_id", sort=False)
    return [
        TrainingList(tokens, group["reward"].tolist(), group["reference_logp"].tolist(), other)
        for tokens, other, (_, group) in zip(lists, mismatched, groups, strict=True)
    ]
