"""GPU hours of one node: a forward pass, training, generating."""

from larpo.plan.architectures import BYTES, Architecture
from larpo.plan.assumptions import Assumptions
from larpo.plan.formula import Estimate, Unknown, number
from larpo.plan.memory import Sharding


def forward_flops(arch: Architecture, tokens: float, context: float) -> str:
    """A formula: 2·P·T for the matrices, 4 · layers · heads · head dim · context · T for attention (QKᵀ and AV)."""
    attention = f"4 · {arch.layers} · {arch.heads * arch.head_dim:,} · {number(context)} [attended]"
    return f"{number(tokens)} tokens · (2 · {number(arch.parameters)} + {attention})"


def forward_hours(arch: Architecture, tokens: float, context: float, dtype: str, a: Assumptions) -> Estimate:
    rate = f"({number(a.flops(dtype))} FLOP/s · {number(a.forward_utilisation)})"
    return Estimate("GPU h", f"{forward_flops(arch, tokens, context)} / {rate} / 3,600")


def training_hours(
    arch: Architecture,
    tokens: float,
    context: float,
    *,
    dtype: str,
    checkpointing: bool,
    micro_batches: float,
    sharding: Sharding,
    a: Assumptions,
) -> Estimate:
    """Three forward passes' worth per token (6·P·T), four with recomputation; offloaded weights travel twice to the GPU
    and gradients once back in every micro-batch."""
    passes = 4 if checkpointing or sharding.activation_checkpointing else 3
    rate = f"({number(a.flops(dtype))} FLOP/s · {number(a.train_utilisation)})"
    formula = f"{passes} · {forward_flops(arch, tokens, context)} / {rate} / 3,600"
    if sharding.offload:
        moved = f"{number(micro_batches)} [micro-batches] · 3 · {number(arch.parameters)} · 4 B"
        formula += f" + {moved} / {number(a.host_bytes_per_s)} B/s / 3,600"
    return Estimate("GPU h", formula)


def decoding_hours(
    arch: Architecture,
    *,
    prompts: float,
    prompt_tokens: float,
    new_tokens: float,
    response: float,
    sequences: int,
    dtype: str,
    utilisation: float,
    a: Assumptions,
) -> Estimate:
    """Each step reads the weights once and every running sequence's cache, and gives one token to each; the prompts are
    computed once before (2·P·T). Whatever is slower counts: reading, or computing 2·P per token. GPUs that share the
    model share both, so that their number is not in the GPU hours."""
    if sequences < 1:
        return Unknown("GPU h", "no sequence fits into memory")
    parameters, cache = number(arch.parameters), f"{arch.kv_bytes_per_token(dtype):,} B"
    caches = f"{sequences:,} · ({number(prompt_tokens)} + {number(response)}/2) · {cache}"
    read = f"({parameters} · {BYTES[dtype]} B + {caches})"
    by_memory = f"{read} / {number(a.memory_bytes_per_s)} B/s"
    by_compute = f"2 · {parameters} · {sequences:,} / {number(a.flops(dtype))} FLOP/s"
    steps = f"{number(new_tokens)} tokens / {sequences:,} [at once]"
    prefill = forward_hours(arch, prompts * prompt_tokens, prompt_tokens / 2, dtype, a)
    slower = f"max({by_memory}, {by_compute}) / {number(utilisation)}"
    return Estimate("GPU h", f"{steps} · {slower} / 3,600 + {prefill.formula} [prompts]")
