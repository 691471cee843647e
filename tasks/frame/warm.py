"""Nodes that start warm: one process imports the libraries once, every node is a fork of it.

Importing torch and transformers takes seconds, a quarter of the time of a graph of small nodes. A node that DVC runs
hands its arguments, folder, environment and standard streams to a server and ends with the node's exit status. The
node's own code is read afresh in the fork, so nothing stale runs; only libraries are shared, and a server whose
libraries have changed on disk serves no more.

Each DVC process has a server of its own (one per environment and limits of the processes that it runs), started by its
first node. The server listens on a socket in a folder that only this user can read, and ends with DVC. A node ends when
its client ends, however that happens: its end of the connection is then closed.

LARPO_WARM=SOCKET names a server that serves many DVC processes (`server`); LARPO_WARM= makes nodes start cold. So they
do where DVC does not run them, and on a machine with a GPU, whose driver's state a fork must not inherit.
"""

import contextlib
import hashlib
import importlib
import json
import os
import resource
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "LARPO_WARM"
LIGHT = ("pandas", "pyarrow.parquet", "pydantic", "typer", "yaml", "psutil", "filelock", "torch")
HEAVY = (
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "accelerate",
    "datasets",
    "dvclive",
    "scipy.stats",
    "reasoning_gym",
    "math_verify",
    "sklearn.linear_model",
    "altair",
)
"""Imported before the first node whose stage says that it is heavy."""
PER_STAGE = ("DVC_STAGE", "SHLVL", "OLDPWD", "_")  # variables that no library reads
GPUS = ("/dev/nvidiactl", "/dev/kfd")
PATIENCE = 30.0  # seconds that a client may take to say what it wants
TAKEN = b"+"
_LENGTH = struct.Struct("!I")


def delegate(dvc: int) -> None:
    """In a node's own process: let a server run it, and end with its status.

    Returns, so that the node runs here, where no server is to, or can.

    Parameters
    ----------
    dvc
        Process id of the DVC that runs the node; 0: none does.
    """
    module = sys.orig_argv[2] if sys.orig_argv[1:2] == ["-m"] else ""
    if not module.startswith("tasks."):
        return
    address, environment = os.environ.get(VARIABLE), dict(os.environ)
    os.environ[VARIABLE] = ""  # processes that a node starts begin cold
    connection = None
    with contextlib.suppress(OSError):
        if address:
            connection = _connect(address)
        elif address is None and dvc and hasattr(os, "pidfd_open") and not _has_gpu():
            connection = _connect_to_own(dvc)
    if connection is None:
        return
    request = {"module": module, "argv": sys.orig_argv[3:], "cwd": os.getcwd(), "env": environment}
    body = json.dumps(request).encode()
    sys.stdout.flush()
    taken = answer = b""
    with connection, contextlib.suppress(OSError):
        socket.send_fds(connection, [_LENGTH.pack(len(body))], [0, 1, 2])
        connection.sendall(body)
        taken = _receive(connection, len(TAKEN))
        answer = _receive(connection, _LENGTH.size)
    if not taken:
        return
    # No answer: the node was killed.
    os._exit(_LENGTH.unpack(answer)[0] if answer else 128 + signal.SIGKILL)


def _has_gpu() -> bool:
    return any(map(os.path.exists, GPUS))


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _connect_to_own(dvc: int) -> socket.socket | None:
    """To the server of this DVC process, started where there is none yet; None where nothing private is to be had."""
    folder = Path(tempfile.gettempdir(), f"larpo-warm-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or about.st_uid != os.getuid() or about.st_mode & 0o077:
        return None
    environment = {name: value for name, value in os.environ.items() if name not in PER_STAGE}
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    os.umask(mask := os.umask(0o077))
    started = Path(f"/proc/{dvc}/stat").read_text().rpartition(")")[2].split()[19]
    here = [os.stat(f"/proc/self/ns/{name}").st_ino for name in ("pid", "mnt", "net")]
    process = [sorted(environment.items()), limits, mask, sorted(os.sched_getaffinity(0)), os.nice(0), sys.executable]
    name = hashlib.sha256(repr([dvc, started, here, process]).encode()).hexdigest()[:24]
    address = f"{folder}/{name}"
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # none, or what is left of one
        return _connect(address)
    _start(address, os.pidfd_open(dvc), subprocess.DEVNULL, {}, LIGHT)
    return _connect(address)


def _start(
    address: str, owner: int, output: int | None, environment: dict[str, str], libraries: tuple[str, ...]
) -> subprocess.Popen:
    """A server that answers at `address` from now on, until `owner` (a descriptor) can be read or is at its end."""
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        return subprocess.Popen(
            [sys.executable, "-m", __name__, address, str(listener.fileno()), *libraries],
            # Not to be taken for a node.
            env={name: value for name, value in (os.environ | environment).items() if name != "DVC_STAGE"},
            cwd=Path(__file__).parents[2],
            pass_fds=[listener.fileno()],
            stdin=owner,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@contextlib.contextmanager
def server(
    environment: dict[str, str] | None = None, libraries: tuple[str, ...] = (*LIGHT, *HEAVY)
) -> Iterator[dict[str, str]]:
    """A server for as long as the block runs; yields the variables that make nodes use it.

    `environment` is what its libraries read when they are imported, such as OMP_NUM_THREADS.
    """
    if _has_gpu():
        yield {VARIABLE: ""}
        return
    with tempfile.TemporaryDirectory(prefix="larpo-warm-") as folder:  # readable by its owner alone
        process = _start(f"{folder}/socket", subprocess.PIPE, None, environment or {}, libraries)
        try:
            yield {VARIABLE: f"{folder}/socket"}
        finally:
            process.kill()
            process.communicate()


def serve(address: str, listening: str, *libraries: str) -> None:
    """Import the libraries, then answer requests until standard input, which the owner holds, is at its end."""
    importlib.import_module("larpo")  # sets the streams, which a fork cannot
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    imported = _import(libraries)
    listener = socket.socket(fileno=int(listening))
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while 0 not in {key.fileobj for key, _ in selector.select()}:
            if any(_version(path) != version for path, version in imported.items()):
                Path(address).unlink(missing_ok=True)
                selector.unregister(listener)
                listener.close()  # who waits at it starts cold
                continue
            connection, _ = listener.accept()
            # A client may be killed at any moment of this.
            with contextlib.suppress(OSError, ValueError, struct.error), connection:
                connection.settimeout(PATIENCE)
                head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
                try:
                    request = json.loads(_receive(connection, _LENGTH.unpack(head)[0]))
                    connection.settimeout(None)
                    if _is_heavy(request):
                        imported |= _import(HEAVY)
                    if os.fork() == 0:
                        listener.close()
                        _run(connection, request, streams)
                finally:
                    for stream in streams:
                        os.close(stream)
    Path(address).unlink(missing_ok=True)


def _import(libraries: tuple[str, ...]) -> dict[str, tuple[int, int] | None]:
    """Import what is there; returns the version of every file that this process has imported from."""
    for name in libraries:
        if select.select([0], [], [], 0)[0]:
            break  # the owner is gone
        with contextlib.suppress(Exception):  # a node that needs it will say why it cannot be imported
            importlib.import_module(name)
    found = (getattr(module, "__file__", None) for name, module in sys.modules.items() if not _is_own(name))
    return {path: _version(path) for path in found if path}


def _version(path: str) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


def _is_own(name: str) -> bool:
    return name.split(".")[0] in ("larpo", "tasks")


def _is_heavy(request: dict[str, Any]) -> bool:
    if HEAVY[0] in sys.modules:
        return False
    import yaml

    kind = request["module"].split(".")[1]
    stage = yaml.safe_load(Path(request["cwd"], "dvc.yaml").read_text("utf-8"))["stages"].get(kind, {})
    return bool(stage.get("do", stage).get("meta", {}).get("heavy"))


def _run(connection: socket.socket, request: dict[str, Any], streams: list[int]) -> None:
    """In the fork: become the node. Never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        connection.sendall(TAKEN)
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
    os.environ.update(request["env"] | {VARIABLE: ""})
    for name in [n for n in sys.modules if _is_own(n)]:
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
