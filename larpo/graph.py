"""dvc.yaml unrolled without DVC: stages for some parameters, what they need, and when two of them are the same.

Whatever differs between kinds of nodes stands in their stages' `meta` and `desc`, which enter no lock.

DVC takes a stage's output from its cache where command, parameters, dependencies and output paths are equal to those
of a stage that ran before. `keys` says the same from the declaration alone: a stage's key is made of its command, its
outputs' paths, the values of the parameters that it names, and, per dependency, the keys of the stages that make it
(the path itself where none does: code and data, which the runs of a study share, and the records that `inputs` makes of
them, which are those of the parameters that the stage names). Two stages of equal key run once. DVC
compares contents, so it shares more where different parameters happen to give equal files, never less.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML, YAMLError

from larpo.errors import ParameterError, UserError, at, first_error, nearest, unknown
from larpo.hashing import digest

DECLARATION = Path(__file__).resolve().parents[1] / "dvc.yaml"
"""Of the project that the running code lies in."""
_VARIABLE = re.compile(r"\$\{\s*([^}\s]+)\s*\}")


class Meta(BaseModel):
    """What a stage's `meta` says of its kind of node; `unroll` fills every `${…}` in."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    heavy: bool = Field(False, description="loads a model: two on one machine are slow, or do not fit")
    retries: int = Field(0, ge=0, description="further tries under Prefect: long nodes resume, a judge may be back")
    shared: bool = Field(False, description="the same for all seeds of a study")
    learning_rate: str | None = Field(None, description="the parameter, where it trains")
    compare: dict[str, str] = Field({}, description="pattern of a file's name → its rule in larpo.audit.compare.rules")
    algorithm: dict[str, str] = Field({}, description="line of Algorithm 1 → the code that is it, as module:object")
    row: str | None = Field(None, description="the policy in whose row the report draws it; null: not drawn")
    column: str | None = Field(None, description="the kind in whose column it is drawn; null: one of its own")
    label: str | None = Field(None, description="what its box says, where the kind stands below; null: its name")


@dataclass(frozen=True)
class Stage:
    """One stage, every `${…}` filled in. `params` are dotted keys of params.yaml; "" is the whole file."""

    name: str
    command: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    desc: str = ""
    meta: Meta = field(default_factory=Meta)
    always: bool = False  # runs each time, for it looks at what lies outside of the graph

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]


def read_stages(path: str | Path = DECLARATION) -> dict[str, Any]:
    """The stages as dvc.yaml declares them."""
    try:
        return YAML(typ="safe").load(Path(path).read_text("utf-8"))["stages"]
    except (OSError, YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable as stages ({' '.join(str(error).split())[:160]})") from None


def read_meta(kind: str, declared: Any, file: str = "dvc.yaml") -> Meta:
    """A stage's `meta`, checked."""
    try:
        return Meta.model_validate({} if declared is None else declared)
    except ValidationError as error:
        with at(f"stages.{kind}.meta", file):
            raise first_error(error, Meta.model_fields) from None


def kinds(path: str | Path = DECLARATION) -> dict[str, Meta]:
    """What dvc.yaml says of each kind of node, in its order; nothing is filled in."""
    return {
        kind: read_meta(kind, body.get("do", body).get("meta"), str(path)) for kind, body in read_stages(path).items()
    }


def unroll(declared: dict[str, Any], params: dict[str, Any]) -> dict[str, Stage]:
    """Stages by name, as DVC names them; `foreach` and `matrix` over mappings take their keys, over lists their values.

    Parameters
    ----------
    params
        As params.yaml holds them.

    Raises
    ------
    UserError
        A `${…}` that names no parameter.
    """
    out: dict[str, Stage] = {}
    for name, body in declared.items():
        for suffix, scope in _instances(name, body, params):
            stage = body.get("do", body)

            def fill(entries: Iterable[Any], scope: dict = scope, name: str = name) -> tuple[str, ...]:
                return tuple(dict.fromkeys(str(_filled(_path(entry), scope, name)) for entry in entries))

            stage_name = f"{name}@{suffix}" if suffix else name
            outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
            out[stage_name] = Stage(
                stage_name,
                str(_filled(stage["cmd"], scope, name)),
                fill(stage.get("deps", [])),
                tuple("" if p == "params.yaml:" else p for p in fill(stage.get("params", []))),
                fill(outs),
                str(_filled(stage.get("desc", ""), scope, name)),
                read_meta(name, _filled(stage.get("meta"), scope, name)),
                bool(stage.get("always_changed", False)),
            )
    return out


def missing(kind: str, key: str, declared: dict[str, Any], params: dict[str, Any]) -> UserError:
    """The error for a stage `kind@key` that these parameters do not make: the parameter that would, and what it has."""
    body, rest = declared.get(kind, {}), key
    axes = list(body.get("matrix", {"key": body["foreach"]} if "foreach" in body else {}).values())
    for over in axes:
        values, last = _filled(over, params, kind), over is axes[-1]
        known, name = [str(value) for value in values], _VARIABLE.sub(r"\1", over)
        fits = [value for value in known if (rest == value if last else rest.startswith(f"{value}-"))]
        if not fits:
            wrong = rest if last else rest.partition("-")[0]
            if isinstance(values, dict):
                return ParameterError(f"{name}.{wrong}", f"does not exist{nearest(wrong, known)}")
            return unknown(name, wrong, known)
        rest = rest[len(max(fits, key=len)) + 1 :]
    return UserError(f"dvc.yaml: no stage {f'{kind}@{key}' if key else kind!r}{nearest(kind, declared)}")


def _path(entry: Any) -> str:
    """A plain entry, or the only key of one with settings; `params.yaml:` is written as a key without a value."""
    if isinstance(entry, dict):
        (key, value), *_ = entry.items()
        return f"{key}:" if value is None else str(key)
    return str(entry)


def _instances(name: str, body: dict[str, Any], params: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(what follows `@`, variables) of each stage that one declaration makes."""
    if "foreach" in body:
        over = _filled(body["foreach"], params, name)
        entries = over.items() if isinstance(over, dict) else [(str(value), value) for value in over]
        return [(str(key), params | {"key": key, "item": value}) for key, value in entries]
    if "matrix" in body:
        axes = {axis: list(_filled(values, params, name)) for axis, values in body["matrix"].items()}
        found = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
        return [("-".join(map(str, item.values())), params | {"item": item}) for item in found]
    return [("", params)]


def _filled(value: Any, scope: dict[str, Any], stage: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, scope, stage) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    if whole := _VARIABLE.fullmatch(value):
        return value_at(scope, whole[1], f"dvc.yaml: stage {stage}")
    return _VARIABLE.sub(lambda found: str(value_at(scope, found[1], f"dvc.yaml: stage {stage}")), value)


def value_at(tree: dict[str, Any], dotted: str, where: str) -> Any:
    """The value of a dotted key; UserError where it is not there."""
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            raise UserError(f"{where}: {dotted}: no such parameter; a section that is not used is written as {{}}")
        tree = tree[part]
    return tree


def needs(stages: dict[str, Stage]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Per stage and dependency the stages whose outputs it is, holds, or lies in; none for code and data."""
    makers = {out.rstrip("/"): stage.name for stage in stages.values() for out in stage.outs}
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for stage in stages.values():
        found[stage.name] = {}
        for dep in stage.deps:
            path = dep.rstrip("/")
            made = {
                maker: None
                for out, maker in makers.items()
                if out == path or out.startswith(path + "/") or path.startswith(out + "/")
            }
            found[stage.name][dep] = tuple(made)
    return found


def select(stages: dict[str, Stage], kinds: Collection[str]) -> set[str]:
    """Names of all stages of these kinds and of everything they need."""
    needed, todo, keep = needs(stages), [s.name for s in stages.values() if s.kind in kinds], set()
    while todo:
        name = todo.pop()
        if name not in keep:
            keep.add(name)
            todo += [maker for makers in needed[name].values() for maker in makers]
    return keep


def keys(stages: dict[str, Stage], params: dict[str, Any]) -> dict[str, str]:
    """Each stage's key; see the module's text."""
    needed, found = needs(stages), {}

    def key(name: str) -> str:
        if name not in found:
            stage = stages[name]
            values = {p: value_at(params, p, "params.yaml") if p else params for p in stage.params}
            deps = {
                dep: [key(maker) for maker in makers if not stages[maker].always] or dep
                for dep, makers in needed[name].items()
            }
            found[name] = digest("stage", stage.command, values, deps, stage.outs)
        return found[name]

    return {name: key(name) for name in stages}
