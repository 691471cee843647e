"""What a plan assumes where neither the parameters nor an architecture say it. Every field can be overridden."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from larpo.errors import UserError, nearest

GIB = 2**30


@cache
def listed_prices() -> dict[str, tuple[float, float] | None]:
    """Judge model → US dollars per million prompt and completion tokens, None where nobody knows."""
    raw = yaml.safe_load((Path(__file__).parent / "prices.yaml").read_text("utf-8"))["prices"]
    return {name: None if p is None else (p["input"], p["output"]) for name, p in raw.items()}


@dataclass(frozen=True)
class Assumptions:
    """Constants of the estimates. Token counts were measured with SmolLM2's tokenizer on the data sets named; rates of
    the GPU are its maker's; utilisations are guesses of the usual size and nothing that was measured."""

    gpus: int = 1
    gpu_memory_gib: float = 80.0
    gpu_reserved_gib: float = 2.0  # CUDA context, NCCL buffers, fragmentation
    process_gib: float = 0.0  # of Python and its libraries, where the model lies in host memory

    bf16_flops: float = 989e12  # H100 SXM, dense; A100: 312e12
    fp32_flops: float = 67e12  # H100 SXM without TF32; A100: 19.5e12
    memory_bytes_per_s: float = 3.35e12  # H100 SXM; A100 80 GB: 2.04e12
    host_bytes_per_s: float = 25e9  # between one GPU and host memory, PCIe 4 x16
    train_utilisation: float = 0.4  # of the FLOP/s above
    forward_utilisation: float = 0.5  # prefill, reference log-probabilities, reward models
    decode_utilisation: float = 0.6  # of memory bandwidth, vLLM
    decode_utilisation_transformers: float = 0.15

    prompt_tokens: float = 200  # UltraFeedback: mean 180, and a chat template
    longest_prompt_tokens: int = 1280  # UltraFeedback: 99 % have at most 1,203
    response_tokens: float | None = None  # mean; None: half of max_new_tokens, at most 450
    list_share: float = 1.0  # share of prompts that make a list; 1: an upper bound
    logits_at_once: int = 2**28  # in training, on a GPU; on a CPU 2**27 (larpo/training/forward.py)
    vllm_sequences: int = 256  # max_num_seqs
    vllm_batched_tokens: int = 8192  # max_num_batched_tokens
    characters_per_token: float = 4.4  # of English text; AlpacaEval's outputs: 4.47
    baseline_tokens: float = 459  # mean output of AlpacaEval's gpt4_1106_preview
    judge_reply_tokens: float = 60  # MixEval's model parser, which may use 999
    sft_tokens: float = 400  # prompt and response of a fine-tuning example, and of each half of a preference pair

    items: dict[str, int] = field(
        default_factory=lambda: {
            "gsm8k": 1319,
            "math": 500,
            "alpaca_eval": 805,
            "mixeval": 4000,
            "mixeval_hard": 1000,
            "openai/gsm8k": 7473,
            "HuggingFaceH4/ultrafeedback_binarized": 61135,
            "meta-math/MetaMathQA": 395000,
        }
    )
    """items of a benchmark whose `items` is null; rows of a data set's training split; passages of a retrieval corpus
    by its name in `retrieval`"""
    item_tokens: dict[str, float] = field(
        default_factory=lambda: {"gsm8k": 90, "math": 110, "alpaca_eval": 60, "mixeval": 150, "mixeval_hard": 170}
    )
    """mean prompt: GSM8K 60, MATH 76, AlpacaEval 37, MixEval 120 and 136 measured, and about 30 of a chat template"""
    prices: dict[str, tuple[float, float] | None] = field(default_factory=listed_prices)

    @property
    def usable_bytes(self) -> float:
        """Memory of one GPU that a program gets."""
        return (self.gpu_memory_gib - self.gpu_reserved_gib) * GIB

    def flops(self, dtype: str) -> float:
        return self.fp32_flops if dtype == "float32" else self.bf16_flops

    def mean_response(self, max_new_tokens: int) -> float:
        return (
            min(max_new_tokens / 2, 450) if self.response_tokens is None else min(self.response_tokens, max_new_tokens)
        )

    def override(self, pairs: list[str]) -> Assumptions:
        """A copy with `name=value` pairs applied; `prices.MODEL=IN/OUT` and `items.NAME=N` reach into the tables."""
        values: dict = {}
        known = {f.name: f for f in dataclasses.fields(self)}
        for pair in pairs:
            name, equals, text = pair.partition("=")
            section, _, key = name.partition(".")
            if not equals or section not in known:
                raise UserError(f"larpo plan: --assume {pair!r}: expected NAME=VALUE{nearest(section, list(known))}")
            try:
                if section == "prices":
                    prompt, _, completion = text.partition("/")
                    value = (float(prompt), float(completion))
                else:
                    value = float(text)
            except ValueError:
                raise UserError(f"larpo plan: --assume {pair!r}: expected a number, prices as IN/OUT") from None
            if isinstance(getattr(self, section), dict):
                entry = int(value) if section == "items" else value
                values[section] = values.get(section, getattr(self, section)) | {key: entry}
            else:
                values[section] = int(value) if known[section].type == "int" else value
        return dataclasses.replace(self, **values)
