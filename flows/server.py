"""A Prefect server on this machine that ends with the process that started it.

Whoever can speak to its API can run commands as the user who started it, so it asks for a password, `larpo:` and a
random text, that is new at every start. It stands in files and environments that only this user can read.
"""

import base64
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from larpo.errors import UserError
from larpo.workspace import processes as supervise

HOST = "127.0.0.1"
START_SECONDS = 180.0


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def new_password() -> str:
    return f"larpo:{secrets.token_urlsafe(32)}"


def environment(home: Path, port: int, password: str) -> dict[str, str]:
    """Environment of the server and of what talks to it, whatever the user's settings say; `home` holds the
    database."""
    url = api_url(port)
    return os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_HOST": HOST,
        # A page of another origin gets no answer to read; that of the server's own does not need the permission.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # `prefect deployment run --watch` shows logs, the scores among them, only from a server that streams them.
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        # Leases on slots outlive a server that is killed; kept in memory, a slot would stay taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # SQLite has one writer; a busy machine needs longer than the default ten seconds.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    }


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: a port whose last connections are still in TIME_WAIT can be bound.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def check_port(port: int) -> None:
    if not port_is_free(port):
        raise UserError(f"port {port} on {HOST} is taken by another program; choose another with --port")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def healthy(url: str) -> bool:
    """Whether a Prefect API answers at `url`; a server on this machine is never asked through a proxy."""
    try:
        with _ask(f"{url}/health") as answer:
            return answer.status == 200 and json.load(answer) is True
    except (OSError, ValueError):
        return False


def _ask(url: str, **headers: str) -> http.client.HTTPResponse:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(url, headers=headers), timeout=5)


def check_password(url: str, password: str) -> None:
    """UserError where the API at `url` takes another password than the settings name."""
    try:
        _ask(f"{url}/admin/version", Authorization=f"Basic {base64.b64encode(password.encode()).decode()}").close()
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise UserError(
                f"the Prefect server at {url} refuses PREFECT_API_AUTH_STRING; set it to what the server's "
                ".prefect/auth holds, or unset PREFECT_API_URL for a server of this run's own"
            ) from None
    except OSError:
        pass  # the client waits for a server that is busy, or away for a moment


def make_private(home: Path) -> None:
    """The folder of Prefect's state, which holds parameters, logs and passwords: for this user alone."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)


@contextmanager
def private_file(path: Path, text: str) -> Iterator[None]:
    """A file that only this user can read from its first byte on, for as long as the block lasts."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def running(home: Path, port: int, password: str, ui: bool = True) -> Iterator[subprocess.Popen]:
    """A server on `port`, ready to answer; ended on leaving. Its output goes to server.log in `home`.

    Raises
    ------
    UserError
        The port is taken, or the server ends or does not answer in time.
    """
    check_port(port)
    make_private(home)
    log = home / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with log.open("w") as out:
        process = supervise.start(
            [*command, "--ui" if ui else "--no-ui"],
            env=environment(home, port, password),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not healthy(api_url(port)):
            if process.poll() is not None or time.monotonic() > deadline:
                lines = [line.strip() for line in log.read_text("utf-8").splitlines() if line.strip()]
                cause = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
                raise UserError(f"Prefect's server did not start: {cause} (all of it in {log})")
            time.sleep(0.2)
        yield process
    finally:
        supervise.stop(process)


@contextmanager
def some_server() -> Iterator[str]:
    """The API that the settings name, if it answers; otherwise a server for as long as the run takes."""
    url = PREFECT_API_URL.value()
    if url and (healthy(url) or os.environ.get("PREFECT_API_URL") == url):
        check_password(url, PREFECT_API_AUTH_STRING.value() or "")
        yield url
        return
    home, port, password = Path(os.environ["PREFECT_HOME"]), free_port(), new_password()
    settings = {PREFECT_API_URL: api_url(port), PREFECT_API_AUTH_STRING: password}
    with running(home, port, password, ui=False), temporary_settings(settings):
        try:
            yield api_url(port)
        finally:
            # Both are sent from threads of their own: states of tasks are events.
            APILogHandler().flush()
            EventsWorker.drain_all(timeout=10)
