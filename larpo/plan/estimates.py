"""Memory, work and time of one node, each number with the formula it came from. All memory is per GPU, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from larpo.plan.architectures import BYTES, Architecture
from larpo.plan.assumptions import GIB, Assumptions


@dataclass(frozen=True)
class Estimate:
    """A number, its unit, and the arithmetic behind it; what stands in brackets is a comment. `value` None: not known,
    and `formula` says why."""

    value: float | None
    unit: str
    formula: str


@dataclass(frozen=True)
class Sharding:
    """How a model lies on GPUs: `none` (a copy on each), `fsdp` (a slice of everything on each), or vLLM's
    `tensor_parallel`."""

    kind: Literal["none", "fsdp", "tensor_parallel"] = "none"
    gpus: int = 1
    offload: bool = False
    activation_checkpointing: bool = False

    def __str__(self) -> str:
        name = {"none": "a copy per GPU" if self.gpus > 1 else "one GPU", "fsdp": f"FSDP over {self.gpus}"}.get(
            self.kind, f"tensor parallel over {self.gpus}"
        )
        return name + (" with CPU offload" if self.offload else "")


OPTIMIZERS = {
    "adamw_torch": "two float32 numbers per parameter",
    "adamw_torch_fused": "two float32 numbers per parameter",
    "adafactor": "a row and a column per matrix",
    "sgd": "nothing",
    "adamw_8bit": "two bytes per parameter; needs bitsandbytes",
    "adamw_bnb_8bit": "two bytes per parameter; needs bitsandbytes",
    "paged_adamw_8bit": "two bytes per parameter; needs bitsandbytes",
}


def number(value: float) -> str:
    """1234567 → 1,234,567; 0.4 → 0.4; 9.89e14 → 9.89e+14."""
    if value != int(value) or abs(value) >= 1e15:
        return f"{value:.4g}"
    return f"{int(value):,}"


def optimizer_bytes(arch: Architecture, optimizer: str, dtype: str) -> tuple[float | None, str]:
    size = BYTES[dtype]
    if optimizer.startswith("adamw_torch"):
        return 2 * size * arch.parameters, f"2 · {number(arch.parameters)} · {size} B [AdamW]"
    if optimizer == "adafactor":
        return (
            size * arch.adafactor_state(),
            f"{number(arch.adafactor_state())} · {size} B [Adafactor: rows, columns]",
        )
    if optimizer == "sgd":
        return 0.0, "0 [SGD keeps nothing]"
    if "8bit" in optimizer:
        return 2 * arch.parameters, f"2 · {number(arch.parameters)} · 1 B [8-bit AdamW]"
    return None, f"unknown optimizer {optimizer!r}; known are {', '.join(OPTIMIZERS)}"


def layer_activations(arch: Architecture) -> tuple[int, str]:
    """Numbers that autograd keeps of one token in one layer, counted in transformers' code: three per norm and channel
    (input, normalised, scaled), four of the attention's width (q, k and v repeated to all heads, output), four of the
    MLP's (gate, its activation, up, product)."""
    norms, width = arch.norms_per_layer, arch.heads * arch.head_dim
    value = 3 * norms * arch.hidden + 4 * width + 4 * arch.intermediate
    return value, f"({3 * norms} · {arch.hidden:,} + 4 · {width:,} + 4 · {arch.intermediate:,})"


def training_memory(
    arch: Architecture,
    *,
    tokens: int,
    predicted: int,
    dtype: str,
    autocast: bool,
    checkpointing: bool,
    optimizer: str,
    sharding: Sharding,
    rows: int = 1,
) -> dict[str, Estimate]:
    """Memory of one GPU at the peak of a step.

    Parameters
    ----------
    tokens, predicted
        N tokens of the packed micro-batch, and the T of them that are predicted (larpo/training/logps.py).
    rows
        Padded rows that the tokens stand in; a packed micro-batch is one.
    dtype
        Of the stored weights; gradients and optimizer state have it too.
    autocast
        Compute in bfloat16. Without FSDP the bfloat16 copies of all weights stay until the backward pass is done; with
        it only those of the layers being computed are there.

    Returns
    -------
    Parts by name; `working` is what is there for a moment: gathered or converted weights, gradients on their way.
    """
    parameters, size = arch.parameters, BYTES[dtype]
    compute = 2 if autocast else size
    fsdp = sharding.kind == "fsdp"
    shards = sharding.gpus if fsdp else 1
    away = sharding.offload
    per = f" / {shards} GPUs" if shards > 1 else ""
    on_host = " · 0 [in host memory]"

    def part(value: float, formula: str) -> Estimate:
        return Estimate(0.0 if away else value / shards, "B", formula + per + (on_host if away else ""))

    state, state_formula = optimizer_bytes(arch, optimizer, dtype)
    out = {
        "weights": part(parameters * size, f"{number(parameters)} · {size} B"),
        "gradients": part(parameters * size, f"{number(parameters)} · {size} B"),
        "optimizer": Estimate(None, "B", state_formula) if state is None else part(state, state_formula),
    }
    biggest = max(arch.layer_parameters, arch.embedding_parameters)
    if fsdp:
        whole = 2 * arch.layer_parameters + arch.embedding_parameters * (1 if arch.tied else 2)
        out["working"] = Estimate(
            whole * compute + biggest * (compute + 4),
            "B",
            f"{number(whole)} · {compute} B [two layers, embedding, head] + {number(biggest)} · ({compute} + 4) B "
            "[a gradient before it is sharded]",
        )
    else:
        twice = 2 if arch.tied else 1
        copies = parameters * 2 if autocast and size > 2 else 0
        out["working"] = Estimate(
            copies + twice * arch.embedding_parameters * size,
            "B",
            (f"{number(parameters)} · 2 B [bfloat16 copies under autocast] + " if copies else "")
            + f"{twice} · {number(arch.embedding_parameters)} · {size} B [the embedding's gradient on its way]",
        )
    each, each_formula = layer_activations(arch)
    checkpointing = checkpointing or sharding.activation_checkpointing
    stream = 2 if fsdp and autocast else size
    if checkpointing:
        layers = arch.layers * arch.hidden * stream + each * compute
        text = f"{tokens:,} tokens · ({arch.layers} layers · {arch.hidden:,} · {stream} B [kept] + {each_formula} · "
        text += f"{compute} B [the layer being recomputed])"
    else:
        layers = arch.layers * each * compute
        text = f"{tokens:,} tokens · {arch.layers} layers · {each_formula} · {compute} B"
    mask = tokens**2 / rows * (size + 4)
    per_row = f" / {rows} rows" if rows > 1 else ""
    out["activations"] = Estimate(tokens * layers + mask, "B", f"{text} + {tokens:,}²{per_row} · ({size} + 4) B [mask]")
    copies, kept = _logit_bytes(arch, compute)
    out["logits"] = Estimate(
        predicted * arch.vocab * copies,
        "B",
        f"{predicted:,} predicted · {arch.vocab:,} · {copies} B [{kept}; two float32 gradients]",
    )
    return out


def _logit_bytes(arch: Architecture, compute: int, gradients: int = 2) -> tuple[int, str]:
    """Bytes per logit: as computed, as float32, two more where a tanh caps them, and the gradients."""
    copies = compute + (4 if compute < 4 else 0) + (2 * compute if arch.softcap else 0) + 4 * gradients
    kept = "as computed" + (", as float32" if compute < 4 else "") + (", capped twice" if arch.softcap else "")
    return copies, kept


RELATIVE_TENSORS = 5  # of (heads, row, row): scores, both relative terms, their sum, one on its way


def forward_memory(arch: Architecture, *, tokens: int, predicted: int, dtype: str, row: int = 0) -> dict[str, Estimate]:
    """Memory of a forward pass without gradients: weights, one layer's tensors, logits; and, where positions are
    relative (DeBERTa), the attention matrices, which its code makes whole, for rows of `row` tokens."""
    size = BYTES[dtype]
    each, each_formula = layer_activations(arch)
    out = {
        "weights": Estimate(arch.parameters * size, "B", f"{number(arch.parameters)} · {size} B"),
        "activations": Estimate(
            tokens * each * size + tokens**2 * (size + 4 if predicted else 0),
            "B",
            f"{tokens:,} tokens · {each_formula} · {size} B [one layer]"
            + (f" + {tokens:,}² · ({size} + 4) B [mask]" if predicted else ""),
        ),
    }
    if arch.relative_positions and row:
        out["attention"] = Estimate(
            RELATIVE_TENSORS * tokens * row * arch.heads * size,
            "B",
            f"{RELATIVE_TENSORS} [scores, relative] · {tokens:,} tokens · {row:,} · {arch.heads} heads · {size} B",
        )
    if predicted:
        copies, kept = _logit_bytes(arch, size, gradients=1)
        out["logits"] = Estimate(
            predicted * arch.vocab * copies,
            "B",
            f"{predicted:,} predicted · {arch.vocab:,} · {copies} B [{kept}; one more for log-sum-exp]",
        )
    return out


def total(memory: dict[str, Estimate]) -> float | None:
    """Sum of the parts; None where one is not known."""
    values = [e.value for e in memory.values()]
    return None if None in values else sum(values)


def gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value / GIB:.1f} GiB"


def forward_flops(arch: Architecture, tokens: float, context: float) -> tuple[float, str]:
    """2·P·T for the matrices and 4 · layers · heads · head dim · context · T for attention (QKᵀ and AV)."""
    per_token = 4 * arch.layers * arch.heads * arch.head_dim * context
    return (
        tokens * (2 * arch.parameters + per_token),
        f"{number(round(tokens))} tokens · (2 · {number(arch.parameters)} + 4 · {arch.layers} · "
        f"{arch.heads * arch.head_dim:,} · {number(round(context))} [attended])",
    )


def forward_hours(arch: Architecture, tokens: float, context: float, dtype: str, a: Assumptions) -> Estimate:
    flops, text = forward_flops(arch, tokens, context)
    rate = a.flops(dtype) * a.forward_utilisation
    return Estimate(
        flops / rate / 3600, "GPU h", f"{text} / ({a.flops(dtype):.3g} FLOP/s · {a.forward_utilisation:g}) / 3,600"
    )


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
    flops, text = forward_flops(arch, tokens, context)
    passes = 4 if checkpointing or sharding.activation_checkpointing else 3
    rate = a.flops(dtype) * a.train_utilisation
    hours = passes * flops / rate / 3600
    formula = f"{passes} · {text} / ({a.flops(dtype):.3g} FLOP/s · {a.train_utilisation:g}) / 3,600"
    if sharding.offload:
        moved = 3 * arch.parameters * 4
        hours += micro_batches * moved / a.host_bytes_per_s / 3600
        formula += (
            f" + {number(round(micro_batches))} [micro-batches] · 3 · {number(arch.parameters)} · 4 B / "
            f"{a.host_bytes_per_s:.3g} B/s / 3,600"
        )
    return Estimate(hours, "GPU h", formula)


@dataclass(frozen=True)
class Decoding:
    """A vLLM or transformers engine on its GPUs: memory, and how many sequences run at once."""

    memory: dict[str, Estimate]
    sequences: int
    capacity_tokens: float


def vllm_engine(
    arch: Architecture,
    *,
    dtype: str,
    context: int,
    wanted: int,
    tensor_parallel: int,
    utilisation: float,
    a: Assumptions,
) -> Decoding:
    """vLLM takes `utilisation` of the GPU: weights first, room for the largest batch, and the rest is KV cache.

    Parameters
    ----------
    context
        Tokens of one sequence at most (prompt and response, or max_model_len).
    wanted
        Sequences that could run at once.
    """
    size, tp = BYTES[dtype], tensor_parallel
    per = f" / {tp} GPUs" if tp > 1 else ""
    weights = arch.parameters * size / tp
    each = 4 * arch.hidden + 2 * arch.intermediate / tp + arch.heads * arch.head_dim / tp
    work = a.vllm_batched_tokens * each * size
    logits = a.vllm_sequences * arch.vocab * 4 * 2
    budget = min(a.gpu_memory_gib * utilisation * GIB, a.usable_bytes)
    pool = budget - weights - work - logits
    one = arch.kv_bytes_per_token(dtype, tp)
    capacity = max(pool, 0.0) / one
    running = int(max(0, min(wanted, a.vllm_sequences, capacity // context)))
    memory = {
        "weights": Estimate(weights, "B", f"{number(arch.parameters)} · {size} B{per}"),
        "activations": Estimate(
            work,
            "B",
            f"{a.vllm_batched_tokens:,} [max_num_batched_tokens] · (4 · {arch.hidden:,} + (2 · {arch.intermediate:,} + "
            f"{arch.heads * arch.head_dim:,}){per}) · {size} B",
        ),
        "logits": Estimate(logits, "B", f"{a.vllm_sequences} [max_num_seqs] · {arch.vocab:,} · 2 · 4 B"),
        "kv_cache": Estimate(
            max(pool, 0.0),
            "B",
            f"min({a.gpu_memory_gib:g} · {utilisation:g}, {a.gpu_memory_gib:g} − {a.gpu_reserved_gib:g}) · {GIB:,} B − "
            f"{number(round(weights))} − {number(round(work))} − {number(round(logits))} [{capacity:,.0f} tokens of "
            f"2 · {arch.layers} · {-(-arch.kv_heads // tp)} kv heads · {arch.head_dim} · {size} = {one:,} B]",
        ),
    }
    return Decoding(memory, running, capacity)


def transformers_engine(arch: Architecture, *, dtype: str, context: int, sequences: int) -> Decoding:
    """The embedded engine on one GPU: every sequence of a batch has a cache as long as the longest."""
    size, one = BYTES[dtype], arch.kv_bytes_per_token(dtype)
    memory = {
        "weights": Estimate(arch.parameters * size, "B", f"{number(arch.parameters)} · {size} B"),
        "logits": Estimate(
            sequences * arch.vocab * (size + 8),
            "B",
            f"{sequences:,} sequences · {arch.vocab:,} · ({size} + 4 + 4) B [scores, probabilities, their sums]",
        ),
        "kv_cache": Estimate(
            sequences * context * one,
            "B",
            f"{sequences:,} sequences · {context:,} tokens · 2 · {arch.layers} · {arch.kv_heads} [kv heads] · "
            f"{arch.head_dim} · {size} B",
        ),
    }
    return Decoding(memory, sequences, sequences * context)


def decoding_hours(
    arch: Architecture,
    *,
    prompts: float,
    prompt_tokens: float,
    new_tokens: float,
    response: float,
    sequences: int,
    dtype: str,
    gpus: int,
    utilisation: float,
    a: Assumptions,
) -> Estimate:
    """Each step reads the weights once and every running sequence's cache, and gives one token to each; the prompts are
    computed once before (2·P·T). Whatever is slower counts: reading, or computing 2·P per token."""
    if sequences < 1:
        return Estimate(None, "GPU h", "no sequence fits into memory")
    size = BYTES[dtype]
    read = arch.parameters * size + sequences * (prompt_tokens + response / 2) * arch.kv_bytes_per_token(dtype)
    by_memory = read / (a.memory_bytes_per_s * utilisation * gpus)
    by_compute = 2 * arch.parameters * sequences / (a.flops(dtype) * a.forward_utilisation * gpus)
    steps = new_tokens / sequences
    prefill = forward_hours(arch, prompts * prompt_tokens, prompt_tokens / 2, dtype, a)
    return Estimate(
        steps * max(by_memory, by_compute) * gpus / 3600 + prefill.value,
        "GPU h",
        f"{number(round(new_tokens))} tokens / {sequences:,} [at once] · max(({number(arch.parameters)} · {size} B + "
        f"{sequences:,} · ({prompt_tokens:g} + {response:g}/2) · {arch.kv_bytes_per_token(dtype):,} B) / "
        f"({a.memory_bytes_per_s:.3g} B/s · {utilisation:g}), 2 · {number(arch.parameters)} · {sequences:,} / "
        f"({a.flops(dtype):.3g} FLOP/s · {a.forward_utilisation:g})) / 3,600 + {prefill.formula} [prompts]",
    )
