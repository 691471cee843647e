"""`make bench`: training measured beside its opponents, in turn, and written as tables.

    python bench/run.py [NAME …] [--repeats 3] [--against 02cf5a9] [--out bench/results]

A case is one question with two or more sides; in each repeat its sides run one after another, each in a process of its
own (bench/measure.py). Reported are medians over repeats of a side's mean step, and ratios of them. The first step of a
process is left out where there are more. Nothing else should run on the machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("torch", "transformers", "trl", "accelerate")


@dataclass(frozen=True)
class Side:
    name: str
    arguments: str  # of bench/measure.py
    old: bool = False  # of the earlier revision


@dataclass(frozen=True)
class Case:
    question: str
    sides: tuple[Side, ...]
    goals: tuple[tuple[str, str, str, float], ...]  # what, side, other side, least ratio


def lists_against_pairs(m: int, pairs: str, goal: float) -> Case:
    shape = f"step --lists 2 --responses {m} --prompt 180 --response 100"
    sides = Side("ours", shape), Side("trl", f"{shape} --side trl --pairs {pairs}")
    return Case(
        f"A step of two lists of {m} against TRL's DPOTrainer, "
        + ("each response once in a pair" if pairs == "once" else "all pairs of a list"),
        sides,
        (("response tokens/s", "ours", "trl", goal),),
    )


LONG = "forward --responses 4 --prompt 512 --response 400 --lists"
CASES = {
    "lists_of_4": lists_against_pairs(4, "once", 2.2),
    "lists_of_8": lists_against_pairs(8, "once", 2.6),
    "lists_of_4_all_pairs": lists_against_pairs(4, "all", 4),
    "lists_of_8_all_pairs": lists_against_pairs(8, "all", 10),
    "attention": Case(
        "Forward and backward pass of 1, 2 and 4 lists at once: a list costs what its tokens cost",
        (Side("1", f"{LONG} 1"), Side("2", f"{LONG} 2"), Side("4", f"{LONG} 4"), Side("before, 1", f"{LONG} 1", True)),
        (("response tokens/s", "4", "1", 0.9), ("response tokens/s", "1", "before, 1", 1.3)),
    ),
    "memory": Case(
        "Peak memory of a training step: a list of 10 against one TRL pair",
        (
            Side("list of 10", "step --lists 1 --responses 10 --prompt 180 --response 100"),
            Side("TRL, one pair", "step --lists 1 --responses 2 --prompt 180 --response 100 --side trl"),
        ),
        (("1 / GiB", "list of 10", "TRL, one pair", 1),),
    ),
}


def measure(side: Side, tree: Path, steps: int) -> dict[str, float]:
    """One process: response tokens per second of its steps, and its peak memory."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/measure.py"), *side.arguments.split(), "--steps", str(steps)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{side.name} ({side.arguments}): {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    seconds = found["seconds"][1:] or found["seconds"]
    return {
        "seconds": statistics.mean(seconds),
        "response tokens/s": found["response_tokens"] / statistics.mean(seconds),
        "GiB": found["peak_gib"],
        "1 / GiB": 1 / found["peak_gib"],
    }


def run(case: Case, repeats: int, steps: int, old: Path | None) -> dict[str, dict[str, float]]:
    """Side → medians over the repeats."""
    sides = [side for side in case.sides if old is not None or not side.old]
    found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            found[side.name].append(measure(side, old if side.old and old is not None else ROOT, steps))
            print(f"  {side.name}: {found[side.name][-1]['seconds']:.2f} s a step", flush=True)
    return {name: {k: statistics.median(one[k] for one in many) for k in many[0]} for name, many in found.items()}


def table(case: Case, medians: dict[str, dict[str, float]]) -> str:
    lines = [
        f"## {case.question}",
        "",
        "| side | s a step | response tokens/s | peak GiB |",
        "| --- | --: | --: | --: |",
    ]
    for name, m in medians.items():
        lines.append(f"| {name} | {m['seconds']:.2f} | {m['response tokens/s']:.1f} | {m['GiB']:.2f} |")
    lines.append("")
    for what, side, other, least in case.goals:
        if {side, other} <= medians.keys():
            ratio = medians[side][what] / medians[other][what]
            lines.append(f"{what}, {side} to {other}: **{ratio:.2f}** (goal: at least {least:g})")
    return "\n".join(lines) + "\n"


def machine() -> str:
    model = "unknown processor"
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in NAMES)
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def revision(commit: str, folder: str) -> Path | None:
    """The tree of an earlier commit in a folder; None where this repository does not hold it."""
    archive = Path(folder) / "tree.tar"
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "-o", str(archive), commit], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{commit}: not in this repository; left out", flush=True)
        return None
    tree = Path(folder) / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tree)], check=True)
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all where none is given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--against", default="02cf5a9", help="an earlier commit")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results")
    a = parser.parse_args()
    if unknown := [name for name in a.names if name not in CASES]:
        raise SystemExit(f"{unknown[0]}: no such case; expected one of {', '.join(CASES)}")
    a.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        old = revision(a.against, folder)
        for name in a.names or CASES:
            print(name, flush=True)
            medians = run(CASES[name], a.repeats, a.steps, old)
            when = datetime.now(UTC).strftime("%Y-%m-%d")
            text = table(CASES[name], medians)
            (a.out / f"{name}.md").write_text(f"{text}\n{a.repeats} repeats of {a.steps} steps, {when}: {machine()}\n")
            print(text, flush=True)


if __name__ == "__main__":
    main()
