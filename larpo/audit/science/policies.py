"""What a training may change of a policy, and how far.

Everything beside the weights is its predecessor's: tokenizer, chat template, configuration. And no weight lies further
from its predecessor than AdamW can carry it. With m, v the moments of a weight and t its step, Cauchy and Schwarz give

    |m̂_t| / √v̂_t ≤ c_t = (1 − β1) / (1 − β1^t) · √((1 − β2^t) / (1 − β2) · Σ_{k<t} (β1² / β2)^k)

whatever its gradients, so after T steps at learning rates of at most lr, with weight decay w,

    |θ_T − θ_0| ≤ lr · Σ_t c_t + w · lr · T · (|θ_0| + lr · Σ_t c_t)

beside rounding. c_t is 1 at first and 7.3 in the end. Weights of another training lie outside; what lies inside is what
a training at this rate for so many steps could have made of other lists, which only executing it can tell.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from larpo import tables
from larpo.audit.compare.files import Unreadable, arrays
from larpo.audit.compare.values import different_values
from larpo.audit.open import AuditedRun
from larpo.audit.results import Check, conclude
from larpo.config.sections import OptimizerParams
from larpo.models.load import load_tokenizer
from larpo.report.read import training_curves

PART = "science"
BETAS = 0.9, 0.999
ROUNDING = {"float32": 2**-20, "bfloat16": 2**-7, "float16": 2**-10}
"""Of a weight, over all steps; in the coarser dtypes a step rounds to the grid or vanishes."""
SET_BY_TRAINING = ("use_cache", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")
WEIGHTS = ("model.safetensors.index.json",)


def predecessors(run: AuditedRun) -> dict[str, str]:
    """Trained policy → the policy that its training starts from."""
    sft = {name: entry.previous for name, entry in run.params.sft.items()}
    return sft | {s: iteration.previous for s, iteration in run.params.iterations.items()}


def inherited(run: AuditedRun, name: str) -> Check:
    """Files beside the weights, by their bytes; configurations by their values."""
    failures, count = [], 0
    for policy, previous in predecessors(run).items():
        before, after = Path("data/policy", previous), Path("data/policy", policy)
        compared, lines = beside(before, after, str(before), lambda b=before: load_tokenizer(str(b)))
        failures += lines
        count += compared
    return conclude(PART, name, count, f"{count} files beside the weights against those of the policy before", failures)


def beside(
    before: Path, after: Path, start: str, tokenizer: Callable[[], Tokenizer], own: Collection[str] = ()
) -> tuple[int, list[str]]:
    """How many files lie beside the weights of two checkpoints, and a line on each of `after` that is another than that
    of `before`, which lines call `start`; `own`: those that `after` alone has."""
    files = {f: sorted(p.name for p in f.iterdir() if _beside(p) and p.name not in own) for f in (before, after)}
    failures = [
        f"{after / file}: {'not ' if file in files[before] else ''}there, unlike in {start}"
        for file in sorted(set(files[before]) ^ set(files[after]))
    ]
    both = sorted(set(files[before]) & set(files[after]))
    for file in both:
        old, new = (before / file).read_bytes(), (after / file).read_bytes()
        if file in ("config.json", "generation_config.json"):
            trees = [{k: v for k, v in json.loads(b).items() if k not in SET_BY_TRAINING} for b in (new, old)]
            for key in (key for key in TOKENS if trees[0].get(key) != trees[1].get(key)):
                if aligned(*(tree.get(key) for tree in trees), getattr(tokenizer(), key)):
                    trees[1][key] = trees[0][key]
            failures += different_values(str(after / file), *trees, f"{start} has")
        elif old != new and (file != "tokenizer.json" or _lasting(old) != _lasting(new)):
            failures.append(f"{after / file}: is not that of {start}, from which it was trained")
    return len(both), failures


def _lasting(tokenizer: bytes) -> dict[str, Any]:
    """A tokenizer.json without how it cut and padded the last batch, which each call sets anew."""
    return {k: v for k, v in json.loads(tokenizer).items() if k not in ("truncation", "padding")}


def aligned(new: int | list[int] | None, old: int | list[int] | None, own: int | None) -> bool:
    """Whether transformers.Trainer makes `new` of a special token `old` where the tokenizer's own is another: its own
    instead, or in front of several."""
    several = old if isinstance(old, list) else [] if old is None else [old]
    in_front = list(dict.fromkeys([own, *several]))
    return own is not None and (new == in_front or (new == own and not isinstance(old, list)))


def _beside(path: Path) -> bool:
    return path.is_file() and path.suffix != ".safetensors" and path.name not in WEIGHTS


def steps(params: OptimizerParams, examples: int, per_step: int) -> int:
    """Optimizer steps of a training, as transformers.Trainer counts them."""
    return params.max_steps if params.max_steps > 0 else math.ceil(params.epochs * math.ceil(examples / per_step))


def reach(params: OptimizerParams, count: int) -> float:
    """Σ lr · c_t over `count` steps."""
    (b1, b2), t = BETAS, np.arange(1, count + 1)
    tail = np.cumsum((b1**2 / b2) ** (t - 1))
    return float(params.learning_rate * ((1 - b1) / (1 - b1**t) * np.sqrt((1 - b2**t) / (1 - b2) * tail)).sum())


def unknown_reach(params: OptimizerParams) -> bool:
    own = set(params.trainer_options) & {"optim", "optim_args", "adam_beta1", "adam_beta2", "learning_rate"}
    return bool(own) or params.optimizer != "adamw"


def within_reach(run: AuditedRun, name: str) -> Check:
    """Every weight of every trained policy."""
    failures, count, details, unlike = [], 0, [], []
    for policy, previous in predecessors(run).items():
        sft = policy in run.params.sft
        params = run.params.sft[policy] if sft else run.params.train
        if unknown_reach(params):
            unlike.append(f"policy {policy}: its optimizer is none of which the reach is known")
            continue
        if sft:
            total = logged(f"data/sft/{policy}")
        else:
            lists = tables.read("lists", f"data/lists/{policy}.parquet")["prompt_id"].nunique()
            total = steps(params, lists, params.lists_per_step)
            if total != (told := logged(f"data/train/{policy}")):
                failures.append(f"data/train/{policy}: curves of {told} steps, {lists} lists make {total}")
        before, after, most = Path("data/policy", previous), Path("data/policy", policy), 0.0
        try:
            for _, size, share, line in strays(before, after, params, total, run.params.policy.dtype):
                count += size
                most = max(most, share)
                if line:
                    failures.append(line)
                    break
        except Unreadable as error:
            failures.append(f"{after}: its weights are not those of policy {previous}: {error}")
        details.append(f"policy {policy}: at most {most:.0%} of the reach of {total} steps")
    return conclude(PART, name, count, "; ".join(details + unlike) or "no policy was trained", failures, unlike)


def strays(
    before: Path, after: Path, params: OptimizerParams, total: int, dtype: str
) -> Iterator[tuple[str, int, float, str | None]]:
    """(tensor, elements, largest share of the reach, a line where that is more than 1) of each slice of `after`, that
    was trained from `before` in `total` steps.

    Raises
    ------
    Unreadable
        Their files, or their tensors' names or shapes, are not the same.
    """
    far, decay = reach(params, total), params.weight_decay * params.learning_rate * total
    for tensor, start, old, new in _tensors(before, after):
        limit = far + decay * (np.abs(old) + far) + ROUNDING[dtype] * (np.abs(old) + far)
        off = np.nan_to_num(np.abs(new - old) / limit, nan=np.inf)
        line, share = None, float(off.max(initial=0.0))
        if share > 1:
            place = np.unravel_index(int(off.argmax()), off.shape)
            index = [int(place[0]) + start, *map(int, place[1:])]
            line = (
                f"{after}: tensor {tensor}, index {index} moved by {abs(float(new[place] - old[place])):.3g}, out of "
                f"reach of {total} steps ({float(limit[place]):.3g})"
            )
        yield tensor, new.size, share, line


def logged(folder: str) -> int:
    """Steps of the curves that a training left."""
    return max((step for step, _ in training_curves(folder).get("loss", [])), default=0)


def _tensors(before: Path, after: Path) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(tensor, first index, values, values) of two checkpoints' weights, however they are cut into files."""
    first, second = (sorted(folder.glob("*.safetensors")) for folder in (before, after))
    if [p.name for p in first] != [p.name for p in second]:
        raise Unreadable("not the same files")
    for a, b in zip(first, second, strict=True):
        yield from arrays(a, b)
