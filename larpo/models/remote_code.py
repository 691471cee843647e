"""Code that a checkpoint brings along: which files, whether they may run, and that nothing runs in their place.

A configuration names classes of such code in its `auto_map`, and transformers imports their files where it is called
with `trust_remote_code`. Here that is true for an *admitted* checkpoint alone. Who admits one has read params.yaml:
`policy.trust_remote_code` and `reward.trust_remote_code` are permissions, and nothing in a checkpoint grants them. What
the code does is part of the result by its bytes, which lie beside the weights; the permission is part of no result.

    admit("data/policy/0", "policy.trust_remote_code", granted=True)     # else one line
    AutoModelForCausalLM.from_pretrained("data/policy/0", trust_remote_code=trust("data/policy/0", CAUSAL_LM))
    settle("data/policy/1")                                              # after a save: the code is in it, whole

transformers copies the files into a cache that every project of a user shares, and imports them from there. `trust`
puts an empty folder of this process in its place, so that no copy of another version, by whomever, is what runs.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpo.errors import UserError

# transformers' Auto classes by which checkpoints are loaded here; a model with a head may build its body by AutoModel.
CAUSAL_LM = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
CLASSIFIER = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
TOKENIZER = ("AutoTokenizer",)
EVERY = (*CAUSAL_LM, "AutoModelForSequenceClassification", *TOKENIZER)
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
GENERATE = "custom_generate/generate.py"
MODULES = "transformers_modules"  # the package that transformers imports such code as
_NAME = re.compile(r"[A-Za-z_][\w-]*")
Fetch = Callable[[str], Path | None]


@dataclass(frozen=True)
class Admitted:
    """Code that may run: the parameter that says so, the Auto classes that it is for, and the files by name. No files:
    transformers' own classes of the same names stand in for it."""

    parameter: str
    classes: Sequence[str]
    files: dict[str, bytes]


_admitted: dict[str, Admitted] = {}
_within: Path | None = None
_modules: Path | None = None


def begin() -> None:
    """Forget what was admitted and imported, as at the start of a node; other files of the same names may follow."""
    global _within, _modules
    _admitted.clear()
    _within = None
    if _modules is not None:
        sys.path[:] = [p for p in sys.path if p != str(_modules)]
        shutil.rmtree(_modules, ignore_errors=True)
        _modules = None
        _unload()


def keep_in(folder: Path) -> None:
    """Where the folder is made that code is imported from; else in the system's temporary folder."""
    global _within
    _within = folder


def references(source: str | Path, classes: Sequence[str] = EVERY, **options: Any) -> list[tuple[str, str]]:
    """(Auto class, `[repository--]module.Class`) of the code that a checkpoint brings for these classes; what is no
    such text is there as it is, for a refusal to name.

    Parameters
    ----------
    source
        A folder or a hub id. Of a hub id the configuration is fetched, and no code.
    options
        Those of `from_pretrained`; a GGUF (`gguf_file`) brings no code.
    """
    if "gguf_file" in options:
        return []
    fetch, found = _fetcher(source, options), []
    config = _json(fetch(CONFIG))
    # transformers may read another file in place of config.json, by its own version.
    others = config.get("configuration_files")
    others = [name for name in others if isinstance(name, str)] if isinstance(others, list) else []
    for name in (CONFIG, *others, TOKENIZER_CONFIG):
        named = (config if name == CONFIG else _json(fetch(name))).get("auto_map")
        if isinstance(named, list) and name == TOKENIZER_CONFIG:
            named = {"AutoTokenizer": named}  # an older form: slow and fast class
        for auto, refs in (named if isinstance(named, dict) else {"AutoConfig": named}).items():
            refs = refs if isinstance(refs, list) else [refs]
            found += [(auto, str(ref)) for ref in refs if ref is not None and auto in classes]
    return list(dict.fromkeys(found))


def needs_code(source: str | Path, classes: Sequence[str] = EVERY, **options: Any) -> bool:
    """Whether a checkpoint brings code for which transformers has no classes of the same names."""
    found = references(source, classes, **options)
    return bool(found) and not _stands_in(source, found, options)


def names_of(found: Sequence[tuple[str, str]]) -> str:
    """The files that references name, for messages."""
    return ", ".join(dict.fromkeys(f"{ref.rpartition('--')[2].partition('.')[0]}.py" for _, ref in found))


def permitted(
    source: str | Path,
    parameter: str,
    granted: bool,
    *,
    where: str | None = None,
    classes: Sequence[str] = EVERY,
    native: bool = False,
    **options: Any,
) -> list[tuple[str, str]]:
    """The references whose code will run where a checkpoint is loaded by these classes; empty where none will.

    Parameters
    ----------
    parameter, granted
        The key of params.yaml that decides, and its value.
    where
        How errors name the checkpoint; default: by its place.
    native
        Without the permission take a checkpoint nonetheless for whose code transformers has classes of the same names:
        the library's are loaded, as its users expect, and what is saved then names no code.
    options
        Those of `from_pretrained`.

    Raises
    ------
    UserError
        It brings code and the permission is not granted.
    """
    found = references(source, classes, **options)
    if granted or not found:
        return found
    if native and _stands_in(source, found, options):
        return []
    raise UserError(
        f"{where or source}: brings custom code ({names_of(found)}), and {parameter} is false, so nothing of it was "
        f"run; read that code and set {parameter}: true in params.yaml, or name another model"
    )


def admit(
    source: str | Path,
    parameter: str,
    granted: bool,
    *,
    where: str | None = None,
    classes: Sequence[str] = EVERY,
    native: bool = False,
    **options: Any,
) -> None:
    """Let the code of a checkpoint run in this process, if it brings some, until the next `begin`; as `permitted`, and
    UserError where files that it needs are not in the checkpoint."""
    runs = permitted(source, parameter, granted, where=where, classes=classes, native=native, **options)
    if runs or references(source, classes, **options):
        files = _files(source, runs, where or str(source), options) if runs else {}
        _admitted[_key(source)] = Admitted(parameter, classes, files)


def trust(source: str | Path, classes: Sequence[str], **options: Any) -> bool:
    """What to hand to `from_pretrained` as `trust_remote_code` for these Auto classes: never None, at which
    transformers asks at the terminal.

    Raises
    ------
    UserError
        There is code that nobody admitted, or it is no longer what was admitted.
    """
    found = references(source, classes, **options)
    if not found:
        return False
    known = _admitted.get(_key(source))
    if known is None:
        raise UserError(
            f"{source}: brings custom code ({names_of(found)}), which runs only where params.yaml says so; see "
            "policy.trust_remote_code and reward.trust_remote_code"
        )
    if not known.files:
        return False
    if _files(source, references(source, known.classes, **options), str(source), options) != known.files:
        raise UserError(f"{source}: its code ({names_of(found)}) has changed since the node started; start it again")
    _own_modules()
    return True


def admitted() -> dict[str, dict[str, str]]:
    """For a manifest: by parameter, the SHA-256 of each file of code that was let run; empty where none was."""
    found: dict[str, dict[str, str]] = {}
    for known in _admitted.values():
        if known.files:
            found.setdefault(known.parameter, {}).update(hashes_of(known.files))
    return found


def hashes_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Files of code that a folder brings, by name; UserError where one that it names is not in it."""
    found = references(folder)
    return _files(folder, found, str(folder), {}) if found else {}


def settle(folder: Path) -> None:
    """Make a checkpoint that was just saved whole: every file of admitted code is in it, though transformers saves
    only those of the classes that it loaded, and it names no class whose file is not in it. It is admitted then."""
    for known in list(_admitted.values()):
        for name, content in known.files.items():
            (folder / name).write_bytes(content)
            _admitted[_key(folder)] = known
    for path in (folder / CONFIG, folder / TOKENIZER_CONFIG):
        raw = _json(path)
        named = raw.get("auto_map")
        if named is None:
            continue
        named = named if isinstance(named, dict) else {"AutoTokenizer": named}
        kept = {auto: refs for auto, refs in named.items() if all(_is_in(folder, ref) for ref in _several(refs))}
        if kept != raw["auto_map"]:
            raw = {key: value for key, value in raw.items() if key != "auto_map"} | ({"auto_map": kept} if kept else {})
            path.write_text(json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _several(refs: Any) -> list[Any]:
    return [ref for ref in (refs if isinstance(refs, list | tuple) else [refs]) if ref is not None]


def _is_in(folder: Path, ref: Any) -> bool:
    return isinstance(ref, str) and (folder / f"{ref.partition('.')[0]}.py").is_file()


def _key(source: str | Path) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def _json(path: Path | None) -> dict[str, Any]:
    """A configuration; empty where transformers could not read it either, and will say so."""
    try:
        raw = json.loads(Path(path).read_text("utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _fetcher(source: str | Path, options: dict[str, Any]) -> Fetch:
    """Where a file of a checkpoint lies, None where it has no such file; of a hub id the file is fetched."""
    if Path(source).is_dir():
        return lambda name: path if (path := Path(source) / name).is_file() else None
    from transformers.utils import cached_file

    def fetch(name: str) -> Path | None:
        try:
            found = cached_file(
                str(source),
                name,
                revision=options.get("revision"),
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except (OSError, ValueError):  # no such repository or name: told by what loads it
            return None
        return Path(found) if found else None

    return fetch


def _files(
    source: str | Path, found: Sequence[tuple[str, str]], where: str, options: dict[str, Any]
) -> dict[str, bytes]:
    """The files that references name and, from these, what they import beside them; refused where one is elsewhere."""
    from transformers.dynamic_module_utils import get_relative_imports

    fetch, files = _fetcher(source, options), {}
    if fetch(GENERATE) is not None:
        raise UserError(f"{where}: {GENERATE} would replace how responses are drawn; expected a checkpoint without it")
    todo = []
    for auto, ref in found:
        repository, _, rest = ref.rpartition("--")
        module, _, name = rest.partition(".")
        if repository not in ("", str(source)) or not _NAME.fullmatch(module) or not name.isidentifier():
            raise UserError(
                f"{where}: auto_map names {ref!r} for {auto}; expected MODULE.CLASS of a file beside the weights, for "
                "no revision and no hash here reaches code elsewhere"
            )
        todo.append(module)
    while todo:
        module = todo.pop()
        if f"{module}.py" in files:
            continue
        path = fetch(f"{module}.py") if _NAME.fullmatch(module) else None
        if path is None:
            raise UserError(f"{where}: its code needs {module}.py, which is not beside its weights")
        files[f"{module}.py"] = path.read_bytes()
        try:
            todo += get_relative_imports(path)
        except UnicodeDecodeError:
            raise UserError(f"{where}: {module}.py is not text") from None
    return files


def _stands_in(source: str | Path, found: Sequence[tuple[str, str]], options: dict[str, Any]) -> bool:
    """Whether transformers has classes of the names that the code has, as for models that came before the library
    knew them. Another name is another model: the library's class would be taken without a word."""
    from transformers.models.auto import configuration_auto, modeling_auto

    kind = _json(_fetcher(source, options)(CONFIG)).get("model_type")
    ours = {
        "AutoConfig": configuration_auto.CONFIG_MAPPING_NAMES,
        "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    return isinstance(kind, str) and all(
        str(ours.get(auto, {}).get(kind)).lower() == ref.rpartition(".")[2].lower() for auto, ref in found
    )


def _own_modules() -> None:
    """Let transformers import code from an empty folder of this process."""
    global _modules
    if _modules is not None:
        return
    from transformers import dynamic_module_utils

    _modules = Path(tempfile.mkdtemp(prefix="modules-", dir=_within)).resolve()
    atexit.register(shutil.rmtree, _modules, ignore_errors=True)
    _unload()
    # First, or a folder `transformers_modules` in the working folder would be what their imports of each other find.
    sys.path.insert(0, str(_modules))
    dynamic_module_utils.HF_MODULES_CACHE = str(_modules)
    os.environ["HF_MODULES_CACHE"] = str(_modules)  # for processes that an engine starts


def _unload() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == MODULES]:
        del sys.modules[name]
