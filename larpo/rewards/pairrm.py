"""PairRM as a reward: pairwise comparisons of a prompt's candidates, made into one score per candidate.

C[i, j] is the logit of candidate i (in the first place) over candidate j (in the second). The model is not symmetric,
so both orders are compared, as LLM-Blender does.

    full     every ordered pair, k(k − 1) comparisons of k different texts;
             mean_logits (LLM-Blender's own ranking): score_i = Σ_j (C[i, j] − C[j, i]) / k
             wins: score_i = #{j: C[i, j] > 0} + #{j: C[j, i] < 0}
    bubble   `passes` passes of bubble sort; the best gets `passes`, the next one less, whoever was not placed 0
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from larpo.errors import UserError
from larpo.hashing import digest
from larpo.models.resolve import Model
from larpo.rewards.checkpoint import read_identity
from larpo.rewards.encoding import Messages, batches, plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from larpo.rewards.pairrm_model import PairRM

Job = tuple[int, int, int]  # prompt, candidate in the first place, candidate in the second


class Comparer:
    """Compares candidates of many prompts in batches of similar length.

    Parameters
    ----------
    source_max_length
        Tokens of the prompt with its markers; its end is cut, as in LLM-Blender.
    max_length
        Tokens of all three parts. What the prompt leaves is shared equally: with 1224 and 2048 a candidate has at
        least 412. A longer candidate loses its end, as in LLM-Blender; `cut` counts them.
    """

    def __init__(
        self,
        model: PairRM,
        tokenizer: PreTrainedTokenizerBase,
        source_max_length: int,
        max_length: int,
        batch_tokens: int,
    ):
        from larpo.rewards.pairrm_model import CANDIDATE1, CANDIDATE2, SOURCE

        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.source_max_length, self.max_length = source_max_length, max_length
        self.markers = (SOURCE, CANDIDATE1, CANDIDATE2)
        self.first, self.second = (tokenizer.convert_tokens_to_ids(t) for t in (CANDIDATE1, CANDIDATE2))
        # A marker inside a text would be read as the start of a part.
        self.specials = [*self.markers, "<|candidate|>", tokenizer.cls_token, tokenizer.sep_token]
        self.device = next(model.parameters()).device
        self.prompts: list[tuple[list[int], list[list[int]]]] = []
        self.cut = 0

    def add(self, messages: Messages, texts: list[str]) -> int:
        """Register a prompt with its candidates; returns its number."""
        source, _ = self._encode(self.markers[0], plain(messages), self.source_max_length)
        room = (self.max_length - len(source)) // 2
        found = [self._encode(self.markers[1], text, room) for text in texts]
        self.cut += sum(cut for _, cut in found)
        self.prompts.append((source, [ids for ids, _ in found]))
        return len(self.prompts) - 1

    def _encode(self, marker: str, text: str, limit: int) -> tuple[list[int], bool]:
        for special in self.specials:
            text = text.replace(special, " ")
        ids = self.tokenizer(marker + text)["input_ids"]
        # [CLS] marker text [SEP]: the last text tokens go, [SEP] stays.
        return (ids, False) if len(ids) <= limit else ([*ids[: limit - 1], ids[-1]], True)

    @torch.no_grad()
    def compare(self, jobs: list[Job]) -> list[float]:
        """Logit of each job's first candidate over its second."""
        rows, places = [], []
        for prompt, i, j in jobs:
            source, candidates = self.prompts[prompt]
            left = candidates[i]
            right = [self.second if token == self.first else token for token in candidates[j]]
            rows.append(source + left + right)
            places.append([1, len(source) + 1, len(source) + len(left) + 1])
        out = [0.0] * len(jobs)
        for batch in batches([len(r) for r in rows], self.batch_tokens):
            longest = max(len(rows[b]) for b in batch)
            ids = torch.full((len(batch), longest), self.tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for n, b in enumerate(batch):
                ids[n, : len(rows[b])], mask[n, : len(rows[b])] = torch.tensor(rows[b]), 1
            markers = torch.tensor([places[b] for b in batch])
            logits = self.model(ids.to(self.device), mask.to(self.device), markers.to(self.device))
            for b, value in zip(batch, logits.tolist(), strict=True):
                out[b] = value
        return out


def full_scores(matrix: np.ndarray, aggregate: str) -> np.ndarray:
    """(k,) scores of a (k, k) comparison matrix with a zero diagonal; see the module's text."""
    if aggregate == "mean_logits":
        return (matrix - matrix.T).mean(axis=1)
    return ((matrix > 0).sum(axis=1) + (matrix < 0).sum(axis=0)).astype(float)


class PairRMReward:
    """r(x, y) among the prompt's candidates: scores of two prompts do not compare. No verdict on right or wrong."""

    needs_answers = False

    def __init__(
        self,
        folder: Model | None,
        comparisons: Literal["full", "bubble"] = "full",
        aggregate: Literal["mean_logits", "wins"] = "mean_logits",
        passes: int = 1,
        source_max_length: int = 1224,
    ):
        for key, value, known in [
            ("comparisons", comparisons, ("full", "bubble")),
            ("aggregate", aggregate, ("mean_logits", "wins")),
        ]:
            if value not in known:
                raise UserError(f"params.yaml: score.options.{key}: expected {' or '.join(known)}, found {value!r}")
        if passes < 1 or source_max_length < 4:
            raise UserError(
                "params.yaml: score.options: expected passes ≥ 1 and source_max_length ≥ 4, "
                f"found {passes} and {source_max_length}"
            )
        self.folder, self.comparisons, self.aggregate, self.passes = folder, comparisons, aggregate, passes
        self.source_max_length = source_max_length
        self._loaded: tuple[Any, Any, dict[str, Any]] | None = None
        self._cut = 0

    def _load(self) -> tuple[Any, Any, dict[str, Any]]:
        if self._loaded is None:
            from larpo.rewards.pairrm_model import load_pairrm

            identity = read_identity(self.folder, "pairrm")
            if self.source_max_length + 8 > identity["max_length"]:
                raise UserError(
                    f"params.yaml: reward.max_length: {identity['max_length']} tokens leave no room for candidates "
                    f"beside score.options.source_max_length={self.source_max_length}"
                )
            model, tokenizer = load_pairrm(self.folder, identity["dtype"])
            model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            self._loaded = model, tokenizer, identity
        return self._loaded

    def score(
        self,
        messages: list[Messages],
        answers: list[str | None],
        texts: list[str],
        *,
        groups: list[str] | None = None,
        cut: list[bool] | None = None,
    ) -> pd.DataFrame:
        model, tokenizer, identity = self._load()
        comparer = Comparer(model, tokenizer, self.source_max_length, identity["max_length"], identity["batch_tokens"])
        groups = [digest("messages", m) for m in messages] if groups is None else groups
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(groups):
            rows.setdefault(group, []).append(row)
        # Equal texts are one candidate: the same logits, compared once.
        distinct = {group: list(dict.fromkeys(texts[r] for r in members)) for group, members in rows.items()}
        for group, members in rows.items():
            comparer.add(messages[members[0]], distinct[group])
        candidates = list(distinct.values())
        if self.comparisons == "full":
            jobs = [(p, i, j) for p, found in enumerate(candidates) for i, j in permutations(range(len(found)), 2)]
            matrices = [np.zeros((len(found), len(found))) for found in candidates]
            for (p, i, j), logit in zip(jobs, comparer.compare(jobs), strict=True):
                matrices[p][i, j] = logit
        else:
            places = bubble(comparer, candidates, self.passes)
        rewards = np.empty(len(texts))
        for p, (group, members) in enumerate(rows.items()):
            which = [distinct[group].index(texts[r]) for r in members]
            if self.comparisons == "full":
                rewards[members] = full_scores(matrices[p][np.ix_(which, which)], self.aggregate)
            else:
                rewards[members] = np.array(places[p])[which]
        self._cut += comparer.cut
        return pd.DataFrame({"reward": rewards, "correct": pd.Series([None] * len(texts), dtype=object)})

    def taken(self) -> dict[str, int]:
        count, self._cut = self._cut, 0
        return {"candidates_cut": count}

    def facts(self) -> dict[str, Any]:
        ways = {"aggregate": self.aggregate} if self.comparisons == "full" else {"passes": self.passes}
        return {
            "reward": "pairrm",
            **read_identity(self.folder, "pairrm"),
            "comparisons": self.comparisons,
            **ways,
            "source_max_length": self.source_max_length,
        }


def bubble(comparer: Comparer, candidates: list[list[str]], passes: int) -> list[list[float]]:
    """Scores of each prompt's candidates by bubble sort, all prompts in step.

    The starting order is by a hash of the text, so that the order of the rows never decides. A pass carries the best
    of what is left to the top: i stays above j where C[i, j] − C[j, i] ≥ 0.
    """
    orders = [sorted(range(len(found)), key=lambda i, f=found: digest("bubble", f[i])) for found in candidates]
    scores = [[0.0] * len(found) for found in candidates]
    seen: dict[tuple[int, int, int], float] = {}
    for done in range(min(passes, max(map(len, candidates)))):
        for step in range(max(map(len, candidates)) - 1 - done):
            # Candidates in places `step` and `step + 1`, worst first: the better one moves on.
            live = [(p, o[step], o[step + 1]) for p, o in enumerate(orders) if step + 1 < len(o) - done]
            jobs = [job for p, i, j in live for job in ((p, i, j), (p, j, i)) if job not in seen]
            seen |= dict(zip(jobs, comparer.compare(jobs), strict=True))
            for p, i, j in live:
                if seen[p, i, j] - seen[p, j, i] >= 0:
                    orders[p][step], orders[p][step + 1] = j, i
        for p, order in enumerate(orders):
            if len(order) - 1 - done >= 0:
                scores[p][order[len(order) - 1 - done]] = float(passes - done)
    return scores
