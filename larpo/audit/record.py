"""What of a node's manifest the audit reads, and its shape: the manifest may have been written by anyone."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Source(BaseModel):
    """As larpo.sources.provenance writes it."""

    name: str
    kind: str
    version: str | None
    licence: str | None
    hash: str | None


class Notes(BaseModel):
    sources: list[Source] = []
    remote_code: dict[str, dict[str, str]] = {}  # as larpo.models.remote_code.record


class GitState(BaseModel):
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{7,64}$")  # else it could be an option of git's
    dirty: bool | None = None
    changed: list[str] = []


class Hardware(BaseModel):
    system: str | None = None
    machine: str | None = None
    cpu: str | None = None
    cores: int | None = None
    memory_bytes: int = 0
    gpus: list[str] = []


class Record(BaseModel):
    """A manifest; what else it holds is not looked at."""

    node: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    params: dict[str, Any]
    git: GitState = GitState()
    notes: Notes = Notes()
    rows: dict[str, Any] = {}
    packages: dict[str, str] = {}
    hardware: Hardware = Hardware()
    seconds: float = Field(0, ge=0, allow_inf_nan=False)
    peak_memory_bytes: int = 0
