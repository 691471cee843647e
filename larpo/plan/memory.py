"""Memory of one GPU, in bytes: training, forward passes, engines that generate."""

from dataclasses import dataclass
from typing import Literal

from larpo.plan.architectures import BYTES, Architecture
from larpo.plan.assumptions import Assumptions
from larpo.plan.formula import GIB, Estimate, Unknown, number

Memory = dict[str, Estimate]
RELATIVE_TENSORS = 5  # of (heads, row, row): scores, both relative terms, their sum, one on its way
OPTIMIZERS = {
    "adamw_torch": "2 · {parameters} · {size} B [AdamW]",
    "adamw_torch_fused": "2 · {parameters} · {size} B [AdamW]",
    "adafactor": "{rows_and_columns} · {size} B [Adafactor: rows, columns]",
    "sgd": "0 [SGD keeps nothing]",
    "adamw_8bit": "2 · {parameters} · 1 B [8-bit AdamW; needs bitsandbytes]",
    "adamw_bnb_8bit": "2 · {parameters} · 1 B [8-bit AdamW; needs bitsandbytes]",
    "paged_adamw_8bit": "2 · {parameters} · 1 B [8-bit AdamW; needs bitsandbytes]",
}


@dataclass(frozen=True)
class Sharding:
    """How a model lies on GPUs: `none` (a copy on each), `fsdp` (a slice of everything on each), or vLLM's
    `tensor_parallel`."""

    kind: Literal["none", "fsdp", "tensor_parallel"] = "none"
    gpus: int = 1
    offload: bool = False
    activation_checkpointing: bool = False

    def __str__(self) -> str:
        names = {"fsdp": f"FSDP over {self.gpus}", "tensor_parallel": f"tensor parallel over {self.gpus}"}
        name = names.get(self.kind, "a copy per GPU" if self.gpus > 1 else "one GPU")
        return name + (" with CPU offload" if self.offload else "")


def layer_activations(arch: Architecture) -> str:
    """Numbers that autograd keeps of one token in one layer, counted in transformers' code: three per norm and channel
    (input, normalised, scaled), four of the attention's width (q, k and v repeated to all heads, output), four of the
    MLP's (gate, its activation, up, product). Left out: keys and values of the prompt once more for each of its
    responses (larpo/training/attention.py), 9 % for lists of four responses of 400 tokens behind a prompt of 512."""
    width = arch.heads * arch.head_dim
    return f"({3 * arch.norms_per_layer} · {arch.hidden:,} + 4 · {width:,} + 4 · {arch.intermediate:,})"


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
) -> Memory:
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
    size, parameters = BYTES[dtype], number(arch.parameters)
    compute = 2 if autocast else size
    fsdp = sharding.kind == "fsdp"
    per = f" / {sharding.gpus} GPUs" if fsdp and sharding.gpus > 1 else ""
    per += " · 0 [in host memory]" if sharding.offload else ""
    out = {name: Estimate("B", f"{parameters} · {size} B{per}") for name in ("weights", "gradients")}
    if optimizer in OPTIMIZERS:
        state = OPTIMIZERS[optimizer].format(
            parameters=parameters, size=size, rows_and_columns=number(arch.adafactor_state())
        )
        out["optimizer"] = Estimate("B", state + per)
    else:
        out["optimizer"] = Unknown("B", f"unknown optimizer {optimizer!r}; known are {', '.join(OPTIMIZERS)}")
    embedding, matrices = arch.embedding_parameters, 1 if arch.tied else 2
    if fsdp:
        working = f"{number(2 * arch.layer_parameters + matrices * embedding)} · {compute} B [two layers, embedding, "
        working += f"head] + {number(max(arch.layer_parameters, embedding))} · ({compute} + 4) B "
        working += "[a gradient before it is sharded]"
    else:
        copies = f"{parameters} · 2 B [bfloat16 copies under autocast] + " if autocast and size > 2 else ""
        working = f"{copies}{3 - matrices} · {number(embedding)} · {size} B [the embedding's gradient on its way]"
    out["working"] = Estimate("B", working)
    each = layer_activations(arch)
    if checkpointing or sharding.activation_checkpointing:
        stream = 2 if fsdp and autocast else size
        layers = f"({arch.layers} layers · {arch.hidden:,} · {stream} B [kept] + {each} · {compute} B [the layer being "
        layers += "recomputed])"
    else:
        layers = f"{arch.layers} layers · {each} · {compute} B"
    mask = _mask(tokens, size, f" / {rows} rows" if rows > 1 else "")
    out["activations"] = Estimate("B", f"{tokens:,} tokens · {layers} + {mask}")
    return out | {"logits": _logits(arch, predicted, compute, "two float32 gradients", 2)}


def _mask(tokens: int, size: int, per_row: str = "") -> str:
    return f"{tokens:,}²{per_row} · ({size} + 4) B [mask]"


def _logits(arch: Architecture, predicted: int, compute: int, more: str, gradients: int) -> Estimate:
    """As computed, as float32, two more where a tanh caps them, and the gradients."""
    each = compute + (4 if compute < 4 else 0) + (2 * compute if arch.softcap else 0) + 4 * gradients
    kept = "as computed" + (", as float32" if compute < 4 else "") + (", capped twice" if arch.softcap else "")
    return Estimate("B", f"{predicted:,} predicted · {arch.vocab:,} · {each} B [{kept}; {more}]")


def _weights(arch: Architecture, size: int, per: str = "") -> Estimate:
    return Estimate("B", f"{number(arch.parameters)} · {size} B{per}")


def forward_memory(arch: Architecture, *, tokens: int, predicted: int, dtype: str, row: int = 0) -> Memory:
    """Memory of a forward pass without gradients: weights, one layer's tensors, logits; and, where positions are
    relative (DeBERTa), the attention matrices, which its code makes whole, for rows of `row` tokens."""
    size = BYTES[dtype]
    layer = f"{tokens:,} tokens · {layer_activations(arch)} · {size} B [one layer]"
    out = {"weights": _weights(arch, size)}
    out["activations"] = Estimate("B", f"{layer} + {_mask(tokens, size)}" if predicted else layer)
    if arch.relative_positions and row:
        matrices = f"{RELATIVE_TENSORS} [scores, relative] · {tokens:,} tokens · {row:,}"
        out["attention"] = Estimate("B", f"{matrices} · {arch.heads} heads · {size} B")
    if predicted:
        out["logits"] = _logits(arch, predicted, size, "one more for log-sum-exp", 1)
    return out


@dataclass(frozen=True)
class Engine:
    """A vLLM or transformers engine on its GPUs: memory, and how many sequences run at once."""

    memory: Memory
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
) -> Engine:
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
    width = f"(2 · {arch.intermediate:,} + {arch.heads * arch.head_dim:,}){per}"
    batch = f"{a.vllm_batched_tokens:,} [max_num_batched_tokens] · (4 · {arch.hidden:,} + {width}) · {size} B"
    memory = {
        "weights": _weights(arch, size, per),
        "activations": Estimate("B", batch),
        "logits": Estimate("B", f"{a.vllm_sequences} [max_num_seqs] · {arch.vocab:,} · 2 · 4 B"),
    }
    taken = " − ".join(number(round(part.value)) for part in memory.values())
    gpu, reserved = number(a.gpu_memory_gib), number(a.gpu_reserved_gib)
    pool = f"max(0, min({gpu} · {number(utilisation)}, {gpu} − {reserved}) · {GIB:,} B − {taken})"
    one = arch.kv_bytes_per_token(dtype, tp)
    capacity = Estimate("B", pool).value / one
    heads = f"{-(-arch.kv_heads // tp)} kv heads"
    pool += f" [{capacity:,.0f} tokens of 2 · {arch.layers} · {heads} · {arch.head_dim} · {size} = {one:,} B]"
    memory["kv_cache"] = Estimate("B", pool)
    return Engine(memory, int(min(wanted, a.vllm_sequences, capacity // context)), capacity)


def transformers_engine(arch: Architecture, *, dtype: str, context: int, sequences: int) -> Engine:
    """The embedded engine on one GPU: every sequence of a batch has a cache as long as the longest."""
    size = BYTES[dtype]
    scores = f"{sequences:,} sequences · {arch.vocab:,} · ({size} + 4 + 4) B [scores, probabilities, their sums]"
    cache = f"{sequences:,} sequences · {context:,} tokens · 2 · {arch.layers} · {arch.kv_heads} [kv heads] · "
    memory = {"weights": _weights(arch, size), "logits": Estimate("B", scores)}
    memory["kv_cache"] = Estimate("B", f"{cache}{arch.head_dim} · {size} B")
    return Engine(memory, sequences, sequences * context)
