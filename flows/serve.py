"""`python -m flows.serve`: Prefect's server, the work pool `local`, the deployments and a worker."""

import argparse
import contextlib
import inspect
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import project_folder  # first: sets what Prefect reads on import

# isort: split
from griffe import Docstring, DocstringSectionKind, Parser, parse
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from flows import server
from flows.audit import larpo_audit
from flows.run import larpo
from flows.study import larpo_study
from larpo.errors import MachineError, UserError, one_line
from larpo.studies.expand import names
from larpo.workspace import processes as supervise
from larpo.workspace.lock import Lock

POOL, AUTH = "local", "auth"
PROFILE = """\
# Written by flows.serve, removed when it ends.
active = "larpo"

[profiles.larpo]
PREFECT_API_URL = "{}"
PREFECT_API_AUTH_STRING = "{}"
"""


@contextlib.contextmanager
def profile(home: Path, url: str, password: str) -> Iterator[bool]:
    """Tell `prefect` commands in the project's folder where the server is, with its password; the file `auth` holds it
    for others; False: profiles are the user's."""
    path = home / "profiles.toml"
    ours = not path.exists() or path.read_text("utf-8").startswith(PROFILE.partition("\n")[0])
    with contextlib.ExitStack() as files:
        files.enter_context(server.private_file(home / AUTH, password))
        if ours:
            files.enter_context(server.private_file(path, PROFILE.format(url, password)))
        yield ours


def job_template(project: Path) -> dict[str, Any]:
    """Of the pool: what a run executes, and where, is fixed; a run or a deployment can set neither command, environment
    nor folder (`job_variables`)."""
    template = ProcessWorker.get_default_base_job_template()
    fixed = {"command": None, "env": {}, "working_dir": str(project)}
    template["job_configuration"] |= fixed
    template["variables"]["properties"] = {
        name: spec for name, spec in template["variables"]["properties"].items() if name not in fixed
    }
    return template


def deployments(project: Path) -> list[RunnerDeployment]:
    """`larpo/iterate`, `larpo-audit/default`, and `larpo-study/NAME` for each file in studies/."""
    named: list[tuple[Any, str, dict[str, Any]]] = [(larpo, "iterate", {}), (larpo_audit, "default", {})]
    named += [(larpo_study, study, {"name": study}) for study in names(project / "studies")]
    return [
        documented(
            RunnerDeployment.from_flow(
                flow, name, parameters=parameters, work_pool_name=POOL, entrypoint_type=EntrypointType.MODULE_PATH
            ),
            flow,
        )
        for flow, name, parameters in named
    ]


def documented(deployment: RunnerDeployment, flow: Flow) -> RunnerDeployment:
    """The deployment, its parameters described by the flow's docstring, as the UI's form shows them; Prefect reads
    docstrings of another style only."""
    # Types are in the signature, where it does not look.
    for section in parse(Docstring(inspect.cleandoc(flow.fn.__doc__ or "")), Parser.numpy, warn_missing_types=False):
        for one in section.value if section.kind is DocstringSectionKind.parameters else []:
            for name in one.name.split(", "):
                deployment._parameter_openapi_schema.properties[name]["description"] = " ".join(one.description.split())
    return deployment


def deploy(project: Path) -> None:
    """Tell the server of the pool and of the deployments."""
    template = job_template(project)
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:  # of an earlier start, perhaps of an earlier version
            client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    for deployment in deployments(project):
        deployment.apply()


def end_abandoned() -> list[str]:
    """Give runs that a killed worker, server or machine left as running their end; returns their names.

    No worker of the pool is alive when this is called, so nothing would ever change their state.
    """
    open_states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    message = "Its worker or server was killed. Run it again: nodes that were finished are up to date."
    with get_client(sync_client=True) as client:
        abandoned = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_states))),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        )
        for run in abandoned:
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    return [run.name for run in abandoned]


def serve(project: Path, port: int) -> None:
    """Run until a signal comes or one of the two processes ends.

    Raises
    ------
    UserError
        The port is taken, dvc.yaml is missing, or server or worker end by themselves.
    MachineError
        Another process serves this project.
    """
    if not (project / "dvc.yaml").is_file():
        raise UserError(f"{project / 'dvc.yaml'}: not found; run from the project's folder")
    home, url, password = Path(os.environ["PREFECT_HOME"]), server.api_url(port), server.new_password()
    environment = server.environment(home, port, password)
    server.check_port(port)
    only = Lock(home / "serve.lock", "the service (make serve)")
    only.acquire(wait=2.0)
    print(f"Starting Prefect's server on {server.HOST}:{port}; log: {home / 'server.log'}", flush=True)
    with (
        server.running(home, port, password) as running,
        profile(home, url, password) as ours,
        temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}),
    ):
        for name in end_abandoned():
            print(f"Run {name} was still open, from a service that was killed: its state is now Crashed")
        deploy(project)
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        worker = supervise.start(command, cwd=project, env=environment)
        try:
            print(f"Prefect UI: http://{server.HOST}:{port}; it asks for what {home / AUTH} holds")
            print("Run it with: prefect deployment run larpo/iterate")
            where = f"outside {project}, or with PREFECT_HOME set" if ours else "in another shell"
            print(f'({where}: export PREFECT_API_URL={url} PREFECT_API_AUTH_STRING="$(cat {home / AUTH})")')
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
    supervise.end_on_signals()
    try:
        serve(project_folder(), port)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    print("Stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
