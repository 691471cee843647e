"""Nodes that start warm: one process imports the heavy libraries once, every node is a fork of it.

Importing torch and transformers takes seconds; the small experiments of studies/ run hundreds of nodes that compute for
less. With LARPO_WARM=SOCKET in the environment `python -m tasks.NODE` hands its arguments, folder, environment and
standard streams to the server behind SOCKET and ends with the node's exit status. The node's own code is read afresh
in the fork, so nothing stale runs; only libraries are shared. Without a server a node starts as usual.

The node ends when its client ends, however that happens: its end of the connection is then closed.
"""

import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "LARPO_WARM"
LIBRARIES = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "accelerate",
    "pandas",
    "pyarrow.parquet",
    "numpy",
    "scipy.stats",
    "yaml",
    "pydantic",
    "typer",
    "psutil",
    "dvclive",
    "datasets",
    "reasoning_gym",
    "math_verify",
    "sklearn.linear_model",
)
START_SECONDS = 120.0
_LENGTH = struct.Struct("!I")


def delegate(address: str) -> None:
    """In a node's own process: let the server behind `address` run it, and end with its status.

    Returns, so that the node runs here, where no server answers.
    """
    module = sys.orig_argv[2] if sys.orig_argv[1:2] == ["-m"] else ""
    if not module.startswith("tasks.") or module == __name__:
        return
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        return
    request = {"module": module, "argv": sys.orig_argv[3:], "cwd": os.getcwd(), "env": dict(os.environ)}
    body = json.dumps(request).encode()
    sys.stdout.flush()
    socket.send_fds(connection, [_LENGTH.pack(len(body))], [0, 1, 2])
    connection.sendall(body)
    answer = _receive(connection, _LENGTH.size)
    # No answer: the node was killed.
    os._exit(_LENGTH.unpack(answer)[0] if answer else 128 + signal.SIGKILL)


@contextlib.contextmanager
def server(
    environment: dict[str, str] | None = None, libraries: tuple[str, ...] = LIBRARIES
) -> Iterator[dict[str, str]]:
    """A server for as long as the block runs; yields the variables that make nodes use it.

    `environment` is what its libraries read when they are imported, such as OMP_NUM_THREADS.
    """
    with tempfile.TemporaryDirectory(prefix="larpo-warm-") as folder:
        address = f"{folder}/socket"  # the folder is readable by its owner alone
        command = [sys.executable, "-m", "tasks.frame.warm", address, *libraries]
        process = subprocess.Popen(
            command, env=os.environ | (environment or {}), stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not Path(address).exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server of warm nodes did not start ({process.poll()})")
                time.sleep(0.05)
            yield {VARIABLE: address}
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the server ends with its owner; a node ends with its client
            process.wait(30)


def serve(address: str, *libraries: str) -> None:
    """Import the libraries, then answer requests until standard input, which the owner holds, is closed."""
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen()
    os.rename(address + ".new", address)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if 0 in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(connection)
            connection.close()


def _run(connection: socket.socket) -> None:
    """In the fork: become the node. Never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
        request = json.loads(_receive(connection, _LENGTH.unpack(head)[0]))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        threading.Thread(target=_end_with_client, args=[connection], daemon=True).start()
        status = _become(request)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the client must hear of it
        print(f"error: {error!r}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(_LENGTH.pack(status))
        os._exit(status)


def _become(request: dict[str, Any]) -> int:
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ.pop(VARIABLE, None)
    for name in [n for n in sys.modules if n.split(".")[0] in ("larpo", "tasks")]:
        del sys.modules[name]
    sys.path[0] = request["cwd"]
    importlib.invalidate_caches()
    sys.argv = [request["module"], *request["argv"]]
    sys.orig_argv = [sys.executable, "-m", request["module"], *request["argv"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # noqa: BLE001 - as an interpreter ends on an uncaught error
        import traceback

        traceback.print_exc()
        return 1
    return 0


def _end_with_client(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.recv(1)  # returns when the client is gone: it never sends more
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)


def _receive(connection: socket.socket, count: int) -> bytes:
    """`count` bytes, or none where the other side is gone."""
    parts = b""
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            return b""
        parts += part
    return parts


if __name__ == "__main__":
    serve(*sys.argv[1:])
