"""Things that a parameter names: ours by a short name, anybody's own by its module or its file, imported when used.

    REWARDS = Registry("reward", {"exact_match": "larpo.rewards.rules:ExactMatch"})
    REWARDS.load("exact_match")
    with own_code():
        REWARDS.load("mypackage.rewards:Mine")
        REWARDS.load("mine/brief.py:reward")

To look a name up imports nothing, so that a wrong one is refused before a library is loaded. Own code is imported where
somebody says so and nowhere else: a node of the run does, whoever reads the parameters of a stranger's run does not.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from larpo.errors import ParameterError, one_line, unknown

_OWN = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|[^:\s]+\.py):[A-Za-z_]\w*")
_OURS = frozenset({"larpo", "tasks", "flows", "tests"})
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
    plain
        `module:function` that makes a thing of this kind of a plain function of somebody's own.
    """

    def __init__(self, what: str, entries: dict[str, Any], plain: str | None = None):
        self.what, self.entries, self.plain = what, entries, plain

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
            imported = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
            made = getattr(imported, attribute)
            if self.plain is not None and inspect.isfunction(made):
                made = pkgutil.resolve_name(self.plain)(made)
        except Exception as error:  # noqa: BLE001 - whatever an own module raises when it is imported
            raise ParameterError(key, f"{self.what} {name}: cannot be loaded ({one_line(error)[:160]})") from None
        packages.add(imported.__name__.partition(".")[0])
        return made


def _import_file(path: Path) -> ModuleType:
    """A file as a module of its stem's name; what lies beside it can be imported by it."""
    if path.stem in sys.modules and Path(sys.modules[path.stem].__file__ or "").resolve() == path.resolve():
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if path.stem in sys.modules or spec is None or spec.loader is None:
        raise ImportError(f"a module {path.stem!r} is loaded already; give the file another name")
    if (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.append(beside)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


@contextlib.contextmanager
def own_code(folder: Path = Path()) -> Iterator[None]:
    """Let own objects be loaded in this block, from modules in `folder` or installed ones."""
    place, before = str(folder.resolve()), list(sys.path)
    if place not in sys.path:
        sys.path.append(place)
    token = _PACKAGES.set(set())
    try:
        yield
    finally:
        _PACKAGES.reset(token)
        sys.path[:] = before


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
    """Whether a name is one of code that is not ours: `package.module:object` or `folder/file.py:object`."""
    return _OWN.fullmatch(name) is not None


def own_files(name: str, folder: Path = Path()) -> dict[str, Path]:
    """The files that an own object is read from, by their name relative to `folder` (or to where it is installed): its
    module's, and those that this imports from the same place. Nothing is imported to find them; empty where there is
    no such module."""
    module = name.partition(":")[0]
    if module.endswith(".py"):
        start = folder / module
        home = folder if start.resolve().is_relative_to(folder.resolve()) else start.parent
        files = [start] if start.is_file() else []
        homes = (home, start.parent)
    else:
        homes = (folder, *map(Path, sys.path))
        home, files = next(((h, found) for h in homes if (found := _files_of(module, h))), (folder, []))
        homes = (home,)
    installed = None if home == folder else module.partition(".")[0]
    found: dict[str, Path] = {}
    while files:
        file = files.pop()
        relative = file.relative_to(home).as_posix()
        if relative in found:
            continue
        found[relative] = file
        for other in _imports(file, home):
            top = other.partition(".")[0]
            if top not in _OURS and installed in (None, top):
                files += next((f for h in homes if (f := _files_of(other, h))), [])
    return dict(sorted(found.items()))


def _files_of(module: str, home: Path) -> list[Path]:
    """What is read from `home` to import a module: itself and the packages around it."""
    parts = module.split(".")
    stems = [home.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    files = [next((p for p in (s / "__init__.py", s.with_name(s.name + ".py")) if p.is_file()), None) for s in stems]
    return [f for f in files if f] if files[-1] else []


def _imports(file: Path, home: Path) -> set[str]:
    """Modules that a file may import, whatever its functions do when they run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # told when it is imported
    package = list(file.relative_to(home).parent.parts)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names} - {""}
    return {name for name in names if name}
