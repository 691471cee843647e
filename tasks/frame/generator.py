"""Resumable generation, shared by the nodes `sample` and `generate`.

All prompts are one stream through the engine. What has finished is written every few seconds, and a stopped node goes
on with the prompts that are left. Seeds belong to the places of prompts in the stream, so they are the same however
often it was stopped. So are the tokens, where the engine computes a prompt alike whatever stands beside it: the
embedded one makes its batches again as they were, vLLM does so with `engine.batch_invariant`.
"""

import math
import time
from pathlib import Path

import pandas as pd

from larpo.engines import Engine, Sampling, build_engine, stream
from larpo.engines.check import check_heads
from larpo.errors import ParameterError, UserError
from larpo.hashing import seed_of
from larpo.models.chat import render_prompts
from larpo.models.load import load_tokenizer, positions_of
from larpo.models.remote_code import config_of
from larpo.models.resolve import Checkpoint
from larpo.workspace.progress import progress, say
from tasks.frame.files import read_part, write_part
from tasks.frame.node import Node

MOST = 0.5
"""Share of responses cut off from which on a line says so: what is sampled is then mostly unfinished."""
SECONDS = 2.0
"""What a kill can cost, beside what the engine has under way."""
COLUMNS = ["prompt_id", "index", "seed", "prompt_token_ids", "token_ids", "finish_reason", "logp"]


class Generator:
    """A checkpoint behind an engine; loaded at the first batch that is not in scratch already."""

    def __init__(self, node: Node, checkpoint: Checkpoint):
        self.node, self.checkpoint, self.params = node, checkpoint, node.params.engine
        check_heads(self.params.options, config_of(checkpoint), str(checkpoint))
        self.tokenizer = load_tokenizer(checkpoint)
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = build_engine(self.params, self.checkpoint, self.node.seed)
            self.node.note(engine=self._engine.facts())
        return self._engine

    def run(self, prompts: pd.DataFrame, sampling: Sampling, tag: str) -> pd.DataFrame:
        """Responses to a `prompts` table: columns prompt_id, index (0..n-1 within its prompt), seed, text,
        prompt_token_ids, token_ids, finish_reason, logp; rows in the order of the prompts.

        `tag` tells apart several runs of one node (temperatures, greedy).
        """
        rendered = render_prompts(self.tokenizer, prompts["messages"].tolist())
        self._check_length(prompts, rendered, sampling.max_new_tokens)

        size, total = self.params.batch_size, len(prompts)
        seeds = [seed_of(self.node.seed, tag, start) for start in range(0, total, size)]
        place_of = {prompt_id: place for place, prompt_id in enumerate(prompts["prompt_id"])}
        found = (read_part(path) for path in sorted(self.node.scratch.glob(f"{tag}-*.part")))
        parts = [part for part in found if part is not None]
        made = {place_of[prompt_id] for part in parts for prompt_id in part["prompt_id"]}
        todo = [place for place in range(total) if place not in made]
        if made:
            say(f"{self.node.stage}: resuming {tag}, {len(made)} of {total} prompts are there")
        rows: list[tuple] = []

        def write() -> None:
            first = place_of[rows[0][0]]
            write_part(pd.DataFrame(rows, columns=COLUMNS).astype({"logp": float}), path := self._part(tag, first))
            parts.append(read_part(path))
            rows.clear()

        ticks, written = progress(todo, f"{self.node.stage} {tag}", "prompts"), time.monotonic()
        for place, many in stream(self.engine, rendered, sampling, seeds, todo, size) if todo else ():
            next(ticks)
            if any(c.logp is not None and not math.isfinite(c.logp) for c in many):
                raise ParameterError(
                    "engine.dtype",
                    f"the model's logits are not finite in {self.params.dtype}; expected bfloat16 or float32",
                )
            prompt_id = prompts["prompt_id"].iloc[place]
            rows += [
                (prompt_id, index, c.seed, rendered[place], c.token_ids, c.finish_reason, c.logp)
                for index, c in enumerate(many)
            ]
            if time.monotonic() - written > SECONDS:
                write()
                written = time.monotonic()
        if rows:
            write()
        next(ticks, None)
        frame = pd.concat(parts, ignore_index=True)
        frame = frame.reindex(columns=COLUMNS)  # parts from before a column was there hold none
        frame = frame.iloc[frame["prompt_id"].map(place_of).argsort(kind="stable")].reset_index(drop=True)
        frame["text"] = self.tokenizer.batch_decode(frame["token_ids"].tolist(), skip_special_tokens=True)
        return frame

    def _part(self, tag: str, first: int) -> Path:
        return self.node.scratch / f"{tag}-{first:08d}.part"

    def _check_length(self, prompts: pd.DataFrame, rendered: list[list[int]], new: int) -> None:
        """Refuse prompts that leave no room for an answer, before weights are loaded: beyond its positions a model
        fails in the middle of the work, or answers nonsense without a word."""
        positions = positions_of(self.checkpoint, turned_once=self.params.name == "transformers")
        turn = "" if positions == positions_of(self.checkpoint) else ", beyond which its rotary angles change"
        long = [i for i, ids in enumerate(rendered) if positions is not None and len(ids) + new > positions]
        if long:
            first = max(long, key=lambda i: len(rendered[i]))
            what = "items" if "meta" in prompts else "prompts"
            raise UserError(
                f"{self.node.stage}: {len(long)} of {len(prompts)} {what} with max_new_tokens={new} do not fit the "
                f"{positions} positions of {self.checkpoint}{turn}; the longest is row {first} "
                f"({prompts['prompt_id'].iloc[first]}) with {len(rendered[first])} tokens: leave such {what} out of "
                "the data, or lower max_new_tokens"
            )


def note_cut(node: Node, frame: pd.DataFrame, limit: str, tokens: int) -> None:
    """Record how many responses ended at `tokens`, which the parameter `limit` allows; more than MOST are told."""
    cut = int((frame["finish_reason"] == "length").sum())
    node.note(truncated=cut, truncated_share=round(cut / len(frame), 4))
    if cut > MOST * len(frame):
        say(
            f"{node.stage}: {cut} of {len(frame)} responses are cut off at {tokens} tokens; raise {limit}, or switch a "
            "model's thoughts off (policy.chat_template_kwargs)"
        )
