"""Prompt and response as a reward model reads them: token ids, left-cut prompts, batches by length.

chat:  the model's own chat template over [*messages, assistant: response], one BOS
pair:  [CLS] prompt [SEP] response [SEP], for encoders without a template
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


def plain(messages: Messages) -> str:
    """A conversation without a template: the text of its only user message (after a system message, if any), else a
    line per turn with its role."""
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return "\n".join(m["content"] for m in messages)
    return "\n".join(f"{_ROLES.get(m['role'], m['role'])}: {m['content']}" for m in messages)


@dataclass(frozen=True)
class Encoded:
    """One sequence. `cut` prompt tokens were left out; `excess` response tokens do not fit even without a prompt."""

    ids: list[int]
    type_ids: list[int] | None = None
    cut: int = 0
    excess: int = 0


class Encoder:
    """Encodes (messages, response) in at most `max_length` tokens.

    A prompt that is too long loses its beginning, for its end is what the response answers. A response is never cut:
    where it does not fit, `excess` says by how much.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, where: str = "data/reward"):
        self.tokenizer, self.max_length, self.where = tokenizer, max_length, where
        self.format = "chat" if tokenizer.chat_template else "pair"
        tokenizer.truncation_side = "left"
        tokenizer.model_max_length = max(tokenizer.model_max_length, 10**9)  # lengths are checked here, not warned of

    def __call__(self, messages: Messages, text: str) -> Encoded:
        return self._chat(messages, text) if self.format == "chat" else self._pair(messages, text)

    def _chat(self, messages: Messages, text: str) -> Encoded:
        whole = self._ids(self._render([*messages, {"role": "assistant", "content": text}], False))
        prompt = self._ids(self._render(messages, True))
        # Where the prompt ends; a template that rewrites turns ends it earlier, which cuts less.
        end = next((i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), None)
        end = min(len(whole), len(prompt)) if end is None else end
        bos = self.tokenizer.bos_token_id
        first = 1 if whole and bos is not None and whole[0] == bos else 0
        over = len(whole) - self.max_length
        if over <= 0:
            return Encoded(whole)
        cut = min(over, max(end - first, 0))
        return Encoded(whole[:first] + whole[first + cut :], cut=cut, excess=over - cut)

    def _render(self, messages: Messages, open_turn: bool) -> str:
        from larpo.models.chat import apply_template

        return apply_template(self.tokenizer, messages, self.where, add_generation_prompt=open_turn)

    def _ids(self, text: str) -> list[int]:
        """Token ids with exactly one BOS: the template may write it, the tokenizer may add it, or both."""
        bos = self.tokenizer.bos_token
        wrote = bool(bos) and text.startswith(bos)
        ids = self.tokenizer(text[len(bos) :] if wrote else text)["input_ids"]
        if wrote and ids[:1] != [self.tokenizer.bos_token_id]:
            ids = [self.tokenizer.bos_token_id, *ids]
        return ids

    def _pair(self, messages: Messages, text: str) -> Encoded:
        prompt = plain(messages)
        found = self.tokenizer(prompt, text)
        over = len(found["input_ids"]) - self.max_length
        if over <= 0:
            return Encoded(found["input_ids"], found.get("token_type_ids"))
        asked = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if over >= asked:
            return Encoded(found["input_ids"], found.get("token_type_ids"), cut=asked, excess=max(over - asked, 1))
        found = self.tokenizer(prompt, text, truncation="only_first", max_length=self.max_length)
        return Encoded(found["input_ids"], found.get("token_type_ids"), cut=over)


def batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Positions in batches of similar length, longest first; a batch padded to its longest has at most `batch_tokens`
    tokens (or is a single sequence)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    out: list[list[int]] = []
    for i in order:
        if out and (len(out[-1]) + 1) * lengths[out[-1][0]] <= batch_tokens:
            out[-1].append(i)
        else:
            out.append([i])
    return out
