"""Language models as judges, behind any OpenAI-compatible server; every reply is kept and never paid for twice.

Replies lie in a store of append-only JSON lines, keyed by the judge's model and the whole request (whose messages
hold the prompt and the outputs to judge). A killed run goes on with what the store has.
"""

from __future__ import annotations

import base64
import errno
import html
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlparse

from larpo.errors import UserError, one_line
from larpo.hashing import digest

LONGEST_PAUSE, LONGEST_ASKED = 60.0, 600.0  # seconds, by ourselves and where the server asks for more
GONE = 10  # requests without an answer, one after another and each at every attempt: the server is not there
ROOM = 64 << 10  # bytes kept free per reply under way; one with its request takes a few thousand
RETRIED = {408, 409, 429}
FINAL = {
    "content_filter": re.compile("content_filter|content_policy_violation"),
    "context_length": re.compile("context_length_exceeded|maximum context length"),
}
"""Refusals of one request for what it holds: an answer too, for it is the same whenever it is asked."""
NO_REPLY = {"text": None, "finish_reason": None, "logprobs": None, "tool_calls": None, "usage": None, "model": None}


class JudgeSettings(Protocol):
    """What `larpo.config.sections.JudgeParams` holds."""

    model: str
    base_url: str | None
    api_key_env: str
    concurrency: int
    attempts: int
    timeout: float
    options: dict[str, Any]


def store_folder() -> Path:
    """Where replies are kept: `LARPO_JUDGEMENTS`, else judgements/ in the working folder."""
    return Path(os.environ.get("LARPO_JUDGEMENTS", "judgements"))


def check_key(params: JudgeSettings, name: str) -> None:
    """Refuse, before anything is generated or sent, a judge on another machine without a key."""
    host = urlparse(params.base_url).hostname if params.base_url else None
    if not os.environ.get(params.api_key_env) and host not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(
            f"params.yaml: judges.{name}.api_key_env: the environment variable {params.api_key_env} is not set; "
            f"{params.base_url or 'the OpenAI API'} needs a key"
        )


def forms(key: str | None) -> list[str]:
    """A key in every form that a server might repeat it in, longest first; none for a key that is missing or so short
    that it would stand in any text."""
    if key is None or len(key) < 8:
        return []
    encoded = [base64.b64encode(part.encode()).decode() for part in (key, f"Bearer {key}")]
    told = [key, quote(key, safe=""), json.dumps(key)[1:-1], html.escape(key), *encoded]
    return sorted({*told, *(e.rstrip("=") for e in encoded)}, key=len, reverse=True)


class Store:
    """Replies by key in one file. Each is one line, written by one call, so that several processes can append and a
    kill leaves at most its last line unreadable, which is then asked for again."""

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text("utf-8", errors="replace").split("\n"):
                try:
                    entry = json.loads(line)
                    self.replies[entry["key"]] = entry["reply"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a kill cut short

    def add(self, key: str, request: dict[str, Any], reply: dict[str, Any]) -> None:
        """Keep a reply, on the disk when this returns; OSError where it cannot be kept."""
        line = json.dumps({"key": key, "request": request, "reply": reply}, ensure_ascii=False)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            whole = (("\n" if torn else "") + line + "\n").encode("utf-8")
            if os.write(handle, whole) < len(whole):  # the last bytes of a disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(handle)
        finally:
            os.close(handle)
        self.replies[key] = reply

    def check_room(self, replies: int) -> None:
        """OSError where the file cannot be written or the disk is about to be full: before a reply is paid for."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644))
        if shutil.disk_usage(self.path.parent).free < replies * ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


class JudgeClient:
    """Sends requests side by side, repeats those that failed for a passing reason, and keeps every reply.

    Parameters
    ----------
    params
        See `larpo.config.sections.JudgeParams`.
    store
        Folder of the replies; one file per judge model.
    name
        The judge's name in `judges` of params.yaml, for messages.
    pause
        Seconds before the second try; doubled before each further one.
    """

    def __init__(self, params: JudgeSettings, store: str | Path, name: str = "judge", pause: float = 1.0):
        import openai

        self.params, self.name, self.pause = params, name, pause
        self._secrets = forms(os.environ.get(params.api_key_env))
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=os.environ.get(params.api_key_env) or "none",
            base_url=params.base_url,
            timeout=params.timeout,
            max_retries=0,
        )
        file = re.sub(r"[^A-Za-z0-9._-]+", "_", params.model)[:80] + "-" + digest(params.model, length=6) + ".jsonl"
        self.store = Store(Path(store) / file)

    def complete(
        self, requests: list[dict[str, Any]], say: Callable[[str], None] | None = None
    ) -> list[dict[str, Any]]:
        """Replies to chat-completions bodies (without `model`), in their order; equal requests are sent once.

        Returns
        -------
        Per request: text, finish_reason, logprobs (as the server sends them, or None), tool_calls, usage, model.

        Raises
        ------
        UserError
            There is no key for a server elsewhere, the server refuses a request, or some fail at every attempt.
            Replies that came are in the store by then. What the store has needs neither key nor server.
        OSError
            The store cannot be written, or its disk is nearly full: nothing is sent whose reply could not be kept.
        """
        bodies = {self.key(r): self._body(r) for r in requests}
        todo = [key for key in bodies if key not in self.store.replies]
        if todo:
            check_key(self.params, self.name)
            self.store.check_room(self.params.concurrency)
        failed: list[Exception] = []
        refused: UserError | OSError | None = None
        done = in_a_row = 0
        with ThreadPoolExecutor(self.params.concurrency) as pool:
            waiting: dict[Future, str] = {}
            queue = iter(todo)
            exhausted = False
            while waiting or not exhausted:
                exhausted = exhausted or refused is not None or in_a_row >= GONE
                while not exhausted and len(waiting) < self.params.concurrency:
                    key = next(queue, None)
                    if key is None:
                        exhausted = True
                        break
                    try:
                        self.store.check_room(self.params.concurrency)
                    except OSError as error:
                        refused, exhausted = error, True
                    else:
                        waiting[pool.submit(self._ask, bodies[key])] = key
                for future in wait(waiting, return_when=FIRST_COMPLETED).done if waiting else ():
                    key = waiting.pop(future)
                    try:
                        reply = future.result()
                    except UserError as error:
                        refused = error
                        continue
                    except Exception as error:  # noqa: BLE001 - counted, and told below
                        failed.append(error)
                        in_a_row += 1
                        continue
                    try:
                        self.store.add(key, bodies[key], reply)
                    except OSError as error:
                        refused = error  # nothing more is sent; what is under way may still find room
                        continue
                    done, in_a_row = done + 1, 0
                    if say and (done % 100 == 0 or done == len(todo)):
                        say(f"judge {self.name}: {done}/{len(todo)} replies, {len(bodies) - len(todo)} were there")
        if refused is not None:
            raise refused
        if failed:
            reason = self._without_key(one_line(failed[0]))[:160] or type(failed[0]).__name__
            unsent = len(todo) - done - len(failed)
            raise UserError(
                f"judge {self.name}: {len(failed)} of {len(bodies)} requests failed at each of {self.params.attempts} "
                f"attempts ({reason})"
                + (f", {in_a_row} one after another: the last {unsent} were not sent" if unsent else "")
                + f"; {self.store.path} has the answers that came, run again to send only the missing ones"
            )
        return [self.store.replies[self.key(r)] for r in requests]

    def key(self, request: dict[str, Any]) -> str:
        """Identity of a judgement: the judge's model and the whole request, but not where the server is."""
        return digest("judgement", self._body(request), length=32)

    def _body(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"model": self.params.model, **request, **self.params.options}

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """One reply, after as many attempts as it takes."""
        for attempt in range(1, self.params.attempts + 1):
            try:
                reply = _reply(self._client.chat.completions.create(**body).model_dump(mode="json"))
                return json.loads(self._without_key(json.dumps(reply, ensure_ascii=False)))
            except self._openai.APIStatusError as error:
                told = f"{error.code} {error.message}"
                for reason, words in FINAL.items() if error.status_code == 400 else ():
                    if words.search(told):
                        return {**NO_REPLY, "finish_reason": reason, "model": self.params.model}
                if error.status_code < 500 and error.status_code not in RETRIED:
                    raise UserError(
                        f"params.yaml: judges.{self.name}: {self._client.base_url} refuses {self.params.model!r}: "
                        f"{error.status_code} {self._without_key(one_line(error.message))[:200]}"
                    ) from None
                if attempt == self.params.attempts:
                    raise
                # Rates are counted over a minute: the pauses must outlast it.
                scale = 4 if error.status_code == 429 else 1
                self._rest(attempt, error.response.headers.get("retry-after"), scale)
            except (self._openai.APIError, ValueError, LookupError, AttributeError, TypeError):
                # No connection, no answer in time, or an answer that is no chat completion.
                if attempt == self.params.attempts:
                    raise
                self._rest(attempt, None)
        raise AssertionError("unreachable: attempts ≥ 1")

    def _without_key(self, text: str) -> str:
        """What a server said, for files and messages: some repeat the request's headers, and the key with them."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def _rest(self, attempt: int, asked: str | None, scale: int = 1) -> None:
        seconds = min(self.pause * scale * 2 ** (attempt - 1) * (1 + random.random() / 4), LONGEST_PAUSE)
        if asked is not None and re.fullmatch(r"\d+(\.\d+)?", asked):
            seconds = max(seconds, min(float(asked), LONGEST_ASKED))
        time.sleep(seconds)


def _reply(answer: dict[str, Any]) -> dict[str, Any]:
    """The part of a chat completion that is kept; KeyError or TypeError where it is none."""
    choice = answer["choices"][0]
    message = choice["message"]
    return {
        "text": message.get("content"),
        "finish_reason": choice.get("finish_reason"),
        "logprobs": choice.get("logprobs"),
        "tool_calls": message.get("tool_calls"),
        "usage": answer.get("usage"),
        "model": answer.get("model"),
    }
