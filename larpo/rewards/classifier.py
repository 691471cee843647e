"""Sequence-classification reward models with one logit: FsfairX-LLaMA3-RM-v0.1 and its kind, encoders too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from larpo.errors import UserError
from larpo.models.resolve import Model
from larpo.rewards.checkpoint import load_classifier, read_identity
from larpo.rewards.encoding import Encoded, Encoder, batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sequence_scores(model: PreTrainedModel, batch: list[Encoded], pad: int) -> Tensor:
    """(B,) float32 scores of encoded sequences, padded on the right; gradients flow.

    A decoder's head reads the last token that is not padding, by comparing ids: with pad = eos it would read the
    wrong one. So the padding is a token that stands nowhere in the batch; causal attention keeps it from mattering.
    """
    decoder = hasattr(model, "score")
    if decoder:
        used = {token for e in batch for token in e.ids}
        pad = next(i for i in range(len(used) + 1) if i not in used)
    device = next(model.parameters()).device
    longest = max(len(e.ids) for e in batch)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows], device=device)

    inputs = {
        "input_ids": padded([e.ids for e in batch], pad),
        "attention_mask": padded([[1] * len(e.ids) for e in batch], 0),
    }
    if batch[0].type_ids is not None:
        inputs["token_type_ids"] = padded([e.type_ids for e in batch], 0)
    if not decoder:
        return model(**inputs).logits[:, 0].float()
    config = getattr(model, "module", model).config.get_text_config()
    before, config.pad_token_id = config.pad_token_id, pad
    try:
        return model(**inputs, use_cache=False).logits[:, 0].float()
    finally:
        config.pad_token_id = before


class SequenceClassification:
    """r(x, y) is the model's logit for the whole conversation. No verdict on right and wrong."""

    needs_answers = False

    def __init__(self, folder: Model | None):
        self.folder = folder
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]] | None = None
        self._cut = 0

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
        if self._loaded is None:
            identity = read_identity(self.folder, "sequence_classification")
            model, tokenizer = load_classifier(self.folder, identity["dtype"])
            if hasattr(model, "score") and model.dtype != torch.float32:
                # The last step in float32: near 4, neighbouring bfloat16 numbers are 0.03 apart, and scores would tie.
                model.score.float()
                model.score.register_forward_pre_hook(lambda module, args: (args[0].float(),))
            model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            self._loaded = model, tokenizer, identity
        return self._loaded

    def fits(self, messages: list[dict[str, str]], text: str) -> bool:
        """Whether the response is within the model's length."""
        _, tokenizer, identity = self._load()
        return not Encoder(tokenizer, identity["max_length"])(messages, text).excess

    @torch.no_grad()
    def score(
        self,
        messages: list[list[dict[str, str]]],
        answers: list[str | None],
        texts: list[str],
        *,
        groups: list[str] | None = None,
        cut: list[bool] | None = None,
    ) -> pd.DataFrame:
        model, tokenizer, identity = self._load()
        encoder = Encoder(tokenizer, identity["max_length"], str(self.folder))
        encoded = [encoder(m, t) for m, t in zip(messages, texts, strict=True)]
        for e in encoded:
            if e.excess:
                raise UserError(
                    f"params.yaml: reward.max_length: {identity['max_length']} tokens do not hold a response of "
                    f"{len(e.ids)}; a response is never cut: raise reward.max_length or lower sample.max_new_tokens"
                )
        self._cut += sum(e.cut > 0 for e in encoded)
        # Small models repeat themselves; equal sequences have equal scores.
        keys = [(*e.ids, -1, *(e.type_ids or ())) for e in encoded]
        place = {key: i for i, key in reversed(list(enumerate(keys)))}
        distinct = [encoded[i] for i in sorted(place.values())]
        position = {keys[i]: n for n, i in enumerate(sorted(place.values()))}
        values = torch.empty(len(distinct))
        for batch in batches([len(e.ids) for e in distinct], identity["batch_tokens"]):
            found = sequence_scores(model, [distinct[i] for i in batch], tokenizer.pad_token_id or 0)
            values[batch] = found.cpu()
        rewards = [float(values[position[key]]) for key in keys]
        return pd.DataFrame({"reward": rewards, "correct": pd.Series([None] * len(rewards), dtype=object)})

    def taken(self) -> dict[str, int]:
        count, self._cut = self._cut, 0
        return {"prompts_cut": count}

    def facts(self) -> dict[str, Any]:
        return {"reward": "sequence_classification", **read_identity(self.folder, "sequence_classification")}
