"""Parameters of a run that differ from params.yaml: sections laid over it, iterations, an objective, `key=value`."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from larpo.config.overlays import lay_all
from larpo.config.params import parse_params
from larpo.errors import UserError
from larpo.load import check_params

PARAMS = "params.yaml"


def changed_params(
    folder: str | Path,
    iterations: int | None = None,
    objective: str | None = None,
    overrides: Sequence[str] | None = None,
    overlays: Sequence[str] | None = None,
) -> str | None:
    """The text of params.yaml with the changes applied and checked; None where they change nothing.

    `overlays` are files with sections, which come first. `iterations` keeps the first N, or adds further ones with the
    last one's settings, and has their policies evaluated. `overrides` are `key=value` as for `dvc exp run -S`; a key
    that the file leaves at its default may be set without Hydra's `+`.

    Raises
    ------
    UserError
        An unknown key or a value that larpo.load refuses; nothing has been written.
    """
    from dvc.utils.hydra import apply_overrides
    from dvc.utils.serialize import dump_yaml, load_yaml, modify_yaml

    path = Path(folder) / PARAMS
    if not path.is_file():
        raise UserError(f"{path}: not found; run from the project's folder, where {PARAMS} lies")
    before = load_yaml(path)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / PARAMS
        shutil.copyfile(path, copy)
        if overlays:
            with modify_yaml(copy) as raw:
                laid = lay_all(raw, overlays)
                raw.clear()
                raw.update(laid)
        if iterations is not None:
            _set_iterations(copy, iterations)
        wanted = [*([f"train.objective={objective}"] if objective else []), *_plain(overrides or [])]
        if any(":" in text for text in wanted):
            # In braces DVC writes a text such as `mine.py:reward` as nobody can read it: a line for each key, then.
            dump_yaml(copy, load_yaml(copy))
        if wanted:
            try:
                apply_overrides(copy, ["++" + x if x[0] not in "+~" else x for x in wanted])
            except Exception as error:  # noqa: BLE001 (Hydra and OmegaConf raise many types for a wrong override)
                cause = error.__cause__ or error
                raise UserError(f"override of {PARAMS}: {str(cause).strip().splitlines()[0]}") from None
        after = load_yaml(copy)
        check_params(parse_params(after, PARAMS), PARAMS)
        return None if after == before else copy.read_text("utf-8")


def _plain(overrides: Sequence[str]) -> Sequence[str]:
    """Refuse what is no single `key=value` (or `~key`)."""
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.errors import OverrideParseException

    for text in overrides:
        try:
            (parsed,) = to_hydra_overrides([text])
        except OverrideParseException:
            message = f"override {text!r}: expected key=value, such as train.learning_rate=1e-5"
            raise UserError(message) from None
        if parsed.is_sweep_override():
            raise UserError(f"override {text!r}: expected one value; a list is written [a,b]")
    return overrides


def _set_iterations(path: Path, wanted: int) -> None:
    from dvc.utils.serialize import modify_yaml

    if wanted < 1:
        raise UserError(f"iterations: expected 1 or more, found {wanted}")
    with modify_yaml(path) as raw:
        declared = raw.get("iterations") if isinstance(raw, dict) else None
        if not isinstance(declared, dict) or not declared:
            parse_params(raw, PARAMS)  # names what is wrong
            raise UserError(f"{PARAMS}: iterations: expected a mapping of iterations, found {declared!r}")
        names = sorted(declared, key=int)
        last = names[-1]
        evaluated = raw.get("evaluate", {}).get("policies", [])
        for name in names[wanted:]:
            del declared[name]
        dropped = {str(name) for name in names[wanted:]}
        kept = [p for p in evaluated if str(p) not in dropped]
        for _ in range(wanted - len(names)):
            following = type(last)(int(last) + 1)
            declared[following] = {**declared[last], "previous": str(last)}
            last = following
            kept.append(str(following))
        if kept != list(evaluated):
            raw["evaluate"]["policies"] = kept
