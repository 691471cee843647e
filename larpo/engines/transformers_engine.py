"""The embedded engine: `transformers` generation on any machine."""

import inspect
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, TopPLogitsWarper

from larpo.config.sections import EngineParams
from larpo.engines import Completion, Sampling, shared_prompt
from larpo.models.chat import end_tokens
from larpo.models.load import check_tokens, load_model, load_tokenizer
from larpo.models.resolve import Model

LEFT = 0.9
"""Share of rows still going from which on the others leave: to copy a cache costs about a tenth of a step."""
PER_ROW = ("attention_mask", "position_ids")


class Draw:
    """Draws the next token of each row and its log-probability.

    Inverse transform sampling: one uniform number per token, found in the cumulated probabilities. Every row has its
    numbers from the start, so that what it draws does not depend on which rows are left.
    """

    def __init__(self, rows: int, sampling: Sampling, seed: int):
        self.temperature, self.top_p = sampling.temperature, TopPLogitsWarper(sampling.top_p)
        if self.temperature:
            size = sampling.max_new_tokens, rows, 1
            self.uniform = torch.rand(size, generator=torch.Generator().manual_seed(seed))

    def __call__(self, step: int, rows: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,) tokens of softmax(logits / temperature), cut to top_p, and (R,) log-probabilities of the logits as they
        are, for the (R, vocabulary) float32 `logits` of (R,) `rows`."""
        normaliser = logits.logsumexp(-1)
        token = self._drawn(step, rows, logits) if self.temperature else logits.argmax(-1, keepdim=True)
        return token[:, 0], logits.gather(1, token)[:, 0] - normaliser

    def _drawn(self, step: int, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        scores = logits / self.temperature
        if self.top_p.top_p < 1:
            scores = self.top_p(None, scores)
        total = scores.softmax(-1).cumsum_(-1)
        last = total[:, -1:]  # 1 but for rounding
        point = self.uniform[step, rows.cpu()].to(total.device) * last
        # Strictly below the last sum, the first sum above the point is that of a token with a probability above 0.
        return torch.searchsorted(total, point.minimum(last.nextafter(torch.zeros_like(last))), right=True)


class TransformersEngine:
    """Prompts are computed once and their cache is shared by the n responses of each: with short
    responses most of the work would otherwise be the same prompt n times over."""

    def __init__(self, checkpoint: Model, params: EngineParams, seed: int):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(checkpoint, params.dtype, **params.options).to(self.device).eval()
        capped = getattr(self.model.config.get_text_config(), "attn_logit_softcapping", None) is not None
        if capped and "attn_implementation" not in params.options:
            self.model.set_attn_implementation("eager")  # the library's default, SDPA, leaves the cap out
        tokenizer = load_tokenizer(checkpoint)
        self.checkpoint = checkpoint
        # A checkpoint's own defaults (a repetition penalty, top-k) would change the policy that is sampled:
        # π_β is the model's softmax at our temperature and nothing else.
        self.model.generation_config = GenerationConfig()
        self.ends = end_tokens(checkpoint, tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.ends[0]
        self.dtype = params.dtype
        self.positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self.shared = self.positions and self._shares()

    def facts(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "device": self.device,
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "attention": self.model.config._attn_implementation,
            "shared_prompts": self.shared,
        }

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See `larpo.engines.Engine`. One seed drives the whole batch: the batch is part of the recipe."""
        check_tokens(self.model, prompts, str(self.checkpoint))
        completions = [self._completion(*row, seed) for row in self._rows(prompts, sampling, seed, self.shared)]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _rows(
        self, prompts: list[list[int]], sampling: Sampling, seed: int, shared: bool
    ) -> Iterator[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities of n rows per prompt, what comes after their end included."""
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), self.pad, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[row, length - len(prompt) :] = 1
        # Left padding needs explicit positions: a row's first real token is position 0. Given to prompt and response
        # alike, or to neither.
        state: dict[str, Any] = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if self.positions else {}
        cache = DynamicCache(config=self.model.config)
        if length > 1:
            self.model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                past_key_values=cache,
                logits_to_keep=1,
                **{name: x[:, :-1] for name, x in state.items()},
            )
        if shared and length > 1:
            own = DynamicCache(config=self.model.config)
            state |= {"past_key_values": own, "shared": shared_prompt.Prompts.of(cache, mask[:, :-1], sampling.n)}
        else:
            state |= {"past_key_values": cache, "attention_mask": mask}
            if sampling.n > 1:
                cache.batch_repeat_interleave(sampling.n)
        state |= {name: state[name].repeat_interleave(sampling.n, 0) for name in PER_ROW if name in state}
        last, draw = ids[:, -1:].repeat_interleave(sampling.n, 0), Draw(len(ids) * sampling.n, sampling, seed)
        with shared_prompt.attending(self.model) if "shared" in state else nullcontext():
            return zip(*self._decode(last, {"use_cache": True, **state}, draw, sampling.max_new_tokens), strict=True)

    @torch.inference_mode()
    def _shares(self) -> bool:
        """Whether decoding on one copy of each prompt is what this model computes: measured on a few tokens."""
        prompts, few = [[1, 2, 3, 4, 5], [3, 2]], Sampling(2, 0.0, 2)
        try:
            (tokens, logps), (usual, expected) = (
                zip(*self._rows(prompts, few, 0, how), strict=True) for how in (True, False)
            )
        except Exception:  # noqa: BLE001 - whatever a model's own code raises where it is called in another way
            return False
        tolerance = 1e-4 if self.dtype == "float32" else 0.1
        apart = (torch.tensor(logps) - torch.tensor(expected)).abs().max()
        return tokens == usual and bool(apart < tolerance)

    def _decode(
        self, last: torch.Tensor, state: dict[str, Any], draw: Draw, limit: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Up to `limit` tokens for each of the R rows whose cache is in `state`, and their log-probabilities.

        Rows that have ended leave the batch, at steps that the tokens alone decide: the same batch is the same shapes.
        """
        ends = torch.tensor(self.ends, device=last.device)
        rows = torch.arange(len(last), device=last.device)
        tokens = torch.full((len(last), limit), self.ends[0], device=last.device)
        logps = torch.zeros((len(last), limit), device=last.device)
        going = torch.ones(len(last), dtype=torch.bool, device=last.device)
        for step in range(limit):
            inputs = self.model.prepare_inputs_for_generation(last, next_sequence_length=1, **state)
            outputs = self.model(**inputs, return_dict=True)
            token, logp = draw(step, rows, outputs.logits[:, -1].float())
            tokens[rows[going], step], logps[rows[going], step] = token[going], logp[going]
            going &= ~torch.isin(token, ends)
            left = int(going.sum())
            if not left or step + 1 == limit:
                break
            state = self.model._update_model_kwargs_for_generation(outputs, state)
            if left <= LEFT * len(going) and hasattr(state["past_key_values"], "batch_select_indices"):
                kept = going.nonzero()[:, 0]
                state["past_key_values"].batch_select_indices(kept)
                state |= {name: state[name][kept] for name in PER_ROW if name in state}
                rows, token, going = rows[kept], token[kept], going[kept]
                if "shared" in state:
                    state["shared"].rows = rows
            last = token[:, None]
        return tokens.tolist(), logps.tolist()

    def _completion(self, row: list[int], logps: list[float], seed: int) -> Completion:
        end = next((i + 1 for i, token in enumerate(row) if token in self.ends), None)
        return Completion(row[:end], "length" if end is None else "stop", seed, math.fsum(logps[:end]))
