"""The embedded engine: `transformers` generation on any machine."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from larpo.checkpoints import end_tokens, load_model, load_tokenizer
from larpo.engines import Completion, Sampling
from larpo.params import EngineParams


class TransformersEngine:
    """Prompts are computed once and their cache is shared by the n responses of each: with short
    responses most of the work would otherwise be the same prompt n times over."""

    def __init__(self, checkpoint: str, params: EngineParams, seed: int):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(checkpoint, params.dtype, **params.options).to(self.device).eval()
        tokenizer = load_tokenizer(checkpoint)
        # A checkpoint's own defaults (a repetition penalty, top-k) would change the policy that is sampled:
        # π_β is the model's softmax at our temperature and nothing else.
        self.model.generation_config = GenerationConfig()
        self.ends = end_tokens(checkpoint, tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.ends[0]
        self.dtype = params.dtype

    def facts(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "device": self.device,
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "attention": self.model.config._attn_implementation,
        }

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See `larpo.engines.Engine`. One seed drives the whole batch: the batch is part of the recipe."""
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), self.pad, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[row, length - len(prompt) :] = 1

        cache = DynamicCache(config=self.model.config)
        if length > 1:
            # Left padding needs explicit positions: a row's first real token is position 0.
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            self.model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions[:, :-1],
                past_key_values=cache,
                logits_to_keep=1,
            )
        if sampling.n > 1:
            cache.batch_repeat_interleave(sampling.n)
            ids, mask = ids.repeat_interleave(sampling.n, 0), mask.repeat_interleave(sampling.n, 0)
        if sampling.temperature > 0:
            # top_k=0 switches off the library's default of 50, which no parameter of ours asked for.
            how = {
                "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0,
            }  # fmt: skip
        else:
            how = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        torch.manual_seed(seed)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
            **how,
        )[:, length:]
        completions = [self._completion(row, seed) for row in out.tolist()]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _completion(self, row: list[int], seed: int) -> Completion:
        # The pad token may be the end token, so the first end token is the end of the response.
        end = next((i for i, token in enumerate(row) if token in self.ends), None)
        return Completion(row, "length", seed) if end is None else Completion(row[: end + 1], "stop", seed)
