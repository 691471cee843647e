"""The forward pass of training: token log-probabilities of packed lists, the same that the model gives one response at
a time.

How a model is computed is decided once, by what its layers ask for and by measurement (`way_of`): packed where that is
exact, else one response per row; through attention that knows its windows, caps and sinks, else through the one that
its authors wrote (`eager`). The logits are never built for all tokens: the head runs over some rows at a time, in the
backward pass again.
"""

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from larpo.errors import UserError, one_line
from larpo.training import attention
from larpo.training.attention import NotPacked
from larpo.training.packing import PackedLists, ResponseList, one_per_row, pack

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference between two ways to compute the same response, nats per token."""
CHUNK = {"cpu": 2**27, "cuda": 2**28}
"""Logits that exist at once."""
FEWEST = 256  # rows of a chunk


def token_logps(model: PreTrainedModel, packed: PackedLists) -> Tensor:
    """(T,) float32 log-probabilities of `packed.targets`."""
    way = way_of(model)
    if way.longest is not None and max(map(max, packed.responses)) + max(packed.prompts) > way.longest:
        return one_at_a_time(model, packed)
    if not way.packed:
        rows, predict_from = one_per_row(packed)
        return model(input_ids=rows, predict_from=predict_from, targets=packed.targets, whole=way.whole)
    layout = replace(packed.layout(), fused=way.fused)
    try:
        logps = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=torch.ones_like(packed.input_ids),
            lists=layout,
            predict_from=packed.predict_from,
            targets=packed.targets,
            whole=way.whole,
        )
    except Exception as error:  # noqa: BLE001 - whatever a compiler or driver raises
        without_kernel(model, error)
        return token_logps(model, packed)
    if layout.calls.count < way.layers:
        raise NotPacked(f"only {layout.calls.count} of its {way.layers} layers attend through transformers' interface")
    return logps


def without_kernel(model: PreTrainedModel, error: Exception) -> None:
    """A kernel of torch that fails here and now ends no run: attention goes on without it."""
    plain = unwrapped(model)
    if not plain.larpo_way.fused or isinstance(error, torch.OutOfMemoryError):
        raise error
    print(
        f"a kernel of torch failed ({type(error).__name__}: {one_line(error)}); attention goes on without it, slower",
        flush=True,
    )
    plain.larpo_way = replace(plain.larpo_way, fused=False)


def check_backward(plain: PreTrainedModel, packed: PackedLists) -> None:
    """A kernel may fail in the backward pass only."""
    weight = plain.get_input_embeddings().weight
    if weight.requires_grad:
        with torch.enable_grad():
            total = token_logps(plain, packed).sum()
        try:
            torch.autograd.grad(total, weight)
        except Exception as error:  # noqa: BLE001 - whatever a compiler or driver raises
            without_kernel(plain, error)


def one_at_a_time(model: PreTrainedModel, packed: PackedLists) -> Tensor:
    """(T,) as `token_logps`, every response in a forward pass of its own."""
    rows, predict_from = one_per_row(packed)
    lengths = [n for own in packed.responses for n in own]
    done = []
    for row, where, targets in zip(rows, predict_from.split(lengths), packed.targets.split(lengths), strict=True):
        where = where % rows.shape[1]
        ids = row[None, : int(where[-1]) + 1]
        done.append(model(input_ids=ids, predict_from=where, targets=targets, whole=True))
    return torch.cat(done)


def forward(self: PreTrainedModel, *args: Any, targets: Tensor | None = None, **options: Any) -> Any:
    """In place of the `forward` of a model's class, so that whatever wraps the model (DDP, FSDP) wraps this too:
    with `targets` (T,) their log-probabilities, else what the class does.

    Parameters
    ----------
    predict_from
        (T,) index into the flattened rows of `input_ids`: where each target is predicted.
    whole
        Build all logits by the class's own forward pass.
    """
    if targets is None:
        return type(self).forward(self, *args, **options)
    predict_from, whole = options.pop("predict_from"), options.pop("whole")
    if whole:
        logits = type(self).forward(self, **options, use_cache=False).logits.flatten(0, 1)
        return picked(logits[predict_from], targets)
    hidden = self.base_model(**options, use_cache=False).last_hidden_state.flatten(0, 1)
    return in_chunks(hidden[predict_from], targets, head(self))


def head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """(n, d) hidden states → (n, V) logits, as the models of transformers do it after the last layer."""
    config, layer = model.config.get_text_config(), model.get_output_embeddings()
    multiplier = getattr(config, "logit_scale", None) or getattr(
        config, "lm_head_multiplier", None
    )  # Cohere, Falcon-H1
    divisor = getattr(config, "logits_scaling", None)  # Granite
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def logits(hidden: Tensor) -> Tensor:
        x = layer(hidden)
        x = x if multiplier is None else x * multiplier
        x = x if divisor is None else x / divisor
        return x if cap is None else torch.tanh(x / cap) * cap

    return logits


def in_chunks(hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """(T,) log-probabilities of the targets behind (T, d) hidden states; logits exist for a chunk of them at a time."""

    def chunk(h: Tensor, t: Tensor) -> Tensor:
        return picked(logits(h), t)

    # The head's size is not known before it ran: it may be padded, or sharded now.
    vocabulary = logits(hidden[:1].detach()).shape[-1] if len(hidden) > FEWEST else 1
    size = max(FEWEST, CHUNK.get(hidden.device.type, 2**27) // vocabulary)
    pieces = list(zip(hidden.split(size), targets.split(size), strict=True))
    if not torch.is_grad_enabled() or len(pieces) == 1:
        return torch.cat([chunk(h, t) for h, t in pieces])
    return torch.cat([checkpoint(chunk, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in pieces])


def picked(logits: Tensor, targets: Tensor) -> Tensor:
    """(T,) float32 log-softmax of (T, V) logits at the targets."""
    return LogSoftmaxAt.apply(logits, targets)


class LogSoftmaxAt(torch.autograd.Function):
    """log softmax(logits)[target] in float32, whose backward pass needs one array of the logits' size, not three."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        exact = logits.float()
        total = torch.logsumexp(exact, -1)
        ctx.save_for_backward(logits, targets, total)
        return exact.gather(1, targets[:, None])[:, 0] - total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, total = ctx.saved_tensors
        out = (logits.float() - total[:, None]).exp_().mul_(-gradient[:, None])
        rows = torch.arange(len(targets), device=targets.device)
        out[rows, targets] += gradient
        return out.to(logits.dtype), None


@dataclass(frozen=True)
class Way:
    """How a model is computed."""

    packed: bool
    implementation: str  # of attention, transformers' name
    layers: int  # all of which attend through transformers' interface where lists are packed
    whole: bool = False  # build all logits: the head is not one that `head` knows
    fused: bool = False  # variable-length attention of torch
    longest: int | None = None  # tokens; beyond them rotary angles change with the longest sequence of a batch
    reason: str = ""  # why not packed
    difference: float = 0.0  # from one response at a time, nats per token, on the lists of `probe`

    def __str__(self) -> str:
        how = "packed lists" if self.packed else f"one response per row ({self.reason})"
        return f"{how}, attention {self.implementation}, at most {self.difference:.1e} nats per token from eager"


def unwrapped(model: Any) -> PreTrainedModel:
    while not isinstance(model, PreTrainedModel):
        model = model.module  # DistributedDataParallel
    return model


def way_of(model: PreTrainedModel) -> Way:
    """How `model` is computed; decided at the first call, which sets its attention.

    Raises
    ------
    UserError
        Not even one response per row gives what the model gives one response at a time.
    """
    plain = unwrapped(model)
    if "larpo_way" not in plain.__dict__:
        plain.forward = types.MethodType(forward, plain)
        training = model.training
        model.eval()
        with torch.no_grad(), quiet():
            choose(model, plain)
        model.train(training)
    return plain.larpo_way


def settle(model: PreTrainedModel, autocast: bool) -> Way:
    """`way_of` as training computes, in bfloat16 with `autocast`."""
    with torch.autocast(unwrapped(model).device.type, torch.bfloat16, enabled=autocast):
        return way_of(model)


def choose(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Set `plain.larpo_way` and the model's attention: the first of the ways that gives what `eager` gives alone."""
    config = plain.config.get_text_config()
    packed, allowed = pack(probe(config.vocab_size)).to(plain.device), tolerance(plain)
    own = Way(False, plain.config._attn_implementation, config.num_hidden_layers, True, longest=rotary_limit(config))
    with authors(plain) as other:
        reference = one_at_a_time(model if other is plain else other, packed)
    if other is not plain:
        apart = difference(one_at_a_time(model, packed), reference, packed)
        if not apart <= allowed:
            raise UserError(
                f"{type(plain).__name__}: transformers has two attentions for it, {own.implementation} and eager, that "
                f"differ by {apart:.2g} nats per token; which of them the sampler has cannot be told, take another "
                "policy.model"
            )

    def use(way: Way) -> None:
        plain.set_attn_implementation(way.implementation)
        plain.larpo_way = way

    own = own if other is not plain else replace(own, implementation="eager")
    if plain.base_model is not plain:  # else there is no forward pass without a head
        use(replace(own, whole=False))
        if difference(token_logps(model, packed), reference, packed) <= allowed:
            own = plain.larpo_way
    use(replace(own, implementation=attention.NAME))
    rows, reason, apart, ways = plain.larpo_way, "", torch.inf, [own]
    if plain.config._attn_implementation != attention.NAME:
        reason = "its attention is not chosen through transformers' interface"
    elif any(isinstance(module, torch.nn.Conv1d) for module in plain.modules()):
        reason, ways = "convolutions carry state from token to token", [rows, own]
    else:
        fused = (True, False) if plain.device.type == "cuda" else (False,)
        ways = [*(replace(rows, packed=True, fused=f) for f in fused), rows, own]
    for way in ways:
        use(replace(way, reason=reason))
        try:
            apart = difference(token_logps(model, packed), reference, packed)
            if plain.larpo_way.fused:
                check_backward(plain, packed)
        except Exception as error:  # whatever a model's own code makes of a mask that is no tensor
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = reason or ("" if way.fused else one_line(error))
            continue
        if apart <= allowed:
            plain.larpo_way = replace(plain.larpo_way, difference=apart)
            return
        reason = reason or ("" if way.fused else f"packing would change a response by {apart:.2g} nats per token")
    raise UserError(
        f"{type(plain).__name__}: a response beside others differs by {apart:.2g} nats per token from the same "
        "response alone; expected a causal language model"
    )


@contextmanager
def authors(plain: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with `eager`, the attention that its authors wrote: itself, or another one on the same weights where
    its attention was chosen when it was built."""
    before = plain.config._attn_implementation
    plain.set_attn_implementation("eager")
    try:
        yield plain if plain.config._attn_implementation == "eager" else built_eager(plain)
    finally:
        plain.set_attn_implementation(before)


def built_eager(plain: PreTrainedModel) -> PreTrainedModel:
    """Built anew with `eager`, on the weights and buffers of `plain`."""
    config = copy.deepcopy(plain.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        twin = type(plain)(config)
    twin.load_state_dict(plain.state_dict(), assign=True)
    for name, module in plain.named_modules():  # buffers that are not saved, rotary frequencies
        for key, value in module._buffers.items():
            twin.get_submodule(name)._buffers[key] = value
    twin.tie_weights()
    twin.forward = types.MethodType(forward, twin)
    return twin.train(plain.training)


def probe(vocabulary: int) -> list[ResponseList]:
    """Two short lists of arbitrary tokens, of unequal lengths."""

    def ids(n: int, seed: int) -> list[int]:
        return [(7919 * (i + 1) * (seed + 3) + 104729 * seed) % vocabulary for i in range(n)]

    return [ResponseList(ids(9, 0), [ids(5, 1), ids(1, 2), ids(3, 3)]), ResponseList(ids(3, 4), [ids(2, 5), ids(7, 6)])]


def difference(logps: Tensor, reference: Tensor, packed: PackedLists) -> float:
    """Largest |Δ| of a response's summed log-probability, per token."""
    lengths = [n for own in packed.responses for n in own]
    apart = (logps - reference).split(lengths)
    return max(abs(float(delta.sum())) / len(delta) for delta in apart)


def tolerance(model: PreTrainedModel) -> float:
    dtype = next(model.parameters()).dtype
    if torch.is_autocast_enabled(model.device.type):
        dtype = torch.get_autocast_dtype(model.device.type)
    return TOLERANCE[dtype]


def rotary_limit(config: Any) -> int | None:
    """Tokens up to which rotary angles do not depend on a batch's longest sequence; None where they never do."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type", kind.get("type")) in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers warns where an attention cannot be chosen; here that is an answer."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
