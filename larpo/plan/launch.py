"""What a plan reads beside params.yaml: Accelerate configurations, and sections laid over the parameters."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from larpo.config.overlays import lay_all, read_sections
from larpo.config.params import Params, parse_params
from larpo.errors import UserError
from larpo.load import check_params, load_params
from larpo.plan.memory import Sharding


@dataclass(frozen=True)
class Launch:
    sharding: Sharding
    bfloat16: bool = False
    file: str | None = None
    wraps: str | None = None  # class of the layers that FSDP shards one by one

    @property
    def processes(self) -> int:
        return self.sharding.gpus


def read_launch(file: str | None, name: str = "params.yaml", key: str = "train") -> Launch:
    """What the Accelerate configuration of `KEY.launch` says; one GPU where there is none.

    Raises
    ------
    UserError
        The file is missing, or is not what `accelerate config` writes.
    """
    if file is None:
        return Launch(Sharding())
    if not Path(file).is_file():
        raise UserError(f"{name}: {key}.launch: {file}: not found; expected a file of `accelerate config`")
    try:
        raw = yaml.safe_load(Path(file).read_text("utf-8"))
        kind, processes = raw["distributed_type"], int(raw.get("num_processes", 1))
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{name}: {key}.launch: {file}: no Accelerate configuration ({' '.join(str(error).split())})"
        ) from None
    fsdp = raw.get("fsdp_config") or {}
    sharding = Sharding("none", processes)
    if kind == "FSDP":
        sharding = Sharding(
            "fsdp", processes, bool(fsdp.get("fsdp_offload_params")), bool(fsdp.get("fsdp_activation_checkpointing"))
        )
    return Launch(sharding, raw.get("mixed_precision") == "bf16", file, fsdp.get("fsdp_transformer_layer_cls_to_wrap"))


def load_with(path: str | Path, overlays: Iterable[str | Path] = ()) -> Params:
    """The parameters in `path` with the sections of other files laid over them, key by key, and checked as a whole."""
    overlays = list(overlays)
    if not overlays:
        return load_params(path)
    merged = lay_all(read_sections(path), overlays)
    name = " with ".join(map(str, [path, *overlays]))
    params = parse_params(merged, name)
    check_params(params, name)
    return params
