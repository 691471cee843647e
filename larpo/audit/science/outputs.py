"""Whether responses and outputs are what the recorded policy says under the recorded seeds, token by token.

The engine `transformers` draws by inverse transform sampling, with one uniform number per token from a seed that the
parameters give. So a recorded token can be checked without sampling again: with p the policy's probabilities behind the
recorded tokens before it, F their cumulated sums and u the number,

    greedy     log p(token) ≥ max log p − GAP
    sampled    F(token − 1) − EDGE ≤ u ≤ F(token) + EDGE

One forward pass checks every token of a response, and it holds on any machine: rounding moves a token only where u
lies within it of an edge. The numbers of another engine are unknown here. Of its tokens −log p is compared with what p
itself expects: for any λ in (0, 1) the product over the tokens of p(token)^−λ / Σ_v p(v)^(1−λ) is a martingale of mean
1 under p, so its mean over some λ exceeds 1/α with probability α at most (Ville 1939): no honest table is accused more
often, whatever its policy. It sees tokens that the policy would hardly say, not a likely one in another's place.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from larpo import tables
from larpo.audit.lineage.code import untrusted
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude
from larpo.config.sections import EngineParams
from larpo.engines.transformers_engine import TransformersEngine
from larpo.errors import UserError
from larpo.hashing import seed_of
from larpo.models.remote_code import EVERY
from larpo.training.drift import TOLERANCE

PART = "science"
GAP = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-1}
"""Nats by which another token may be likelier than a greedy one: larpo.audit.compare.rules has what was measured."""
EDGE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Of probability, between a token's range and the number that drew it."""
LAMBDAS = (0.1, 0.3, 0.5, 0.7)
ACCUSED = 1e-6
"""Share of honest tables, at most, whose tokens are called unlike their policy's."""
ROWS = 16  # in one forward pass


@dataclass(frozen=True)
class Table:
    """A table of what one policy said. `rows` (index as in the file) has prompt_token_ids, token_ids, temperature and
    the numbers that drew it: seed of the batch, row in the batch and rows of the batch, 0 for what is greedy."""

    path: str
    policy: str
    rows: pd.DataFrame
    most: int  # tokens of a response
    top_p: float = 1.0


def sampled(run: AuditedRun, s: str) -> Table:
    """Responses of an iteration's policy; solutions, which nobody sampled, are left out."""
    params, iteration, path = run.params, run.params.iterations[s], f"data/sample/{s}.parquet"
    recorded = tables.read("responses", path)
    rows = recorded[recorded["origin"] != "gold"]
    prompts = tables.read("prompts", f"data/prompts/{s}.parquet")["prompt_id"].tolist()
    n, seed = params.sample.responses // len(iteration.temperatures), seed_of(params.seed, "sample", s)
    place = rows.groupby("prompt_id", sort=False).cumcount()
    tags = [f"{i}-t{t:g}" for i, t in enumerate(iteration.temperatures)]
    numbered = _numbered(rows, prompts, (place // n).map(dict(enumerate(tags))), place % n, n, seed, params.engine)
    return Table(path, iteration.previous, numbered, params.sample.max_new_tokens, params.sample.top_p)


def generated(run: AuditedRun, benchmark: str, policy: str) -> Table:
    """A policy's outputs to a benchmark, revisions included."""
    generate, path = run.params.benchmarks[benchmark].generate, f"data/generate/{policy}-{benchmark}.parquet"
    rows = tables.read("outputs", path)
    items = tables.read("items", f"data/items/{benchmark}.parquet")["prompt_id"].tolist()
    chosen = set(sorted(items)[: generate.sampled_items])
    seed = seed_of(run.params.seed, "evaluate", benchmark)
    first, drawn = (rows["sample"] < 0) & (rows["turn"] == 0), rows["sample"] >= 0
    parts = [
        _numbered(rows[first], items, f"one-t{generate.temperature:g}", 0, 1, seed, run.params.engine),
        rows[~first & ~drawn].assign(seed=0, row=0, batch=0),  # revisions are greedy
    ]
    for t in generate.temperatures if generate.samples else []:
        part = rows[drawn & (rows["temperature"] == t)]
        asked = [i for i in items if i in chosen]
        parts.append(_numbered(part, asked, f"t{t:g}", part["sample"], generate.samples, seed, run.params.engine))
    return Table(path, policy, pd.concat(parts).sort_index(), generate.max_new_tokens)


def _numbered(
    rows: pd.DataFrame, prompts: list[str], tag: Any, index: Any, n: int, seed: int, engine: EngineParams
) -> pd.DataFrame:
    """`rows` with seed, row and batch of their generation: `prompts` in batches, n responses each, the `index`-th."""
    rows = rows.assign(tag=tag, index=index)
    number = rows["prompt_id"].map({p: i for i, p in enumerate(prompts)})
    start = number // engine.batch_size * engine.batch_size
    seeds = [seed_of(seed, tag, int(at)) for tag, at in zip(rows["tag"], start, strict=True)]
    batch = (len(prompts) - start).clip(upper=engine.batch_size) * n
    return rows.assign(seed=seeds, row=(number - start) * n + rows["index"], batch=batch)


class Policy:
    """A recorded policy, to score what it is said to have said."""

    def __init__(self, run: AuditedRun, policy: str):
        engine = run.params.engine
        known = engine if engine.name == "transformers" else EngineParams(dtype=engine.dtype)
        self.engine, self.dtype = TransformersEngine(run.checkpoint(f"data/policy/{policy}"), known, 0), known.dtype

    @torch.inference_mode()
    def logits(self, rows: pd.DataFrame) -> Iterator[tuple[Any, torch.Tensor]]:
        """Row, and its response's (tokens, vocabulary) float32 logits, each before the token is known."""
        model, device = self.engine.model, self.engine.device
        order = sorted(rows.itertuples(), key=lambda row: len(row.prompt_token_ids) + len(row.token_ids))
        for start in range(0, len(order), ROWS):
            some = order[start : start + ROWS]
            texts = [[*row.prompt_token_ids, *row.token_ids] for row in some]
            # Padding on the right is behind all that counts.
            ids = torch.full((len(some), max(map(len, texts))), self.engine.pad)
            mask = torch.zeros_like(ids)
            for i, text in enumerate(texts):
                ids[i, : len(text)], mask[i, : len(text)] = torch.tensor(text), 1
            first = min(len(row.prompt_token_ids) for row in some) - 1
            whole = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), logits_to_keep=ids.shape[1] - first
            ).logits
            for i, row in enumerate(some):
                at = len(row.prompt_token_ids) - 1 - first
                yield row, whole[i, at : at + len(row.token_ids)].float().cpu()


def unlike(table: Table, rows: pd.DataFrame, policy: Policy, numbered: bool) -> list[str]:
    """Lines on those of `rows` that the policy did not say. `numbered`: the engine's random numbers are known."""
    lines: dict[int, str] = {}
    growth = np.zeros(len(LAMBDAS))
    uniform: dict[tuple[int, int], torch.Tensor] = {}
    for row, logits in policy.logits(rows):
        tokens = torch.tensor([int(t) for t in row.token_ids])
        logp = logits.log_softmax(-1)
        said = logp.gather(1, tokens[:, None])[:, 0]
        if row.temperature == 0:
            off, allowed, word = logp.amax(-1) - said, GAP[policy.dtype], "nats below the likeliest token"
        elif numbered:
            key = (row.seed, row.batch)
            if key not in uniform:
                size = table.most, row.batch, 1
                uniform[key] = torch.rand(size, generator=torch.Generator().manual_seed(row.seed))[..., 0]
            numbers = uniform[key][: len(tokens), row.row]
            off, word = outside(logits, tokens, numbers, row.temperature, table.top_p), "from what its seed draws"
            allowed = EDGE[policy.dtype]
        else:
            growth += surprise(logits, tokens, row.temperature, table.top_p)
            off, allowed, word = torch.zeros(len(tokens)), 0.0, ""
        reported = getattr(row, "logp", None)
        if len(off) and float(off.max()) > allowed:
            at = int((off > allowed).int().argmax())
            lines[row.Index] = f"token {at} ({int(tokens[at])}) is {float(off[at]):.2g} {word}"
        elif reported is not None and not math.isnan(reported):
            apart = abs(float(said.double().sum()) - reported) / max(1, len(tokens))
            if apart > 10 * TOLERANCE[policy.dtype]:
                lines[row.Index] = f"its logp is {apart:.2g} nats per token from its policy's"
    told = [f"{table.path}, row {row}: {lines[row]} by policy {table.policy}" for row in sorted(lines)]
    # The mean of e-values is one: no sum of logarithms overflows before it is compared.
    evidence = float(np.logaddexp.reduce(growth) - math.log(len(LAMBDAS)))
    if evidence > -math.log(ACCUSED):
        told.append(f"{table.path}: its tokens are not draws of policy {table.policy} (evidence e^{evidence:.0f})")
    return told


def outside(
    logits: torch.Tensor, tokens: torch.Tensor, numbers: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """How far each number lies outside of its token's range of the cumulated probabilities; infinite for a token that
    top_p leaves out."""
    p = warped(logits, temperature, top_p)
    total = p.double().cumsum(-1)
    total = total / total[:, -1:]
    high = total.gather(1, tokens[:, None])[:, 0]
    own = p.gather(1, tokens[:, None])[:, 0].double()
    off = torch.maximum(high - own - numbers, numbers - high).clamp(min=0)
    return off.masked_fill(own == 0, math.inf)


def warped(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """(tokens, vocabulary) probabilities at a temperature, cut to top_p, as the engine makes them."""
    from transformers import TopPLogitsWarper

    scores = logits / temperature
    return (TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores).softmax(-1)


def surprise(logits: torch.Tensor, tokens: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """Per λ of LAMBDAS, Σ over the tokens of −λ log p(token) − log Σ_v p(v)^(1−λ)."""
    logp = warped(logits, temperature, top_p).log()
    said = logp.gather(1, tokens[:, None])[:, 0]
    return np.array([float((-x * said - ((1 - x) * logp).logsumexp(-1)).double().sum()) for x in LAMBDAS])


def drawn(run: AuditedRun, table: Table, scores: pd.Series | None) -> pd.DataFrame:
    """Rows of a table, as many greedy as sampled ones. A raised number has its forged rows among those that count as
    right, a lowered one among the others: three of four are right ones, where there are scores and as many."""
    rows, most = table.rows, run.draw.rows
    right = pd.Series(False, rows.index) if scores is None else scores.reindex(rows.index).fillna(0).gt(0)

    def strata(some: pd.DataFrame) -> list[list[int]]:
        return [group.index.tolist() for _, group in some.groupby(some["temperature"] == 0)]

    chosen = run.draw.some(f"{table.path}, right", strata(rows[right]), 3 * most // 4)
    left = (most if scores is not None else max(1, most // 2)) - len(chosen)
    return rows.loc[sorted(chosen + run.draw.some(table.path, strata(rows[~right]), left))]


def outputs(run: AuditedRun, name: str) -> Check:
    """Of every table of responses and outputs some rows, by lot."""
    numbered = run.params.engine.name == "transformers"
    asked: dict[str, list[tuple[Table, pd.Series | None]]] = {}
    for s in run.params.iterations:
        asked.setdefault((table := sampled(run, s)).policy, []).append((table, None))
    for benchmark, policy in run.evaluated:
        scores = tables.read("evaluations", f"data/evaluate/{policy}-{benchmark}.parquet")["score"]
        asked.setdefault(policy, []).append((generated(run, benchmark, policy), scores))
    failures, count, total = [], 0, 0
    for policy, made in asked.items():
        scorer = Policy(run, policy)
        for table, right in made:
            rows = drawn(run, table, right)
            failures += unlike(table, rows, scorer, numbered)
            count, total = count + len(rows), total + len(table.rows)
    how = "by their seeds" if numbered else "by their log-probabilities: the engine's random numbers are not known"
    return conclude(PART, name, count, f"{count} of {total} responses and outputs, drawn by lot, {how}", failures)


def not_said(run: AuditedRun, node: str, rows: Sequence[int]) -> list[str]:
    """Lines on those of the recorded `rows` of a `sample` or `generate` node that its policy did not say."""
    kind, _, key = node.partition("@")
    named = {f"{policy}-{benchmark}": (benchmark, policy) for benchmark, policy in run.evaluated}
    with contextlib.chdir(run.folder):
        table = sampled(run, key) if kind == "sample" else generated(run, *named[key])
        if why := untrusted(run, [f"data/policy/{table.policy}"], True, EVERY):
            raise UserError(why)
        some = table.rows.loc[table.rows.index.isin(rows)]
        return unlike(table, some, Policy(run, table.policy), run.params.engine.name == "transformers")
