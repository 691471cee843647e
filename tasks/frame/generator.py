"""Resumable generation, shared by the nodes `sample` and `generate`.

Work is cut into batches of `engine.batch_size` prompts. Each finished batch is one file in the node's scratch;
a restart reads those and generates the rest. A batch depends on nothing but its prompts and its seed, so the
result is the same however often the node was stopped.
"""

from __future__ import annotations

import pandas as pd

from larpo.config.sections import EngineParams
from larpo.engines import Engine, Sampling, build_engine
from larpo.hashing import seed_of
from larpo.models.chat import render_prompts
from larpo.models.load import load_tokenizer
from tasks.frame.files import read_part, write_part
from tasks.frame.node import Node, progress, say


class Generator:
    """A checkpoint behind an engine; loaded at the first batch that is not in scratch already."""

    def __init__(self, node: Node, checkpoint: str, params: EngineParams, seed: int):
        self.node, self.checkpoint, self.params, self.seed = node, node.checkpoint(checkpoint), params, seed
        self.tokenizer = load_tokenizer(self.checkpoint)
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = build_engine(self.params, self.checkpoint, self.seed)
            self.node.note(engine=self._engine.facts())
        return self._engine

    def run(self, prompts: pd.DataFrame, sampling: Sampling, tag: str) -> pd.DataFrame:
        """Responses to a `prompts` table: columns prompt_id, index (0..n-1 within its prompt), seed, text,
        prompt_token_ids, token_ids, finish_reason; rows in the order of the prompts.

        `tag` tells apart several runs of one node (temperatures, greedy).
        """
        rendered = render_prompts(self.tokenizer, prompts["messages"].tolist())
        size = self.params.batch_size
        starts = list(range(0, len(prompts), size))
        paths = {s: self.node.scratch / f"{tag}-{s:08d}.part" for s in starts}
        done = {s: part for s in starts if (part := read_part(paths[s])) is not None}
        if done:
            say(f"{self.node.stage}: resuming {tag}, {len(done)} of {len(starts)} batches are there")
        todo = [s for s in starts if s not in done]
        for start in progress(todo, f"{self.node.stage} {tag}", "prompts", lambda s: min(size, len(prompts) - s)):
            batch = rendered[start : start + size]
            completions = self.engine.generate(batch, sampling, seed_of(self.seed, tag, start))
            rows = [
                (prompt_id, index, c.seed, prompt_ids, c.token_ids, c.finish_reason)
                for prompt_id, prompt_ids, many in zip(
                    prompts["prompt_id"].iloc[start : start + size], batch, completions, strict=True
                )
                for index, c in enumerate(many)
            ]
            names = ["prompt_id", "index", "seed", "prompt_token_ids", "token_ids", "finish_reason"]
            write_part(pd.DataFrame(rows, columns=names), paths[start])
        parts = [done[s] if s in done else read_part(paths[s]) for s in starts]
        frame = pd.concat(parts, ignore_index=True)
        frame["text"] = self.tokenizer.batch_decode(frame["token_ids"].tolist(), skip_special_tokens=True)
        return frame
