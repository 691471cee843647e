"""AlpacaEval 2 (Li et al. 2023; Dubois et al. 2024): a judge compares each answer with GPT-4 Turbo's."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, Field

from larpo.benchmarks import parse_options
from larpo.benchmarks.alpaca_eval.annotations import read_annotations
from larpo.benchmarks.alpaca_eval.judge import annotator_config, check_logprobs, judge_pairs
from larpo.benchmarks.alpaca_eval.scores import HUB, win_rates
from larpo.benchmarks.items import build_items, build_outputs, join_items
from larpo.benchmarks.judge import JudgeClient, store_folder
from larpo.benchmarks.verifiable import shares
from larpo.config.evaluation import BenchmarkParams
from larpo.config.params import Params
from larpo.config.sections import Section
from larpo.errors import ParameterError, UserError, at
from larpo.hashing import digest
from larpo.sources import rows
from larpo.statistics import Z95


class Options(Section):
    reference: str | None = Field(
        None, description="baseline outputs, rows with instruction and output; null: the hub's"
    )
    annotator: str = Field(
        "weighted_alpaca_eval_gpt4_turbo",
        description="a configuration that the package ships (prompt, order, parser); the model is the judge's",
    )
    df_gamed: str | None = None
    instruction_difficulty: str | None = None
    seed: int = Field(0, description="decides, with the instruction, which output stands first")


class Instruction(BaseModel):
    instruction: str


class Output(Instruction):
    output: str


class AlpacaEval:
    judges_one = True
    read_options = {"baseline": "options.reference", "data": "data"} | {
        key: f"options.{key}" for key in ("df_gamed", "instruction_difficulty")
    }

    def __init__(self, params: Params, entry: BenchmarkParams):
        self.entry, self.options = entry, parse_options(Options, entry.options)
        with at("data"):
            self.source = HUB if entry.data is None else rows.check_exists(entry.data)
        if entry.judge is None:
            raise ParameterError("judge", "missing; expected a name in the section `judges`")
        self.judge, self.judge_name = params.judges.get(entry.judge), entry.judge
        for key in ("reference", "df_gamed", "instruction_difficulty"):
            path = getattr(self.options, key)
            if path is not None and not Path(path).is_file():
                raise ParameterError(f"options.{key}", f"{path}: not found")
        annotator_config(self.options.annotator)
        if self.judge is not None:
            check_logprobs(self.options.annotator, self.judge, entry.judge)
        if entry.generate.samples or entry.generate.refinements:
            raise ParameterError("generate", "AlpacaEval judges one output; set samples, refinements to 0")

    def _instructions(self) -> list[str]:
        """Each once, in the order of their indices."""
        with at("data"):
            # The hub's data set is a script, which `datasets` no longer runs; its files are read as they are.
            source = rows.hub_file(HUB, "alpaca_eval.json") if self.source == HUB else self.source
            return [row.instruction for _, row in rows.read(source, "rows with instruction", Instruction, split="eval")]

    def _reference(self) -> dict[str, str]:
        """Instruction → the baseline's output."""
        with at("options.reference"):
            where = self.options.reference or rows.hub_file(HUB, "alpaca_eval_gpt4_baseline.json")
            outputs = [row for _, row in rows.read(where, "rows with instruction and output", Output)]
        return {row.instruction: row.output for row in reversed(outputs)}

    def items(self) -> pd.DataFrame:
        """One conversation per instruction; `answer` is the baseline's output, `meta` its place in the data."""
        reference = self._reference()
        table = []
        for index, text in enumerate(self._instructions()):
            if text not in reference:
                raise ParameterError("options.reference", f"no output for instruction {index} ({text[:60]!r})")
            asked, meta = [{"role": "user", "content": text}], json.dumps({"index": index})
            table.append((digest("alpaca_eval", text), "alpaca_eval", asked, reference[text], meta))
        return build_items(table, self.entry.items)

    def read(self, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Annotations as AlpacaEval publishes them; outputs come with their preferences."""
        frame = read_annotations(path, self._reference() if self.options.reference else {})
        if self.entry.data is not None:
            known = set(self._instructions())
            for row, text in enumerate(frame["instruction"]):
                if text not in known:
                    raise UserError(f"annotations, row {row}: instruction {str(text)[:60]!r} is not in {self.source}")
        asked = [[{"role": "user", "content": text}] for text in frame["instruction"]]
        items = ((str(i), "", *row, None) for i, row in enumerate(zip(asked, frame["output_1"], strict=True)))
        parsed = [None if pd.isna(p) else repr(p) for p in frame["preference"]]
        kept = frame[["generator_1", "generator_2"]].to_dict("list")
        return build_items(items), build_outputs(frame["output_2"], parsed=parsed, score=0.0, **kept)

    def score(self, items: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
        """Preference for the model's output over the baseline's, 0 to 1, by the judge; one output per item.

        An output whose judgement the parser cannot read has no preference: `parsed` is null and its score 0; it is left
        out of the win rates, as the package does, and counted.
        """
        judge = JudgeClient(self.judge, store_folder(), self.entry.judge)
        annotated = judge_pairs(_pairs(join_items(outputs, items)), judge, self.options.annotator, self.options.seed)
        preference = annotated["preference"]
        if len(annotated) and preference.isna().all():
            raise ParameterError(
                "options.annotator",
                f"{self.options.annotator} can read none of {len(annotated)} replies of judge {self.entry.judge} (the "
                f"first: {annotated['judgement'][0][:120]}); does its server send what the annotator asks for, such as "
                "logprobs?",
            )
        parsed = [None if pd.isna(p) else f"{p:.6f}" for p in preference]
        scores = (preference - 1).fillna(0.0).clip(0, 1).tolist()
        judgements = annotated["judgement"].tolist()
        return pd.DataFrame({"parsed": parsed, "score": scores, "judgement": judgements}, index=outputs.index)

    def summary(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """LC win rate (where its inputs are at hand) and win rate as shares of 1, with intervals of 1.96 standard
        errors; everything that `win_rates` returns, in percent; mean lengths in characters."""
        frame = _pairs(evaluations).assign(preference=evaluations["parsed"].astype(float))
        frame = frame.assign(**{k: evaluations[k] for k in ("generator_1", "generator_2") if k in evaluations})
        rates = win_rates(frame, self.options.df_gamed, self.options.instruction_difficulty)
        lengths = {f"{who}mean_characters": float(frame[f"output_{i}"].str.len().mean()) for i, who in OUTPUTS}
        return {"scores": as_scores(rates), **rates, **lengths}

    def aggregate(self, items: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, Any]:
        """See `summary`; the package's rates are under `alpaca_eval`; the outputs' temperature, 0 for greedy ones."""
        found = self.summary(items, evaluations)
        remark = {"remark": f"Length control {found['length_control']}."} if "length_control" in found else {}
        own = {key: found.pop(key) for key in list(found) if key == "scores" or key.endswith("mean_characters")}
        about = {"items": len(evaluations), "temperature": evaluations["temperature"].iloc[0].item()}
        return about | remark | {"alpaca_eval": found} | own | shares(evaluations)


OUTPUTS = ((2, ""), (1, "baseline_"))


def _pairs(frame: pd.DataFrame) -> pd.DataFrame:
    asked = [messages[-1]["content"] for messages in frame["messages"]]
    return pd.DataFrame({"instruction": asked, "output_1": frame["answer"], "output_2": frame["text"]})


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
