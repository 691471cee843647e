"""Code that a checkpoint brings along: which files, whether they may run, and that nothing runs in their place.

A configuration names classes of such code in its `auto_map`, and transformers imports their files where it is called
with `trust_remote_code`. Here that is true for an *admitted* checkpoint alone. Who admits one has read params.yaml:
`policy.trust_remote_code` and `reward.trust_remote_code` are permissions, and nothing in a checkpoint grants them. What
the code does is part of the result by its bytes, which lie beside the weights; the permission is part of no result.

    checkpoint = admit("data/policy/0", "policy.trust_remote_code", granted=True)     # else one line
    AutoModelForCausalLM.from_pretrained(checkpoint.source, trust_remote_code=trust(checkpoint, CAUSAL_LM))
    settle("data/policy/1", checkpoint)                               # after a save: the code is in it, whole

transformers copies the files into a cache that every project of a user shares, and imports them from there. `trust`
puts an empty folder of this process in its place, so that no copy of another version, by whomever, is what runs.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from larpo.errors import UserError
from larpo.models.resolve import Checkpoint, Code, Model, of

# transformers' Auto classes by which checkpoints are loaded here; a model with a head may build its body by AutoModel.
CAUSAL_LM = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
CLASSIFIER = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
TOKENIZER = ("AutoTokenizer",)
EVERY = (*CAUSAL_LM, "AutoModelForSequenceClassification", *TOKENIZER)
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
GENERATE = "custom_generate/generate.py"
MODULES = "transformers_modules"  # the package that transformers imports such code as
_NAME = re.compile(r"[A-Za-z_][\w-]*")
Reference = tuple[str, str]


# What runs -----------------------------------------------------------------------------------------------------------


def admit(
    model: Model,
    parameter: str,
    granted: bool,
    *,
    where: str | None = None,
    classes: Sequence[str] = EVERY,
    native: bool = False,
    within: Path | None = None,
) -> Checkpoint:
    """The checkpoint, and its code, if it brings some, may run where it is loaded by these classes. Nothing runs here.

    Parameters
    ----------
    parameter, granted
        The key of params.yaml that decides, and its value.
    where
        How errors name the checkpoint; default: by its place.
    native
        Without the permission take a checkpoint nonetheless for whose code transformers has classes of the same names:
        the library's are loaded, as its users expect, and what is saved then names no code.
    within
        Where the folder is made that the code is imported from; None: among the system's temporary ones.

    Raises
    ------
    UserError
        It brings code and the permission is not granted, or files that it needs are not in it.
    """
    checkpoint = of(model)
    brought = references(checkpoint, classes)
    if not brought:
        return checkpoint
    if granted:
        files = _files(checkpoint, brought, where or str(checkpoint))
    elif native and _stands_in(checkpoint, brought):
        files = {}
    else:
        raise UserError(
            f"{where or checkpoint}: brings custom code ({names_of(brought)}), and {parameter} is false, so nothing of "
            f"it was run; read that code and set {parameter}: true in params.yaml, or name another model"
        )
    return replace(checkpoint, code=Code(parameter, classes, files, within))


def trust(model: Model, classes: Sequence[str]) -> bool:
    """What to hand to `from_pretrained` as `trust_remote_code` for these Auto classes: never None, at which
    transformers asks at the terminal.

    Raises
    ------
    UserError
        There is code that was not admitted with this checkpoint, or it is no longer what was admitted.
    """
    checkpoint = of(model)
    brought, code = references(checkpoint, classes), checkpoint.code
    if not brought:
        return False
    if code is None:
        raise UserError(
            f"{checkpoint}: brings custom code ({names_of(brought)}), which runs only where params.yaml says so; see "
            "policy.trust_remote_code and reward.trust_remote_code"
        )
    if not code.files:
        return False
    if _files(checkpoint, references(checkpoint, code.classes), str(checkpoint)) != code.files:
        raise UserError(
            f"{checkpoint}: its code ({names_of(brought)}) has changed since the node started; start it again"
        )
    _import_from(code.modules)
    return True


def settle(folder: Path, *sources: Checkpoint) -> Checkpoint:
    """Make a checkpoint that was just saved whole: every file of the admitted code of `sources` is in it, though
    transformers saves only those of the classes that it loaded, and it names no class whose file is not in it. The code
    of the last source may run in it then."""
    codes = [source.code for source in sources if source.code is not None]
    for code in codes:
        for name, content in code.files.items():
            (folder / name).write_bytes(content)
    for path in (folder / CONFIG, folder / TOKENIZER_CONFIG):
        raw = _json(path)
        named = raw.pop("auto_map", None)
        if named is None:
            continue
        known = named if isinstance(named, dict) else {"AutoTokenizer": named}
        kept = {auto: refs for auto, refs in known.items() if all(_is_in(folder, ref) for ref in _several(refs))}
        if kept != named:
            raw |= {"auto_map": kept} if kept else {}
            path.write_text(json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    return Checkpoint(str(folder), code=codes[-1] if codes and codes[-1].files else None)


def record(checkpoints: Iterable[Checkpoint]) -> dict[str, dict[str, str]]:
    """For a manifest: by parameter, the SHA-256 of each file of code that may run; empty where none may."""
    hashes: dict[str, dict[str, str]] = {}
    for code in (checkpoint.code for checkpoint in checkpoints):
        if code is not None and code.files:
            hashes.setdefault(code.parameter, {}).update(hashes_of(code.files))
    return hashes


def _import_from(modules: Path) -> None:
    """Let transformers import code from that folder."""
    from transformers import dynamic_module_utils

    if str(modules) == dynamic_module_utils.HF_MODULES_CACHE:
        return
    dynamic_module_utils.HF_MODULES_CACHE = str(modules)
    os.environ["HF_MODULES_CACHE"] = str(modules)  # for processes that an engine starts
    for name in [name for name in sys.modules if name.partition(".")[0] == MODULES]:
        del sys.modules[name]
    # First, or a folder `transformers_modules` in the working folder would be what their imports of each other find.
    sys.path.insert(0, str(modules))


# What a checkpoint brings ---------------------------------------------------------------------------------------------


def references(model: Model, classes: Sequence[str] = EVERY) -> list[Reference]:
    """(Auto class, `[repository--]module.Class`) of the code that a checkpoint brings for these classes; what is no
    such text is there as it is, for a refusal to name. Of a hub id the configuration is fetched, and no code; a GGUF
    brings none."""
    checkpoint, found = of(model), []
    if "gguf_file" in checkpoint.options:
        return []
    config = config_of(checkpoint)
    # transformers may read another file in place of config.json, by its own version.
    others = config.get("configuration_files")
    others = [name for name in others if isinstance(name, str)] if isinstance(others, list) else []
    for name in (CONFIG, *others, TOKENIZER_CONFIG):
        named = (config if name == CONFIG else _json(_fetch(checkpoint, name))).get("auto_map")
        if isinstance(named, list) and name == TOKENIZER_CONFIG:
            named = {"AutoTokenizer": named}  # an older form: slow and fast class
        for auto, refs in (named if isinstance(named, dict) else {"AutoConfig": named}).items():
            found += [(auto, str(ref)) for ref in _several(refs) if auto in classes]
    return list(dict.fromkeys(found))


def needs_code(model: Model) -> bool:
    """Whether a checkpoint brings code for which transformers has no classes of the same names."""
    brought = references(model)
    return bool(brought) and not _stands_in(of(model), brought)


def names_of(brought: Sequence[Reference]) -> str:
    """The files that references name, for messages."""
    return ", ".join(dict.fromkeys(f"{ref.rpartition('--')[2].partition('.')[0]}.py" for _, ref in brought))


def hashes_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Files of code that a folder brings, by name; UserError where one that it names is not in it."""
    brought = references(folder)
    return _files(of(folder), brought, str(folder)) if brought else {}


def _several(refs: Any) -> list[Any]:
    return [ref for ref in (refs if isinstance(refs, list | tuple) else [refs]) if ref is not None]


def _is_in(folder: Path, ref: Any) -> bool:
    return isinstance(ref, str) and (folder / f"{ref.partition('.')[0]}.py").is_file()


def _json(path: Path | None) -> dict[str, Any]:
    """A configuration; empty where transformers could not read it either, and will say so."""
    try:
        raw = json.loads(Path(path).read_text("utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its config.json; empty where there is none that can be read."""
    return _json(_fetch(checkpoint, CONFIG))


def _fetch(checkpoint: Checkpoint, name: str) -> Path | None:
    """Where a file of a checkpoint lies, None where it has no such file; of a hub id the file is fetched."""
    if Path(checkpoint).is_dir():
        return path if (path := Path(checkpoint, name)).is_file() else None
    from transformers.utils import cached_file

    try:
        path = cached_file(
            checkpoint.source,
            name,
            revision=checkpoint.options.get("revision"),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such repository or name: told by what loads it
        return None
    return Path(path) if path else None


def _files(checkpoint: Checkpoint, brought: Sequence[Reference], where: str) -> dict[str, bytes]:
    """The files that references name and, from these, what they import beside them; refused where one is elsewhere."""
    from transformers.dynamic_module_utils import get_relative_imports

    files: dict[str, bytes] = {}
    if _fetch(checkpoint, GENERATE) is not None:
        raise UserError(f"{where}: {GENERATE} would replace how responses are drawn; expected a checkpoint without it")
    todo = []
    for auto, ref in brought:
        repository, _, rest = ref.rpartition("--")
        module, _, name = rest.partition(".")
        if repository not in ("", checkpoint.source) or not _NAME.fullmatch(module) or not name.isidentifier():
            raise UserError(
                f"{where}: auto_map names {ref!r} for {auto}; expected MODULE.CLASS of a file beside the weights, for "
                "no revision and no hash here reaches code elsewhere"
            )
        todo.append(module)
    while todo:
        module = todo.pop()
        if f"{module}.py" in files:
            continue
        path = _fetch(checkpoint, f"{module}.py") if _NAME.fullmatch(module) else None
        if path is None:
            raise UserError(f"{where}: its code needs {module}.py, which is not beside its weights")
        files[f"{module}.py"] = path.read_bytes()
        try:
            todo += get_relative_imports(path)
        except UnicodeDecodeError:
            raise UserError(f"{where}: {module}.py is not text") from None
    return files


def _stands_in(checkpoint: Checkpoint, brought: Sequence[Reference]) -> bool:
    """Whether transformers has classes of the names that the code has, as for models that came before the library
    knew them. Another name is another model: the library's class would be taken without a word."""
    from transformers.models.auto import configuration_auto, modeling_auto

    kind = config_of(checkpoint).get("model_type")
    ours = {
        "AutoConfig": configuration_auto.CONFIG_MAPPING_NAMES,
        "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    return isinstance(kind, str) and all(
        str(ours.get(auto, {}).get(kind)).lower() == ref.rpartition(".")[2].lower() for auto, ref in brought
    )
