"""Run nodes with `dvc repro` and say what DVC did with them."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from larpo.workspace.dvc import COMMAND, environment
from larpo.workspace.mend import mend
from larpo.workspace.processes import Commands

Outcome = Literal["ran", "restored", "up-to-date"]
# What DVC says about a stage, before the stage's own command has printed anything.
VERDICTS: list[tuple[Outcome, str]] = [
    ("up-to-date", "Stage '{}' didn't change, skipping"),
    ("restored", "Stage '{}' is cached - skipping run, checking out outputs"),
    ("ran", "Running stage '{}':"),
]
LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
EXITED = re.compile(r"^ERROR: failed to reproduce .* exited with (-?\d+)")
# What DVC advises after every command; said of every node it would be most of a run's log.
HINT = re.compile(
    r"To track the changes with git|To enable auto staging|\s+git add |\s+dvc config core.autostage|Use `dvc push` to"
)
LOCK_WAIT_SECONDS = 3600.0
BAD_INPUT = 2  # exit status of a command that refuses its input (tasks/frame/node.py)


class NodeFailed(Exception):
    """A node ended with an error; the message is the node's own last line."""


class BadInput(NodeFailed):
    """The node refused its input: the same input will be refused again."""


@dataclass(frozen=True)
class Done:
    outcome: Outcome
    seconds: float


class Output:
    """Reads line by line what `dvc repro` prints of `nodes`, and remembers what matters."""

    def __init__(self, *nodes: str):
        self.verdicts = {text.format(name): (name, outcome) for outcome, text in VERDICTS for name in nodes}
        self.outcomes: dict[str, Outcome] = {}
        self.node = nodes[0]
        self.exit_status: int | None = None
        self.last = self.refusal = self.complaint = ""
        self.locked = False

    @property
    def outcome(self) -> Outcome | None:
        """Of the node that DVC came to last."""
        return self.outcomes.get(self.node)

    def read(self, line: str) -> None:
        name, outcome = self.verdicts.get(line, ("", None))
        if outcome and name not in self.outcomes:
            self.node, self.outcomes[name] = name, outcome
        if exited := EXITED.match(line):
            self.exit_status = int(exited[1])
        elif line.startswith("error:"):
            self.refusal = line.removeprefix("error:").strip()
        if line.startswith("ERROR:"):
            self.complaint = line.removeprefix("ERROR:").strip()
            self.locked |= bool(LOCKED.search(line))
        elif line.strip():
            self.last = line.strip()

    def failure(self, status: int) -> NodeFailed:
        """The error to raise: what the node said, or what DVC said where the node never started."""
        if self.outcome != "ran":
            return BadInput(f"{self.node}: {self.complaint or self.last or f'dvc ended with {status}'}")
        reason = self.refusal or self.last or self.complaint
        if self.exit_status == BAD_INPUT:
            return BadInput(f"{self.node}: {reason}")
        return NodeFailed(f"{self.node}: {reason} (exit status {self.exit_status})")


class Repro:
    """Runs nodes of the DVC project in `folder`; `stop` ends those that run and refuses further ones.

    Runs that `commands` are shared by are stopped together. `variables` are added to the nodes' environment.
    """

    def __init__(self, folder: str | Path, commands: Commands | None = None, variables: dict[str, str] | None = None):
        self.folder = Path(folder).resolve()
        self.commands, self.variables = commands or Commands(), variables or {}
        self.made: list[str] = []  # nodes that ran to their end
        self.failures: list[NodeFailed] = []

    def run(self, node: str, say: Callable[[str], None] = print) -> Done:
        """Bring one node up to date, and nothing that it needs, handing each output line to `say`.

        Waits while another DVC command holds the project's lock.

        Raises
        ------
        BadInput, NodeFailed, Stopped
        """
        start = time.monotonic()
        output = self._repro([node], ["--single-item"], say)
        if output.outcome is None:
            raise RuntimeError(f"{node}: dvc did not say whether the stage ran; expected a line of VERDICTS")
        return Done(output.outcome, time.monotonic() - start)

    def run_all(self, nodes: Sequence[str], say: Callable[[str], None] = print) -> None:
        """Bring nodes up to date with all that they need, by one command; raises and waits as `run` does."""
        self._repro(nodes, [], say)

    def _repro(self, nodes: Sequence[str], options: list[str], say: Callable[[str], None]) -> Output:
        command = [*COMMAND, "repro", *options, *nodes]
        start, delay = time.monotonic(), 0.5
        while True:
            for line in mend(self.folder):
                say(line)
            output = Output(*nodes)

            def hear(line: str, output: Output = output) -> None:
                output.read(line)
                if not HINT.match(line):
                    say(line)

            status = self.commands.run(command, self.folder, environment() | self.variables, hear)
            ran = [node for node, outcome in output.outcomes.items() if outcome == "ran"]
            self.made += [node for node in ran if status == 0 or node != output.node]
            if status == 0:
                return output
            if not output.locked or time.monotonic() - start > LOCK_WAIT_SECONDS:
                self.failures.append(output.failure(status))
                raise self.failures[-1]
            say(f"{output.node}: another dvc command holds the project, next try in {delay:.1f} s")
            self.commands.stopping.wait(delay)
            delay = min(2 * delay, 15.0)

    def stop(self) -> None:
        """End every running node with all its processes; nodes asked for later are refused."""
        self.commands.stop()
