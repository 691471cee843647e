"""Nodes `embed`, `retrieve` and `lists`: a corpus embedded and searched, and prompts that look for related ones."""

from dataclasses import replace

from larpo.config.sections import EncoderParams
from larpo.plan.context import Context
from larpo.plan.formula import Estimate, Unknown, gib, number
from larpo.plan.memory import MicroBatch, forward_memory
from larpo.plan.plans import NodePlan
from larpo.plan.sizes import rows_of, unknown_size
from larpo.plan.time import forward_hours


def embed(context: Context, stage: str, name: str) -> NodePlan:
    """Every passage is taken to be as long as the encoder reads, an upper bound."""
    section, passages = context.params.retrieval[name], _passages(context, name)
    # Queries of a data set on the hub are few beside its passages; those of a file here are counted.
    queries = rows_of(section.queries, context.a) or 0
    node = _encoding(context, stage, section, f"retrieval.{name}.model", (passages or 0) + queries, section.max_length)
    if passages is None and node.hours is not None:
        return replace(node, hours=Unknown("GPU h", unknown_size(name, f"retrieval.{name}.corpus")))
    if node.hours is None:
        return node
    length = min(section.max_length, context.architectures[section.model].max_context)
    return replace(node, notes=(f"{passages:,} passages and {queries:,} queries · {length} tokens at most",))


def retrieve(context: Context, stage: str, name: str) -> NodePlan:
    """FAISS on the CPU; what it holds is in the note."""
    p, passages = context.params.retrieval[name], _passages(context, name)
    arch = context.architectures.get(p.model)
    if passages is None or arch is None:
        return NodePlan(stage, notes=("FAISS, on the CPU",))
    if p.index == "ivf_pq":
        code = p.index_options.get("m", 64) * p.index_options.get("nbits", 8) / 8
        held = f"{passages:,} passages · {number(code)} B of code"
    else:
        held = f"{min(passages, p.shard_size):,} passages of a shard · {arch.hidden:,} · 4 B"
    memory = gib(Estimate("B", held).value)
    return NodePlan(stage, notes=(f"FAISS, on the CPU: {held} = {memory} of host memory",))


def lists(context: Context, stage: str, s: str) -> NodePlan:
    """Tables, and with negatives=related the prompts' vectors."""
    if context.params.lists.negatives != "related":
        return NodePlan(stage)
    encoder, prompts = EncoderParams(model=context.params.lists.related_model), context.params.prompts.per_iteration
    node = _encoding(context, stage, encoder, "lists.related_model", prompts, min(context.prompt, encoder.max_length))
    return replace(node, notes=(f"{prompts:,} prompts compared with each other",)) if node.hours else node


def _passages(context: Context, name: str) -> int | None:
    """Passages of a corpus: as assumed under its name in `retrieval`, or counted in its file."""
    return context.a.items.get(name) or rows_of(context.params.retrieval[name].corpus, context.a)


def _encoding(context: Context, stage: str, encoder: EncoderParams, key: str, texts: int, length: float) -> NodePlan:
    """`texts` texts of `length` tokens, as far as the encoder reads them, made into vectors in float32."""
    arch = context.architecture(encoder.model, key)
    if arch is None:
        return NodePlan(stage, encoder.model, 1)
    length = min(length, arch.max_context)
    memory = forward_memory(arch, MicroBatch(encoder.batch_size * encoder.max_length), dtype="float32")
    hours = forward_hours(arch, texts * length, length, "float32", context.a)
    return NodePlan(stage, encoder.model, 1, "one GPU", memory=memory, hours=hours)
