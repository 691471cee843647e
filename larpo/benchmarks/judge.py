"""Language models as judges, behind any OpenAI-compatible server; every reply is kept and never paid for twice.

Replies lie in a store of append-only JSON lines, keyed by the judge's model and the whole request (whose messages
hold the prompt and the outputs to judge). A killed run goes on with what the store has.
"""

import base64
import errno
import html
import inspect
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, urlparse

from larpo.config.judges import JudgeParams
from larpo.errors import UserError, one_line
from larpo.hashing import digest

NOBODY = "http://recorded.invalid/v1"  # a name that no server ever has (RFC 2606): replies come from the store alone
GONE = 10  # requests without an answer, one after another and each at every attempt: the server is not there
SILENT = 8  # replies without the log-probabilities that were asked for, and none with: the server has none
ROOM = 64 << 10  # bytes kept free per reply under way; one with its request takes a few thousand
PASSING = {408, 409, 429}  # statuses below 500 that are asked again
FINAL = {
    "content_filter": re.compile("content_filter|content_policy_violation"),
    "context_length": re.compile("context_length_exceeded|maximum context length"),
}
"""Refusals of one request for what it holds: an answer too, for it is the same whenever it is asked."""
HALF = re.compile("[\ud800-\udfff]")
MAY_NAME_A_FIELD = (400, 403, 422)
NO_REPLY = {"text": None, "finish_reason": None, "logprobs": None, "tool_calls": None, "usage": None, "model": None}


class NotRecorded(UserError):
    """Some replies are not in the store, and nobody may be asked for them (`NOBODY`)."""


def store_folder() -> Path:
    """Where replies are kept: `LARPO_JUDGEMENTS`, else judgements/ in the working folder."""
    return Path(os.environ.get("LARPO_JUDGEMENTS", "judgements"))


def check_key(params: JudgeParams, name: str) -> None:
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


def as_json(reply: Any) -> str:
    """A reply as JSON text that a table and a file in UTF-8 hold: half of a surrogate pair, which some judges send,
    stays as its escape."""
    text = json.dumps(reply, sort_keys=True, ensure_ascii=False)
    return HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def without_halves(reply: Any) -> Any:
    """A reply for libraries whose tables are UTF-8: U+FFFD in place of half of a surrogate pair."""
    return json.loads(HALF.sub("\ufffd", json.dumps(reply, ensure_ascii=False)))


def body_of(params: JudgeParams, request: dict[str, Any]) -> dict[str, Any]:
    """What is sent for a request: without the fields that the judge drops, others under the names that it takes."""
    taken = {params.rename.get(key, key): value for key, value in request.items() if key not in params.drop}
    return {"model": params.model, **taken, **params.options}


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
        line = as_json({"key": key, "request": request, "reply": reply})
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
    """Sends requests side by side and keeps every reply; the openai client repeats what fails for a passing reason.

    Parameters
    ----------
    params
        See `larpo.config.judges.JudgeParams`.
    store
        Folder of the replies; one file per judge model.
    name
        The judge's name in `judges` of params.yaml, for messages.
    """

    def __init__(self, params: JudgeParams, store: str | Path, name: str = "judge"):
        import openai

        self.params, self.name = params, name
        self._secrets = forms(os.environ.get(params.api_key_env))
        self._client = openai.OpenAI(
            api_key=os.environ.get(params.api_key_env) or "none",
            base_url=params.base_url,
            timeout=params.timeout,
            max_retries=params.attempts - 1,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [_no_completion_is_bad_gateway]}),
        )
        file = re.sub(r"[^A-Za-z0-9._-]+", "_", params.model)[:80] + "-" + digest(params.model, length=6) + ".jsonl"
        self.store = Store(Path(store) / file)

    def complete(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Replies to chat-completions bodies (without `model`), in their order; equal requests are sent once. Progress
        is told on standard error.

        Returns
        -------
        Per request: text, finish_reason, logprobs (as the server sends them, or None), tool_calls, usage, model.

        Raises
        ------
        NotRecorded
            The judge is at `NOBODY`, and the store does not have every reply.
        UserError
            There is no key for a server elsewhere, the server refuses a request, or some fail at every attempt.
            Replies that came are in the store by then. What the store has needs neither key nor server.
        OSError
            The store cannot be written, or its disk is nearly full: nothing is sent whose reply could not be kept.
        """
        bodies = {self.key(r): body_of(self.params, r) for r in requests}
        missing = {key: body for key, body in bodies.items() if key not in self.store.replies}
        if missing and self.params.base_url == NOBODY:
            told = f"{len(missing)} of {len(bodies)} replies of judge {self.name} are not among the recorded ones"
            raise NotRecorded(f"{NOBODY}: {told}")
        if missing:
            check_key(self.params, self.name)
            self._check_logprobs(bodies)
            self._send(missing, bodies)
        return [self.store.replies[self.key(r)] for r in requests]

    def key(self, request: dict[str, Any]) -> str:
        """Identity of a judgement: the judge's model and the whole request, but not where the server is."""
        return digest("judgement", body_of(self.params, request), length=32)

    def _check_logprobs(self, bodies: dict[str, dict[str, Any]]) -> None:
        """Stop, before the rest is paid for, where a server leaves out the log-probabilities that it was asked for."""
        asked = [self.store.replies.get(key, NO_REPLY) for key, body in bodies.items() if body.get("logprobs")]
        told = [reply for reply in asked if reply["text"]]
        if len(told) >= min(SILENT, len(asked)) and told and not any(reply["logprobs"] for reply in told):
            raise UserError(
                f"params.yaml: judges.{self.name}: {self._client.base_url} answers as {self.params.model!r} without "
                f"the log-probabilities that it was asked for ({len(told)} replies); take a server that sends them, "
                "or an annotator that reads text, such as options.annotator: alpaca_eval_gpt4"
            )

    def _send(self, bodies: dict[str, dict[str, Any]], whole: dict[str, dict[str, Any]]) -> None:
        """Fill the store with the replies to `bodies`, which are those of the `whole` that it did not have."""
        done, in_a_row, count = 0, 0, len(whole)
        failed: list[Exception] = []
        refused: list[UserError | OSError] = []
        lock = Lock()

        def send(key: str) -> None:
            nonlocal done, in_a_row
            if refused or in_a_row >= GONE:
                return
            try:
                self.store.check_room(self.params.concurrency)
                reply = self._ask(bodies[key])
                with lock:
                    self.store.add(key, bodies[key], reply)
                    done, in_a_row = done + 1, 0
                    if done % 100 == 0 or done == len(bodies):
                        told = f"judge {self.name}: {done}/{len(bodies)} replies, {count - len(bodies)} were there"
                        print(told, file=sys.stderr, flush=True)
                    if not reply["logprobs"]:
                        self._check_logprobs(whole)
            except (UserError, OSError) as error:
                refused.append(error)  # nothing more is sent; what is under way may still be kept
            except Exception as error:  # noqa: BLE001 - counted, and told below
                with lock:
                    failed.append(error)
                    in_a_row += 1

        with ThreadPoolExecutor(self.params.concurrency) as pool:
            list(pool.map(send, bodies))
        if refused:
            raise refused[0]
        if failed:
            reason = self._without_key(one_line(failed[0]))[:160] or type(failed[0]).__name__
            unsent = len(bodies) - done - len(failed)
            raise UserError(
                f"judge {self.name}: {len(failed)} of {count} requests failed at each of {self.params.attempts} "
                f"attempts ({reason})"
                + (f", {in_a_row} one after another: the last {unsent} were not sent" if unsent else "")
                + f"; {self.store.path} has the answers that came, run again to send only the missing ones"
            )

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """One reply; an error that is no UserError means that it failed at every attempt."""
        import openai

        try:
            reply = _reply(self._client.chat.completions.create(**self._arguments(body)).model_dump())
        except openai.APIStatusError as error:
            for reason, words in FINAL.items() if error.status_code == 400 else ():
                if words.search(f"{error.code} {error.message}"):
                    return {**NO_REPLY, "finish_reason": reason, "model": self.params.model}
            if error.status_code >= 500 or error.status_code in PASSING:
                raise
            field = refused_field(error.body)
            what = f"the field {field!r} for " if field in body else ""
            way = self._way_out(field, body) if error.status_code in MAY_NAME_A_FIELD else ""
            raise UserError(
                f"params.yaml: judges.{self.name}: {self._client.base_url} refuses {what}{self.params.model!r}: "
                f"{error.status_code} {self._without_key(one_line(error.message))[:200]}{way}"
            ) from None
        return json.loads(self._without_key(json.dumps(reply, ensure_ascii=False)))

    def _arguments(self, body: dict[str, Any]) -> dict[str, Any]:
        """`body` for the client, which takes the fields of OpenAI's own server and others apart."""
        known = inspect.signature(self._client.chat.completions.create).parameters
        others = {key: value for key, value in body.items() if key not in known}
        return {k: v for k, v in body.items() if k in known} | {"extra_body": body.get("extra_body", {}) | others}

    def _way_out(self, field: str | None, body: dict[str, Any]) -> str:
        """How to send a request that its server takes, where it does not take `field`, or one that it does not name."""
        if field in self.params.options:
            return f"; take it out of judges.{self.name}.options"
        if field in body and field not in ("model", "messages"):
            own = next((ours for ours, theirs in self.params.rename.items() if theirs == field), field)
            other = "max_completion_tokens" if own.startswith("max_") else "OTHER"
            how = f"judges.{self.name}.drop: [{own}] leaves it out"
            return f"; {how}, judges.{self.name}.rename: {{{own}: {other}}} sends it under another name"
        sent = ", ".join(key for key in body if key not in ("model", "messages"))
        return f"; if it does not take one of {sent}: see judges.{self.name}.drop and rename" if sent else ""

    def _without_key(self, text: str) -> str:
        """What a server said, for files and messages: some repeat the request's headers, and the key with them."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text


def refused_field(body: Any) -> str | None:
    """The field of a request that a refusal names as wrong: `param`, as OpenAI sends it, or the place of the first
    `detail`, as servers made with FastAPI do."""
    if not isinstance(body, dict):
        return None
    detail = body.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        place = detail[0].get("loc")
        return next((p for p in place if p != "body"), None) if isinstance(place, list) else None
    param = body.get("param")
    return re.split(r"[.\[]", param)[0] if isinstance(param, str) else None


def _reply(answer: dict[str, Any]) -> dict[str, Any]:
    """The part of a chat completion that is kept; KeyError, TypeError and the like where it is none."""
    choice = answer["choices"][0]
    message = {"text": choice["message"].get("content"), "tool_calls": choice["message"].get("tool_calls")}
    about = {key: choice.get(key) for key in ("finish_reason", "logprobs")}
    return message | about | {key: answer.get(key) for key in ("usage", "model")}


def _no_completion_is_bad_gateway(response: Any) -> None:
    """A login page, say, in place of a completion is what 502 means; the client then asks again."""
    if response.is_success:
        response.read()
        try:
            _reply(response.json())
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            response.status_code = 502
