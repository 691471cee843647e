"""Resumable generation, shared by the nodes `sample` and `generate`.

Work is cut into batches of `engine.batch_size` prompts. A batch depends on nothing but its prompts and its seed, so the
result is the same however often the node was stopped.
"""

import math

import pandas as pd

from larpo.engines import Engine, Sampling, build_engine
from larpo.engines.check import check_heads
from larpo.errors import ParameterError, UserError
from larpo.hashing import seed_of
from larpo.models.chat import render_prompts
from larpo.models.load import load_tokenizer, positions_of
from larpo.models.remote_code import config_of
from larpo.models.resolve import Checkpoint
from larpo.workspace.progress import say
from tasks.frame.node import Node
from tasks.frame.parts import batches, in_parts

MOST = 0.5
"""Share of responses cut off from which on a line says so: what is sampled is then mostly unfinished."""
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

        def make(start: int, end: int) -> pd.DataFrame:
            completions = self.engine.generate(rendered[start:end], sampling, seed_of(self.node.seed, tag, start))
            if any(c.logp is not None and not math.isfinite(c.logp) for many in completions for c in many):
                raise ParameterError(
                    "engine.dtype",
                    f"the model's logits are not finite in {self.params.dtype}; expected bfloat16 or float32",
                )
            asked = zip(prompts["prompt_id"].iloc[start:end], rendered[start:end], completions, strict=True)
            rows = [
                (prompt_id, index, c.seed, prompt_ids, c.token_ids, c.finish_reason, c.logp)
                for prompt_id, prompt_ids, many in asked
                for index, c in enumerate(many)
            ]
            return pd.DataFrame(rows, columns=COLUMNS).astype({"logp": float})

        frame = in_parts(self.node, batches(len(prompts), self.params.batch_size), make, tag, "prompts")
        frame = frame.reindex(columns=COLUMNS)  # parts from before a column was there hold none
        frame["text"] = self.tokenizer.batch_decode(frame["token_ids"].tolist(), skip_special_tokens=True)
        return frame

    def _check_length(self, prompts: pd.DataFrame, rendered: list[list[int]], new: int) -> None:
        """Refuse prompts that leave no room for an answer, before weights are loaded: beyond its positions a model
        fails in the middle of the work, or answers nonsense without a word."""
        positions = positions_of(self.checkpoint)
        long = [i for i, ids in enumerate(rendered) if positions is not None and len(ids) + new > positions]
        if long:
            first = max(long, key=lambda i: len(rendered[i]))
            what = "items" if "meta" in prompts else "prompts"
            raise UserError(
                f"{self.node.stage}: {len(long)} of {len(prompts)} {what} with max_new_tokens={new} do not fit the "
                f"{positions} positions of {self.checkpoint}; the longest is row {first} "
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
