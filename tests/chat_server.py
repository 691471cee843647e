"""A real HTTP server on loopback that speaks the chat-completions protocol, with faults on demand."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = dict[str, Any]
"""{"status": 429, "retry_after": 0.1, "message": …, "code": …, "param": …, "detail": …}
| {"sleep": s} | {"drop": True} | {"body": "<html>"}"""


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing is printed of a client that closes its connection, beside what the client itself has to say."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ChatServer:
    """`with ChatServer(answer) as server:` serves at `server.url`.

    `answer(body)` returns the message's text, or a dict that replaces fields of the choice (logprobs, message, …).
    `faults` are used up one per request, before any request is answered. `bodies` holds every request seen.
    """

    def __init__(self, answer: Callable[[dict], str | dict], faults: list[Fault] | None = None, delay: float = 0.0):
        self.answer, self.faults, self.delay = answer, list(faults or []), delay
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.answered = 0
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def __enter__(self) -> ChatServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    outer.bodies.append(body)
                    outer.keys.append(self.headers.get("authorization"))
                    fault = outer.faults.pop(0) if outer.faults else {}
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                try:
                    self.reply(body, fault)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up
                finally:
                    with outer._lock:
                        outer._now -= 1

            def reply(self, body: dict, fault: Fault) -> None:
                time.sleep(fault.get("sleep", outer.delay))
                if fault.get("drop"):
                    self.close_connection = True
                    self.connection.close()
                    return
                if "body" in fault:
                    self.send(200, fault["body"].encode())
                    return
                if "status" in fault:
                    error = {"message": fault.get("message", "no"), "type": "t"}
                    error = {"error": error | {key: fault.get(key) for key in ("code", "param")}}
                    error = {"detail": fault["detail"]} if "detail" in fault else error
                    after = {"retry-after": str(fault["retry_after"])} if "retry_after" in fault else {}
                    self.send(fault["status"], json.dumps(error).encode(), after)
                    return
                told = outer.answer(body)
                told = {"message": {"role": "assistant", "content": told}} if isinstance(told, str) else told
                choice = {"index": 0, "finish_reason": "stop", "logprobs": None} | told
                usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
                full = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [choice],
                    "usage": usage,
                }
                self.send(200, json.dumps(full).encode())
                with outer._lock:
                    outer.answered += 1

            def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in ({"content-type": "application/json"} | (headers or {})).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
