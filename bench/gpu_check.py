"""Packed training on one GPU, random weights, no network: exactness, the same bytes twice, tokens per second, memory.

    PYTHONPATH=. python bench/gpu_check.py [speed] [exact] [--seconds 230]

Needs torch and transformers only. Prints as it goes; a part that fails says so and the next one runs; what has not
begun after so many seconds is left out.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts

import random
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, LlamaConfig, MistralConfig

from larpo.training.forward import one_at_a_time, token_logps, way_of
from larpo.training.logps import response_logps
from larpo.training.packing import ResponseList, one_per_row, pack

START = time.perf_counter()
SECONDS = float(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 230.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEAK = 989e12  # dense bfloat16 of an H100 or H200, per second


def say(*words: object) -> None:
    print(f"[{time.perf_counter() - START:6.1f}s]", *words, flush=True)


def sync() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def model_of(config, dtype: torch.dtype, layers: int | None = None):
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).train()


def lists_of(n: int, m: int, prompt: int, response: int, vocabulary: int, seed: int = 0) -> list[ResponseList]:
    """Responses of 0.6 to 1.4 times `response` tokens."""
    draw = random.Random(seed)

    def ids(k: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(k)]

    return [
        ResponseList(ids(prompt), [ids(int(response * draw.uniform(0.6, 1.4))) for _ in range(m)]) for _ in range(n)
    ]


def gradients(model, packed, autocast: bool, way) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16) if autocast else nullcontext():
        logps = way(model, packed)
    (logps * torch.linspace(-1, 1, len(logps), device=logps.device)).sum().backward()
    return logps.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def exact() -> None:
    """Four layers, windows of 256 behind prompts of 600: packed against eager one response at a time."""
    small = {"num_hidden_layers": 4, "sliding_window": 256}
    configs = {
        "llama 1024/16/4": lambda: LlamaConfig(
            vocab_size=32000,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=4,
        ),
        "mistral window 256": lambda: MistralConfig(**small),
        "gemma-2 window 256, caps": lambda: Gemma2Config(**small, tie_word_embeddings=False),
        "gpt-oss sinks": lambda: GptOssConfig(
            **small,
            num_local_experts=4,
            num_experts_per_tok=2,
            intermediate_size=1024,
            hidden_size=1024,
            vocab_size=32000,
        ),
    }
    for name, config in configs.items():
        if out_of_time():
            return
        for dtype, autocast in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
            try:
                model = model_of(config(), dtype)
                model.gradient_checkpointing_enable({"use_reentrant": False})
                packed = pack(lists_of(2, 3, *((600, 200) if DEVICE == "cuda" else (30, 10)), 32000)).to(DEVICE)
                with torch.autocast(DEVICE, torch.bfloat16) if autocast else nullcontext():
                    way = way_of(model)
                ours, mine = gradients(model, packed, autocast, token_logps)
                again, twice = gradients(model, packed, autocast, token_logps)
                same = torch.equal(ours, again) and all(torch.equal(mine[n], twice[n]) for n in mine)
                model.set_attn_implementation("eager")
                reference, theirs = gradients(model, packed, autocast, one_at_a_time)
                # How far the authors' attention is from itself where responses are padded rows of one batch.
                model.larpo_way = replace(way, packed=False, implementation="eager")
                padded, _ = gradients(model, packed, autocast, token_logps)
                noise = (padded - reference).abs()
                apart = (ours - reference).abs()
                worst = max(float((mine[n] - g).norm() / (g.norm() + 1e-12)) for n, g in theirs.items())
                kind = f"{str(dtype)[6:]}{' autocast' if autocast else ''}"
                say(
                    f"exact: {name}, {kind}: |Δ| per token max {apart.max():.1e} mean {apart.mean():.1e}, gradients "
                    f"{worst:.1e} of their norm, the same bytes twice {same}; eager in padded rows: "
                    f"max {noise.max():.1e} mean {noise.mean():.1e}; {way}, fused {way.fused}"
                )
                del model, mine, twice, theirs
            except Exception:  # noqa: BLE001 - the next part runs
                say(f"exact: {name}, {dtype}: FAILED", traceback.format_exc(limit=-3))
            torch.cuda.empty_cache()


def out_of_time() -> bool:
    over = time.perf_counter() - START > SECONDS
    if over:
        say("out of time")
    return over


def speed() -> None:
    """Steps of fused AdamW with checkpointing: weights in bfloat16, or in float32 with autocast as the default recipe
    trains; packed, and each response in a padded row. The share of peak counts 6 · parameters · tokens."""
    plans = [
        ("Gemma-2-2B", lambda: Gemma2Config(), torch.float32, "eager"),
        ("Gemma-2-2B", lambda: Gemma2Config(), torch.bfloat16, "eager"),
        ("Mistral-7B", lambda: MistralConfig(sliding_window=4096), torch.bfloat16, "sdpa"),
    ]
    for name, config, dtype, plain in plans:
        if out_of_time():
            return
        try:
            what = f"speed: {name}, {str(dtype)[6:]} weights"
            model = model_of(config(), dtype)
            model.gradient_checkpointing_enable({"use_reentrant": False})
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.float32):
                way = way_of(model)
            say(f"{what}: {model.num_parameters() / 1e9:.2f} G parameters; {way}, fused {way.fused}")
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
            for n, m, deterministic, packs in (
                (8, 4, True, True),
                (4, 8, True, True),
                (8, 4, False, True),
                (8, 4, True, False),
                (4, 8, True, False),
            ):
                if out_of_time():
                    return
                torch.use_deterministic_algorithms(deterministic)
                model.larpo_way = way if packs else replace(way, packed=False, implementation=plain)
                model.set_attn_implementation(model.larpo_way.implementation)
                measure(f"{what}, {n} lists of {m}, deterministic {deterministic}", model, optimizer, n, m)
        except Exception:  # noqa: BLE001 - the next part runs
            say(f"speed: {name}: FAILED", traceback.format_exc(limit=-3))
        model = optimizer = None
        torch.use_deterministic_algorithms(True)
        torch.cuda.empty_cache()


def measure(what: str, model, optimizer, n: int, m: int) -> None:
    packed = pack(lists_of(n, m, 180, 288, 32000)).to(DEVICE)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(4):
        before = sync()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=model.dtype == torch.float32):
            logps, _ = response_logps(model, packed)
        (logps / 1000).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(sync() - before)
    predicted, best = len(packed.targets), sorted(seconds[1:])[1]
    rows = packed.input_ids.shape[1] if model.larpo_way.packed else one_per_row(packed)[0].numel()
    share = 6 * model.num_parameters() * rows / best / PEAK
    shape = "packed" if model.larpo_way.packed else "padded rows"
    say(
        f"{what}, {shape}: {best:.3f} s a step (first {seconds[0]:.1f}), "
        f"{rows / best:,.0f} tokens/s, {predicted / best:,.0f} response tokens/s, {share:.1%} of peak, "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )


if __name__ == "__main__":
    import transformers

    say(torch.__version__, transformers.__version__, torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    chosen = [a for a in sys.argv[1:] if a in ("exact", "speed")] or ["speed", "exact"]
    for part in chosen:
        {"exact": exact, "speed": speed}[part]()
    say("done")
