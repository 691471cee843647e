"""Memory of one GPU, in bytes: training, forward passes, engines that generate."""

from dataclasses import dataclass
from typing import Literal

from larpo.plan.architectures import BYTES, Architecture
from larpo.plan.assumptions import Assumptions
from larpo.plan.formula import GIB, Estimate, Unknown, number

Memory = dict[str, Estimate]
LOGITS = 2**28  # that exist at once on a GPU (larpo/training/forward.py)
SCORES = 2**26  # the like of attention that is written out (larpo/training/attention.py)
RELATIVE_TENSORS = 5  # of (heads, row, row): scores, both relative terms, their sum, one on its way
OPTIMIZERS = {
    "adamw_torch": "2 · {parameters} · {size} B [AdamW]",
    "adamw_torch_fused": "2 · {parameters} · {size} B [AdamW]",
    "adafactor": "{rows_and_columns} · {size} B [Adafactor: rows, columns]",
    "sgd": "0 [SGD keeps nothing]",
    "adamw_torch_8bit": "2 · {parameters} · (1 + 4/256) B [8-bit AdamW, a scale for 256 numbers]",
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


@dataclass(frozen=True)
class MicroBatch:
    """What is in memory at once.

    Packed lists (`rows` 0): the tokens of one row, the T of them that are predicted, and the prompts' tokens once per
    response, for their keys and values stand before each (larpo/training/attention.py). Otherwise padded rows, computed
    by the model's own forward pass."""

    tokens: int
    predicted: int = 0
    copied: int = 0
    rows: int = 0


def layer_activations(arch: Architecture) -> str:
    """Numbers that autograd keeps of one token in one layer, counted in transformers' code: three per norm and channel
    (input, normalised, scaled), four of the attention's width (q, k and v repeated to all heads, output), four of the
    MLP's (gate, its activation, up, product)."""
    width = arch.heads * arch.head_dim
    return f"({3 * arch.norms_per_layer} · {arch.hidden:,} + 4 · {width:,} + 4 · {arch.intermediate:,})"


def layer(arch: Architecture, batch: MicroBatch, size: int) -> str:
    """Bytes of one layer's tensors. Packed lists have the output twice, by parts and as one row. The copied keys
    and values are counted for all heads; a kernel that knows grouped heads copies fewer."""
    parts, width = "", arch.heads * arch.head_dim
    if batch.copied:
        parts = f" + (2 · {batch.copied:,} [prompts' keys, values] + {batch.tokens:,} [parts' outputs]) · {width:,}"
    return f"({batch.tokens:,} tokens · {layer_activations(arch)}{parts}) · {size} B"


def training_memory(
    arch: Architecture,
    batch: MicroBatch,
    *,
    dtype: str,
    autocast: bool,
    checkpointing: bool,
    optimizer: str,
    sharding: Sharding,
    logits_at_once: int = LOGITS,
) -> Memory:
    """Memory of one GPU at the peak of a step.

    Parameters
    ----------
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
    if checkpointing or sharding.activation_checkpointing:
        stream = 2 if fsdp and autocast else size
        layers = f"{batch.tokens:,} tokens · {arch.layers} layers · {arch.hidden:,} · {stream} B [kept] + "
        layers += f"{layer(arch, batch, compute)} [the layer being recomputed]"
    else:
        layers = f"{arch.layers} layers · {layer(arch, batch, compute)}"
    out["activations"] = Estimate("B", layers + _attention(arch, batch, size))
    if batch.rows:
        return out | {"logits": _whole_logits(arch, batch.predicted, compute)}
    return out | {"logits": _logits(arch, batch.predicted, compute, logits_at_once)}


def _attention(arch: Architecture, batch: MicroBatch, size: int) -> str:
    """Padded rows have a mask; attention with a soft cap is written out for some parts of a packed row at a time."""
    if batch.rows:
        return f" + {batch.tokens:,}² / {batch.rows} rows · ({size} + 4) B [mask]"
    return f" + 4 · {number(SCORES)} · 4 B [scores under a cap]" if arch.softcap and batch.predicted else ""


def _logits(arch: Architecture, predicted: int, compute: int, at_once: int) -> Estimate:
    """Of some rows at a time (larpo/training/forward.py): as computed and on the way to their log-sum-exp or gradient,
    two float32 arrays, one where they are float32; two more as computed where a tanh caps them."""
    each = compute + (4 if compute == 4 else 8) + (2 * compute if arch.softcap else 0)
    rows = f"min({predicted:,} predicted, max(256, {number(at_once)} / {arch.vocab:,}))"
    return Estimate("B", f"{rows} · {arch.vocab:,} · {each} B [logits of some rows at a time]")


def _whole_logits(arch: Architecture, predicted: int, compute: int) -> Estimate:
    """As computed, as float32, two more where a tanh caps them, and two float32 gradients."""
    each = compute + (4 if compute < 4 else 0) + (2 * compute if arch.softcap else 0) + 8
    kept = "as computed" + (", as float32" if compute < 4 else "") + (", capped twice" if arch.softcap else "")
    return Estimate("B", f"{predicted:,} predicted · {arch.vocab:,} · {each} B [{kept}; two float32 gradients]")


def _weights(arch: Architecture, size: int, per: str = "") -> Estimate:
    return Estimate("B", f"{number(arch.parameters)} · {size} B{per}")


def forward_memory(
    arch: Architecture,
    batch: MicroBatch,
    *,
    dtype: str,
    autocast: bool = False,
    row: int = 0,
    logits_at_once: int = LOGITS,
) -> Memory:
    """Memory of a forward pass without gradients: weights, one layer's tensors, logits of what is predicted; and, where
    positions are relative (DeBERTa), the attention matrices, which its code makes whole, for rows of `row` tokens."""
    size = BYTES[dtype]
    compute = 2 if autocast else size
    copies = f" + {number(arch.parameters)} · 2 B [bfloat16 copies under autocast]" if autocast and size > 2 else ""
    out = {"weights": Estimate("B", f"{number(arch.parameters)} · {size} B{copies}")}
    attention = _attention(arch, batch, compute)
    out["activations"] = Estimate("B", f"{layer(arch, batch, compute)} [one layer]{attention}")
    if arch.relative_positions and row:
        matrices = f"{RELATIVE_TENSORS} [scores, relative] · {batch.tokens:,} tokens · {row:,}"
        out["attention"] = Estimate("B", f"{matrices} · {arch.heads} heads · {size} B")
    if batch.predicted:
        out["logits"] = _logits(arch, batch.predicted, compute, logits_at_once)
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
