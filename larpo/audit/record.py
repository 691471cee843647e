"""What of a node's manifest the audit reads, and its shape: the manifest may have been written by anyone."""

from typing import Any

from pydantic import BaseModel, Field


class Source(BaseModel):
    """As larpo.sources.provenance writes it. `files`: of the run's own code, path → MD5."""

    name: str
    kind: str
    version: str | None
    licence: str | None = None
    hash: str | None
    files: dict[str, str] = {}

    @property
    def fact(self) -> tuple[str | None, ...]:
        """What it is, whatever else is said of it."""
        return self.kind, self.name, self.version, self.hash

    @property
    def paths(self) -> list[str]:
        """The files and folders that it is, as parameters name them."""
        return list(self.files) if self.kind == "code" else [self.name] if self.kind in ("file", "folder") else []


class Notes(BaseModel):
    sources: list[Source] = []
    remote_code: dict[str, dict[str, str]] = {}  # parameter → file → SHA-256 of the code that was let run
    engine: dict[str, Any] | None = None
    origin: str | None = None
    model: str | None = None
    exactness: float | None = Field(None, ge=0)  # of larpo.training.exactness, nats per token
    drift: dict[str, float] | None = None  # larpo.training.drift.Drift
    weights_changed: float | None = Field(None, ge=0, le=1)


class GitState(BaseModel):
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40,64}$")  # else it could be an option of git's
    dirty: bool | None = None
    changed: list[str] | None = None


class Hardware(BaseModel):
    system: str | None = None
    machine: str | None = None
    cpu: str | None = None
    cores: int | None = None
    memory_bytes: int = 0
    gpus: list[str] = []


class Manifest(BaseModel):
    """A node's record of itself; what else it holds is not looked at."""

    node: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    params: dict[str, Any]
    git: GitState = GitState()
    notes: Notes = Notes()
    rows: dict[str, Any] = {}
    packages: dict[str, str] = {}
    hardware: Hardware = Hardware()
    seed: int | None = None
    started: str | None = None
    seconds: float = Field(0, ge=0, allow_inf_nan=False)
    resumed: bool = False
    peak_memory_bytes: int = 0

    @property
    def remote_code(self) -> dict[str, str]:
        """SHA-256 by file of the code of checkpoints that the node says it let run."""
        return {name: digest for files in self.notes.remote_code.values() for name, digest in files.items()}


UNREADABLE = Manifest(node="", inputs={}, outputs={}, params={})
"""In the place of a manifest that is not there or has another shape; the check `manifests` names it."""
