"""What encoders cost: a corpus embedded and searched, and the prompts that look for related ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from larpo.config.sections import EncoderParams
from larpo.plan.estimates import Estimate, forward_hours, forward_memory, gib
from larpo.plan.plans import NodePlan
from larpo.plan.sizes import rows_of, unknown_size

if TYPE_CHECKING:
    from larpo.plan.planner import Planner


def passages_of(planner: Planner, name: str) -> int | None:
    """Passages of a corpus: as assumed under its name in `retrieval`, or counted in its file."""
    return planner.a.items.get(name) or rows_of(planner.params.retrieval[name].corpus, planner.a)


def embed(planner: Planner, name: str) -> NodePlan:
    """The node `embed@NAME`; every passage is taken to be as long as the encoder reads, an upper bound."""
    p, stage = planner.params.retrieval[name], f"embed@{name}"
    passages = passages_of(planner, name)
    arch = planner.architecture(p.model, f"retrieval.{name}.model")
    if arch is None:
        return NodePlan(stage, p.model, 1)
    memory = forward_memory(arch, tokens=p.batch_size * p.max_length, predicted=0, dtype="float32")
    if passages is None:
        return NodePlan(
            stage,
            p.model,
            1,
            "one GPU",
            memory=memory,
            hours=Estimate(None, "GPU h", unknown_size(name, f"retrieval.{name}.corpus")),
        )
    # Queries of a data set on the hub are few beside its passages; those of a file here are counted.
    queries = rows_of(p.queries, planner.a) or 0
    length = min(p.max_length, arch.max_context)
    return NodePlan(
        stage,
        p.model,
        1,
        "one GPU",
        memory=memory,
        hours=forward_hours(arch, (passages + queries) * length, length, "float32", planner.a),
        notes=(f"{passages:,} passages and {queries:,} queries · {length} tokens at most",),
    )


def retrieve(planner: Planner, name: str) -> NodePlan:
    """The node `retrieve@NAME`: FAISS on the CPU; what it holds is in the note."""
    p, stage = planner.params.retrieval[name], f"retrieve@{name}"
    passages, arch = passages_of(planner, name), planner.architectures.get(p.model)
    if passages is None or arch is None:
        return NodePlan(stage, notes=("FAISS, on the CPU",))
    if p.index == "ivf_pq":
        code = p.index_options.get("m", 64) * p.index_options.get("nbits", 8) / 8
        held, text = passages * code, f"{passages:,} passages · {code:g} B of code"
    else:
        shard = min(passages, p.shard_size)
        held, text = shard * arch.hidden * 4, f"{shard:,} passages of a shard · {arch.hidden:,} · 4 B"
    return NodePlan(stage, notes=(f"FAISS, on the CPU: {text} = {gib(held)} of host memory",))


def lists(planner: Planner, s: str) -> NodePlan:
    """The node `lists@s`: tables, and with negatives=related the prompts' vectors."""
    stage, wanted = f"lists@{s}", planner.params.lists
    if wanted.negatives != "related":
        return NodePlan(stage)
    arch = planner.architecture(wanted.related_model, "lists.related_model")
    if arch is None:
        return NodePlan(stage, wanted.related_model, 1)
    encoder = EncoderParams(model=wanted.related_model)
    prompts, length = planner.params.prompts.per_iteration, min(planner.prompt, encoder.max_length)
    return NodePlan(
        stage,
        wanted.related_model,
        1,
        "one GPU",
        memory=forward_memory(arch, tokens=encoder.batch_size * encoder.max_length, predicted=0, dtype="float32"),
        hours=forward_hours(arch, prompts * length, length, "float32", planner.a),
        notes=(f"{prompts:,} prompts compared with each other",),
    )
