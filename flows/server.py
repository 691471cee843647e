"""A Prefect server on this machine that ends with the process that started it."""

import json
import os
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
from prefect.settings import PREFECT_API_URL, temporary_settings

from larpo.errors import UserError
from larpo.workspace import processes as supervise

HOST = "127.0.0.1"
START_SECONDS = 180.0


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def environment(home: Path, port: int) -> dict[str, str]:
    """Environment of the server and of what talks to it; `home` holds the database."""
    url = api_url(port)
    return os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        # Whatever the user's settings say: who can reach the API can run the flows, and it asks for no password.
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
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
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as answer:
            return answer.status == 200 and json.load(answer) is True
    except (OSError, ValueError, urllib.error.URLError):
        return False


@contextmanager
def running(home: Path, port: int, ui: bool = True) -> Iterator[subprocess.Popen]:
    """A server on `port`, ready to answer; ended on leaving. Its output goes to server.log in `home`.

    Raises
    ------
    UserError
        The port is taken, or the server ends or does not answer in time.
    """
    check_port(port)
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with log.open("w") as out:
        process = supervise.start(
            [*command, "--ui" if ui else "--no-ui"], env=environment(home, port), stdout=out, stderr=subprocess.STDOUT
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
        yield url
        return
    home = Path(os.environ["PREFECT_HOME"])
    port = free_port()
    with running(home, port, ui=False), temporary_settings({PREFECT_API_URL: api_url(port)}):
        try:
            yield api_url(port)
        finally:
            # Both are sent from threads of their own: states of tasks are events.
            APILogHandler().flush()
            EventsWorker.drain_all(timeout=10)
