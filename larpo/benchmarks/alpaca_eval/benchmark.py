"""AlpacaEval 2 (Li et al. 2023; Dubois et al. 2024): a judge compares each answer with GPT-4 Turbo's.

Prompts, order of the two outputs, parsing and win rates are the package's (`alpaca-eval`); the judge is reached
through `larpo.benchmarks.judge`, so that every raw reply is kept and none is paid for twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from larpo.benchmarks import check_source, hub_file, load_rows, parse_options, read_rows
from larpo.benchmarks.alpaca_eval.scores import HUB, check_annotations, find_positions, read_annotations, win_rates
from larpo.benchmarks.gsm8k import choose
from larpo.benchmarks.judge import JudgeClient, store_folder
from larpo.benchmarks.verifiable import shares
from larpo.config.params import Params
from larpo.config.sections import BenchmarkParams, Section
from larpo.errors import ParameterError, UserError, unknown
from larpo.hashing import digest
from larpo.statistics import Z95


class Options(Section):
    reference: str | None = None
    """Baseline outputs with instruction and output, such as AlpacaEval's gpt4_1106_preview/model_outputs.json; null:
    those from the hub."""
    annotator: str = "weighted_alpaca_eval_gpt4_turbo"
    """A configuration that the package ships: prompt, order of outputs, parser. The model is the judge's."""
    df_gamed: str | None = None
    instruction_difficulty: str | None = None
    seed: int = 0
    """Decides, with the instruction, which output stands first."""


class AlpacaEval:
    def __init__(self, params: Params, entry: BenchmarkParams):
        self.entry, self.options = entry, parse_options(Options, entry.options)
        self.source = check_source(entry.data, HUB)
        if entry.judge is None:
            raise ParameterError("judge", "missing; expected a name in the section `judges`")
        self.judge, self.judge_name = params.judges.get(entry.judge), entry.judge
        for key in ("reference", "df_gamed", "instruction_difficulty"):
            path = getattr(self.options, key)
            if path is not None and not Path(path).is_file():
                raise ParameterError(f"options.{key}", f"file {path} not found")
        annotator_config(self.options.annotator)
        if entry.generate.samples or entry.generate.refinements:
            raise ParameterError("generate", "AlpacaEval judges one greedy output; set samples, refinements to 0")

    def _instructions(self) -> list[str]:
        # The hub's data set is a script, which `datasets` no longer runs; its files are read as they are.
        source = hub_file(HUB, "alpaca_eval.json", "data") if self.source == HUB else self.source
        rows = load_rows(source, "eval", "rows with instruction")
        for i, row in enumerate(rows):
            if not isinstance(row.get("instruction"), str):
                raise UserError(f"{self.source}, row {i}: expected text under 'instruction'")
        return [row["instruction"] for row in rows]

    def items(self) -> pd.DataFrame:
        """One conversation per instruction; `answer` is the baseline's output, `meta` the instruction's index."""
        reference, where = {}, self.options.reference
        if where is None:
            where = hub_file(HUB, "alpaca_eval_gpt4_baseline.json", "options.reference")
        for i, row in enumerate(read_rows(where, "rows with instruction and output")):
            if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
                raise UserError(f"{where}, row {i}: expected text under 'instruction' and 'output'")
            reference.setdefault(row["instruction"], row["output"])
        rows, seen = [], set()
        for index, text in enumerate(self._instructions()):
            if text not in reference:
                raise UserError(f"{where}: no output for instruction {index} ({text[:60]!r})")
            if text not in seen:
                seen.add(text)
                asked = [{"role": "user", "content": text}]
                meta = json.dumps({"index": index})
                rows.append((digest("alpaca_eval", text), "alpaca_eval", asked, reference[text], meta))
        frame = pd.DataFrame(rows, columns=["prompt_id", "source", "messages", "answer", "meta"])
        return choose(frame, self.entry.items)

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """Preference for the model's output over the baseline's, 0 to 1, by the judge; greedy outputs only.

        An output whose judgement the parser cannot read has no preference: `parsed` is null and its score 0; it is left
        out of the win rates, as the package does, and counted.
        """
        joined = outputs[["prompt_id", "text"]].merge(items, on="prompt_id", how="left", validate="many_to_one")
        pairs = pd.DataFrame(
            {
                "instruction": [m[-1]["content"] for m in joined["messages"]],
                "output_1": joined["answer"],
                "output_2": joined["text"],
            }
        )
        judge = JudgeClient(self.judge, store_folder(), self.entry.judge)
        annotated = judge_pairs(pairs, judge, self.options.annotator, self.options.seed)
        preference = annotated["preference"]
        if len(annotated) and preference.isna().all():
            raise ParameterError(
                "options.annotator",
                f"{self.options.annotator} can read none of {len(annotated)} "
                f"replies of judge {self.entry.judge} (the first: {annotated['judgement'][0][:120]}); does its server "
                "send what the annotator asks for, such as logprobs?",
            )
        return pd.DataFrame(
            {
                "parsed": [None if pd.isna(p) else f"{p:.6f}" for p in preference],
                "score": (preference - 1).fillna(0.0).clip(0, 1).tolist(),
                "judgement": annotated["judgement"].tolist(),
            },
            index=outputs.index,
        )

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """LC win rate (where its inputs are at hand) and win rate as shares of 1, with intervals of 1.96 standard
        errors; everything that `win_rates` returns, in percent, under `alpaca_eval`."""
        joined = evaluations.merge(items[["prompt_id", "meta"]], on="prompt_id", validate="one_to_one")
        preferences = pd.to_numeric(joined["parsed"])
        frame = pd.DataFrame(
            {
                "instruction": [m[-1]["content"] for m in joined["messages"]],
                "output_1": joined["answer"],
                "output_2": joined["text"],
                "preference": preferences,
            }
        )
        # The items know their indices: no instructions are fetched again, and no network is needed.
        positions = [json.loads(m)["index"] for m in joined["meta"]]
        rates = win_rates(frame, self.options.df_gamed, self.options.instruction_difficulty, positions)
        return {
            "items": len(frame),
            "scores": as_scores(rates),
            "alpaca_eval": rates,
            "mean_characters": float(frame["output_2"].str.len().mean()),
            "baseline_mean_characters": float(frame["output_1"].str.len().mean()),
        } | shares(evaluations)


def as_scores(rates: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Win rates in percent with their standard errors → shares of 1 with 95 % intervals, the headline first."""
    out = {}
    for name, value, error in (
        ("lc_win_rate", "length_controlled_winrate", "lc_standard_error"),
        ("win_rate", "win_rate", "standard_error"),
    ):
        if value in rates:
            mean, half = rates[value] / 100, 1.0 if rates[error] is None else Z95 * rates[error] / 100
            out[name] = {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
    return out


def annotator_config(name: str) -> dict[str, Any]:
    """An annotator's settings from the package; refuses names that it does not have."""
    import alpaca_eval
    import yaml

    home = Path(alpaca_eval.__file__).parent / "evaluators_configs"
    path = home / name / "configs.yaml"
    if not path.is_file():
        known = sorted(p.parent.name for p in home.glob("*/configs.yaml"))
        raise unknown("options.annotator", name, known)
    return yaml.safe_load(path.read_text())[name]


def judge_pairs(pairs: pd.DataFrame, judge: JudgeClient, annotator: str, seed: int = 0) -> pd.DataFrame:
    """Ask a judge which of two outputs is better.

    Parameters
    ----------
    pairs
        Columns instruction, output_1 (the baseline's), output_2 (the model's), (N,) rows.
    annotator
        One of the package's configurations. Its prompt, its random order of the two outputs (by `seed` and the
        instruction) and its parser are used; its model and server are not.

    Returns
    -------
    (N,) rows in the order of `pairs`: preference in [1, 2], NaN where the parser could not read the reply, and
    judgement, the raw reply as JSON text.
    """
    from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR
    from alpaca_eval.utils import prompt_to_chatml

    settings = annotator_config(annotator)
    if settings.get("batch_size", 1) != 1:
        raise ParameterError("options.annotator", f"{annotator!r} judges several pairs at once; take another")
    # The package's own settings of the transport; ours are the judge's.
    kwargs = dict(settings["completions_kwargs"])
    for key in ("model_name", "requires_chatml", "price_per_token", "client_kwargs", "is_strip", "num_procs"):
        kwargs.pop(key, None)
    if function := kwargs.pop("function_call", None):
        kwargs["tool_choice"] = {"type": "function", "function": function}
        kwargs["tools"] = [{"type": "function", "function": f} for f in kwargs.pop("functions")]
    raw: list[dict[str, Any]] = []

    def complete(prompts: list[str], **_: Any) -> dict[str, list[Any]]:
        replies = judge.complete([{"messages": prompt_to_chatml(p.strip()), **kwargs} for p in prompts], _say)
        raw.extend(replies)
        texts = [_text(reply) for reply in replies]
        return {"completions": texts, "completions_all": [r | {"text": t} for r, t in zip(replies, texts, strict=True)]}

    transport = {"fn_completions": complete, "completions_kwargs": {}}
    single = SinglePairwiseAnnotator(
        seed=seed,
        base_dir=EVALUATORS_CONFIG_DIR,
        annotation_column="preference",
        completion_column="judgement",
        is_shuffle=False,
        **(settings | transport),
    )
    annotated = single(pairs.reset_index(drop=True).assign(row=range(len(pairs))))
    # Rows whose reply could not be read are left out by the package; here they have no preference.
    preference = pd.to_numeric(annotated.set_index("row")["preference"]).reindex(range(len(pairs)))
    texts = [json.dumps(r, sort_keys=True, ensure_ascii=False) for r in raw]
    return pd.DataFrame({"preference": preference.to_numpy(dtype=float), "judgement": texts})


def _say(line: str) -> None:
    print(line, flush=True)


def _text(reply: dict[str, Any]) -> str:
    """What a parser reads: the message, or the arguments of the function that it calls."""
    if reply["tool_calls"]:
        return reply["tool_calls"][0]["function"]["arguments"]
    return reply["text"] or ""


def score_file(
    path: str | Path,
    baseline: str | None = None,
    data: str | None = None,
    df_gamed: str | None = None,
    instruction_difficulty: str | None = None,
) -> dict[str, Any]:
    """Score published annotations: a JSON list of rows with instruction, output_1, output_2 and preference.

    Parameters
    ----------
    baseline
        Outputs (instruction, output) that stand in for output_1; only needed where rows lack it.
    data
        Instructions of a benchmark of your own, in the order of its difficulties. AlpacaEval's are known, wherever
        their rows stand and however many there are.
    df_gamed, instruction_difficulty
        See `win_rates`.
    """
    if baseline is not None:
        outputs = {r["instruction"]: r["output"] for r in read_rows(baseline, "rows with instruction and output")}
        rows = read_rows(path, "annotations")
        for row in rows:
            row.setdefault("output_1", outputs.get(row.get("instruction")))
        annotations = check_annotations(rows, path)
    else:
        annotations = read_annotations(path)
    positions = None
    if data is not None:
        instructions = [row.get("instruction") for row in read_rows(data, "rows with instruction")]
        positions = find_positions(annotations, set(range(len(instructions))), instructions)
    rates = win_rates(annotations, df_gamed, instruction_difficulty, positions)
    return {
        "benchmark": "alpaca_eval",
        "items": len(annotations),
        "scores": as_scores(rates),
        **rates,
        "mean_characters": float(annotations["output_2"].str.len().mean()),
        "baseline_mean_characters": float(annotations["output_1"].str.len().mean()),
    }
