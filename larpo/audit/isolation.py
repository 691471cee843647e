"""What a stranger's run gets: an audit has no network, an executed node none of your variables either."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest.mock import patch

PASSED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
THREADS = ("OMP_", "MKL_")  # a number's last bits depend on them

refused: list[str] = []
"""Hosts that something in an audit of a stranger's run asked for, in the order of the attempts."""


class Refused(OSError):
    """Nothing is fetched for a stranger's run."""


@contextmanager
def offline(on: bool) -> Iterator[None]:
    """No socket of this process leaves the machine while the block runs: what a stranger's parameters name is not
    fetched. This machine itself may be reached, for Prefect's server is on it."""
    if not on:
        yield
        return
    connect, connect_ex, resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: Any) -> None:
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "localhost")
        try:
            here = ip_address(name.partition("%")[0]).is_loopback
        except ValueError:
            here = name == "localhost"
        if not here:
            refused.append(name)
            raise Refused(f"{name}: nothing is fetched for a run that is not this project's")

    def checked(method: Any) -> Any:
        def connected(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return method(self, address)

        return connected

    def resolved(host: Any, *arguments: Any, **options: Any) -> Any:
        check(host)
        return resolve(host, *arguments, **options)

    with (
        patch.object(socket.socket, "connect", checked(connect)),
        patch.object(socket.socket, "connect_ex", checked(connect_ex)),
        patch.object(socket, "getaddrinfo", resolved),
    ):
        yield


def stripped(environment: dict[str, str], home: Path) -> dict[str, str]:
    """Of `environment` what a program needs to run; no key, no token, no address, and an empty home."""
    passed = {k: v for k, v in environment.items() if k in PASSED or k.startswith(THREADS)}
    return passed | {"HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


@cache
def network_cut() -> tuple[list[str], str]:
    """The words before a command that is to have no network, and what to say of it."""
    # The loopback of a new namespace is down, and some libraries speak to themselves through it.
    words = ["unshare", "-rn", "--", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
    try:
        works = subprocess.run([*words, "true"], env=os.environ, capture_output=True, check=False).returncode == 0
    except OSError:
        works = False
    return (words, "no network") if works else ([], "the network, which this system cannot cut off (`unshare -rn`)")
