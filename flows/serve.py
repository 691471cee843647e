"""`python -m flows.serve`: Prefect's server, the work pool `local`, the deployments and a worker."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from flows import project_folder, server, supervise
from larpo.errors import UserError, one_line

POOL = "local"
PROFILE = """\
# Written by flows.serve, removed when it ends.
active = "larpo"

[profiles.larpo]
PREFECT_API_URL = "{}"
"""


@contextlib.contextmanager
def profile(home: Path, url: str) -> Iterator[bool]:
    """Tell `prefect` commands in the project's folder where the server is; False: profiles are the user's."""
    path = home / "profiles.toml"
    ours = not path.exists() or path.read_text("utf-8").startswith(PROFILE.partition("\n")[0])
    if ours:
        path.write_text(PROFILE.format(url), "utf-8")
    try:
        yield ours
    finally:
        if ours:
            path.unlink(missing_ok=True)


def prefect(*arguments: str, project: Path, env: dict[str, str]) -> None:
    """Run one `prefect` command to its end.

    Raises
    ------
    UserError
        It failed; with its last line.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise UserError(f"prefect {' '.join(arguments)}: {lines[-1] if lines else done.returncode}")


def ensure_pool(url: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with (
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
        contextlib.suppress(ObjectAlreadyExists),
    ):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


def serve(project: Path, port: int) -> None:
    """Run until a signal comes or one of the two processes ends.

    Raises
    ------
    UserError
        The port is taken, prefect.yaml is missing, or server or worker end by themselves.
    """
    if not (project / "prefect.yaml").is_file():
        raise UserError(f"{project / 'prefect.yaml'}: not found; run from the project's folder")
    home, url = Path(os.environ["PREFECT_HOME"]), server.api_url(port)
    environment = server.environment(home, port)
    print(f"Starting Prefect's server on {server.HOST}:{port}; log: {home / 'server.log'}", flush=True)
    with server.running(home, port) as running, profile(home, url) as found:
        ensure_pool(url)
        prefect("deploy", "--all", project=project, env=environment)
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        worker = supervise.start(command, cwd=project, env=environment)
        try:
            print(f"Prefect UI: http://{server.HOST}:{port}")
            print("Run it with: prefect deployment run larpo/iterate")
            where = f"outside {project}, or with PREFECT_HOME set" if found else "in another shell"
            print(f"({where}: export PREFECT_API_URL={url})")
            print("Ctrl-C ends server and worker.", flush=True)
            while True:
                time.sleep(0.5)
                for name, process in (("server", running), ("worker", worker)):
                    if process.poll() is not None:
                        raise UserError(f"Prefect's {name} ended by itself with status {process.returncode}")
        finally:
            supervise.stop(worker)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--port", type=int, default=4200, help="of the server on 127.0.0.1 (default 4200)")
    port = parser.parse_args().port

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A second signal while things end is harmless: the supervisors end with this process at the latest.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        serve(project_folder(), port)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    print("Stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
