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
from larpo.errors import UserError, one_line
from larpo.models.chat import end_tokens
from larpo.models.load import check_tokens, load_model, load_tokenizer
from larpo.models.resolve import Model

LEFT = 0.9
"""Share of rows still going from which on the others leave: to copy a cache costs about a tenth of a step."""
PER_ROW = ("attention_mask", "position_ids")
PROBE = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 2]]
"""Prompts on which decoding is measured; the second is padded."""
TOLERANCE = {"float32": 1e-4, "float16": 1.0, "bfloat16": 1.0}
"""Nats per token. In half precision a mixture of experts is 0.15 from itself: a token close to two takes another."""


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
        tokenizer = load_tokenizer(checkpoint)
        self.checkpoint = checkpoint
        # A checkpoint's own defaults (a repetition penalty, top-k) would change the policy that is sampled:
        # π_β is the model's softmax at our temperature and nothing else.
        self.model.generation_config = GenerationConfig()
        self.ends = end_tokens(checkpoint, tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.ends[0]
        self.dtype = params.dtype
        arguments = inspect.signature(self.model.forward).parameters
        self.positions = "position_ids" in arguments
        self.cache = "cache_params" if "cache_params" in arguments else "past_key_values"  # the first is Mamba's
        self.shared = self._shares()

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
        completions = [self._completion(*row, seed) for row in self._rows(prompts, sampling, seed)]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _rows(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> Iterator[tuple[list[int], list[float]]]:
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
                logits_to_keep=1,
                **{self.cache: cache} | {name: x[:, :-1] for name, x in state.items()},
            )
        if self.shared and length > 1:
            own = DynamicCache(config=self.model.config)
            state |= {"past_key_values": own, "shared": shared_prompt.Prompts.of(cache, mask[:, :-1], sampling.n)}
        else:
            state |= {self.cache: cache, "attention_mask": mask}
            if sampling.n > 1:  # states of layers beyond attention too, which `batch_repeat_interleave` leaves out
                cache.reorder_cache(torch.arange(len(ids), device=self.device).repeat_interleave(sampling.n))
        state |= {name: state[name].repeat_interleave(sampling.n, 0) for name in PER_ROW if name in state}
        last, draw = ids[:, -1:].repeat_interleave(sampling.n, 0), Draw(len(ids) * sampling.n, sampling, seed)
        with shared_prompt.attending(self.model) if "shared" in state else nullcontext():
            return zip(*self._decode(last, {"use_cache": True, **state}, draw, sampling.max_new_tokens), strict=True)

    @torch.inference_mode()
    def _shares(self) -> bool:
        """Whether responses are decoded on one copy of each prompt: where that gives what the model gives in one pass
        over the whole text, measured on a few tokens; else each has a copy, where that does.

        Raises
        ------
        UserError
            Neither does: the model keeps a state that decoding here does not know, or takes padding into it.
        """
        reason, allowed = "", TOLERANCE[self.dtype]
        size = self.model.get_input_embeddings().weight.shape[0]
        probe = [[token % size for token in prompt] for prompt in PROBE]
        for shared in (True, False) if self.positions else (False,):
            self.shared = shared
            try:
                rows = enumerate(self._rows(probe, Sampling(2, 0.0, 3), 0))
                apart = [self._apart(probe[i // 2], self._completion(*row, 0)) for i, row in rows]
            except Exception as error:  # noqa: BLE001 - whatever a model's own code raises where it is called otherwise
                reason = one_line(error)[:120]
                continue
            if not max(apart) > allowed:  # NaN is told where its dtype can be named
                return shared
            reason = f"{max(apart):.2g} nats per token from one pass over the whole text"
        raise UserError(
            f"{self.checkpoint}: {type(self.model).__name__} does not decode here as it computes ({reason}); set "
            "engine.name=vllm, or take another policy.model"
        )

    def _apart(self, prompt: list[int], found: Completion) -> float:
        """|Δ| of a response's summed log-probability from that of one pass over the whole text, per token."""
        ids = torch.tensor([prompt + found.token_ids], device=self.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        exact = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).sum()
        return abs(float(exact) - found.logp) / len(found.token_ids)

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
            if left <= LEFT * len(going) and hasattr(state[self.cache], "reorder_cache"):
                kept = going.nonzero()[:, 0]
                state[self.cache].reorder_cache(kept)
                state |= {name: state[name][kept] for name in PER_ROW if name in state}
                rows, token, going = rows[kept], token[kept], going[kept]
                if "shared" in state:
                    state["shared"].rows = rows
            last = token[:, None]
        return tokens.tolist(), logps.tolist()

    def _completion(self, row: list[int], logps: list[float], seed: int) -> Completion:
        end = next((i + 1 for i, token in enumerate(row) if token in self.ends), None)
        return Completion(row[:end], "length" if end is None else "stop", seed, math.fsum(logps[:end]))
