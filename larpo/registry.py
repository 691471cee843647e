"""Things that a parameter names: ours by a short name, anybody's own by a dotted path, imported when they are used.

    REWARDS = Registry("reward", {"exact_match": "larpo.rewards.rules:ExactMatch"})
    REWARDS.load("exact_match")
    with own_code():
        REWARDS.load("mypackage.rewards:Mine")

To look a name up imports nothing, so that a wrong one is refused before a library is loaded. Own code is imported where
somebody says so and nowhere else: a node of the run does, whoever reads the parameters of a stranger's run does not.
"""

import contextlib
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from larpo.errors import ParameterError, one_line, unknown

_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PACKAGES: ContextVar[set[str] | None] = ContextVar("own packages that were loaded; None: none may be", default=None)


class OwnCodeError(ParameterError):
    """An object of somebody's own is needed, and its code is not to be run here."""


class Registry(Mapping[str, Any]):
    """Short names of one kind of thing → `module:object`, or the object itself where it is plain data.

    Parameters
    ----------
    what
        The kind, for errors.
    entries
        Ours; a new one is one line here.
    """

    def __init__(self, what: str, entries: dict[str, Any]):
        self.what, self.entries = what, entries

    def __getitem__(self, name: str) -> Any:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def check(self, name: str, key: str = "") -> None:
        """Refuse, as the value of the parameter `key`, a name that is neither ours nor the path of an own object."""
        if name not in self and not is_own(name):
            raise unknown(key, name, list(self))

    def load(self, name: str, key: str = "") -> Any:
        """The object of that name.

        Raises
        ------
        ParameterError
            There is no such name, or an own module cannot be imported, or holds no such object.
        OwnCodeError
            It is an own object, outside of `own_code`.
        """
        self.check(name, key)
        entry = self.entries.get(name, name)
        if not isinstance(entry, str):
            return entry
        module, _, attribute = entry.partition(":")
        if name in self:
            return getattr(importlib.import_module(module), attribute)
        packages = _PACKAGES.get()
        if packages is None:
            raise OwnCodeError(key, f"{self.what} {name} is code of the run's own, which is not run here")
        try:
            made = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # noqa: BLE001 - whatever an own module raises when it is imported
            raise ParameterError(key, f"{self.what} {name}: cannot be loaded ({one_line(error)[:160]})") from None
        packages.add(module.partition(".")[0])
        return made


@contextlib.contextmanager
def own_code(folder: Path = Path()) -> Iterator[None]:
    """Let own objects be loaded in this block, from modules in `folder` or installed ones."""
    place = str(folder.resolve())
    added = place not in sys.path
    if added:
        sys.path.append(place)
    token = _PACKAGES.set(set())
    try:
        yield
    finally:
        _PACKAGES.reset(token)
        if added:
            sys.path.remove(place)


def own_modules() -> dict[str, str]:
    """For a manifest: module → SHA-256 of its file, for what was imported of the packages whose objects were loaded in
    this `own_code`; empty where none was."""
    packages = _PACKAGES.get() or set()
    files = {name: getattr(module, "__file__", None) for name, module in sorted(sys.modules.items())}
    return {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for name, path in files.items()
        if path and name.partition(".")[0] in packages
    }


def is_own(name: str) -> bool:
    """Whether a name is a dotted path, `package.module:object`, of code that is not ours."""
    return _OWN.fullmatch(name) is not None


def own_file(name: str, folder: Path = Path()) -> Path | None:
    """The file in `folder` that an own object's module is read from; None where it is installed elsewhere. Nothing is
    imported to find it."""
    stem = folder.joinpath(*name.partition(":")[0].split("."))
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
