"""The embedded engine: `transformers` generation on any machine."""

import inspect
import math
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from larpo.config.sections import EngineParams
from larpo.engines import Completion, Sampling
from larpo.models.chat import end_tokens
from larpo.models.load import check_tokens, load_model, load_tokenizer
from larpo.models.resolve import Model


class Draw(LogitsProcessor):
    """Draws each row's next token, leaves it as the only one possible and keeps its log-probability.

    Inverse transform sampling: one uniform number per token, found in the cumulated probabilities. `generate`
    itself draws an exponential number for every entry of the vocabulary, which took a quarter of the time.
    """

    def __init__(self, rows: int, sampling: Sampling, seed: int, prompt_length: int):
        self.logps: list[torch.Tensor] = []  # (rows,) float32 per step, of the logits as they are
        self.prompt_length, self.greedy = prompt_length, sampling.temperature == 0
        if not self.greedy:
            size = sampling.max_new_tokens, rows, 1
            self.uniform = torch.rand(size, generator=torch.Generator().manual_seed(seed))
            self.warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
            self.warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, tokens so far), (rows, vocabulary) logits → (rows, vocabulary): 0 at the token, -inf elsewhere."""
        token = scores.argmax(-1, keepdim=True) if self.greedy else self.drawn(input_ids, scores)
        self.logps.append(scores.float().gather(1, token)[:, 0] - scores.float().logsumexp(-1))
        return scores.fill_(-torch.inf).scatter_(1, token, 0.0)

    def drawn(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, 1) tokens of softmax(scores / temperature), cut to top_p."""
        total = self.warpers(input_ids, scores).float().softmax(-1).cumsum_(-1)
        last = total[:, -1:]  # 1 but for rounding
        point = self.uniform[input_ids.shape[1] - self.prompt_length].to(total.device) * last
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
        check_tokens(self.model, prompts, str(self.checkpoint))
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), self.pad, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[row, length - len(prompt) :] = 1

        cache = DynamicCache(config=self.model.config)
        if length > 1:
            # Left padding needs explicit positions: a row's first real token is position 0.
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, :-1]
            # `generate` goes on with them only where the forward pass names them: prompt and response must agree.
            named = "position_ids" in inspect.signature(self.model.forward).parameters
            self.model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                past_key_values=cache,
                logits_to_keep=1,
                **({"position_ids": positions} if named else {}),
            )
        if sampling.n > 1:
            cache.batch_repeat_interleave(sampling.n)
            ids, mask = ids.repeat_interleave(sampling.n, 0), mask.repeat_interleave(sampling.n, 0)
        draw = Draw(len(ids), sampling, seed, length)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
            do_sample=False,  # `Draw` has drawn already
            logits_processor=LogitsProcessorList([draw]),
        )[:, length:]
        logps = torch.stack(draw.logps, 1).tolist()
        completions = [self._completion(*row, seed) for row in zip(out.tolist(), logps, strict=True)]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _completion(self, row: list[int], logps: list[float], seed: int) -> Completion:
        # The pad token may be the end token, so the first end token is the end of the response.
        end = next((i + 1 for i, token in enumerate(row) if token in self.ends), None)
        return Completion(row[:end], "length" if end is None else "stop", seed, math.fsum(logps[:end]))
