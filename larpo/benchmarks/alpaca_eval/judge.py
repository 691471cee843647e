"""AlpacaEval's judge: prompts, random order of the two outputs and parsers of the package, our transport.

The judge is reached through `larpo.benchmarks.judge`, so that every raw reply is kept and none is paid for twice.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from larpo.benchmarks.judge import JudgeClient, as_json, body_of, without_halves
from larpo.config.judges import JudgeParams
from larpo.errors import ParameterError, unknown

TRANSPORT = ("model_name", "requires_chatml", "price_per_token", "client_kwargs", "is_strip", "num_procs")
"""The package's own settings that stand where the judge's do here."""


def annotator_config(name: str) -> dict[str, Any]:
    """An annotator's settings from the package; refuses names that it does not have."""
    import alpaca_eval
    import yaml

    home = Path(alpaca_eval.__file__).parent / "evaluators_configs"
    path = home / name / "configs.yaml"
    if not path.is_file():
        raise unknown("options.annotator", name, sorted(p.parent.name for p in home.glob("*/configs.yaml")))
    return yaml.safe_load(path.read_text())[name]


def check_logprobs(name: str, judge: JudgeParams, judge_name: str) -> None:
    """Refuse an annotator that reads log-probabilities where the judge's settings do not ask for them."""
    settings = annotator_config(name)
    if settings.get("fn_completion_parser") != "logprob_parser":
        return
    body = body_of(judge, settings["completions_kwargs"])
    if lost := [field for field in ("logprobs", "top_logprobs") if not body.get(field)]:
        raise ParameterError(
            "options.annotator",
            f"{name} reads log-probabilities, and judges.{judge_name} does not ask for {' and '.join(lost)}; expected "
            "one that reads text, such as alpaca_eval_gpt4 or alpaca_eval_gpt4_turbo_fn (its scores are others)",
        )


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
    kwargs = {key: value for key, value in settings["completions_kwargs"].items() if key not in TRANSPORT}
    if function := kwargs.pop("function_call", None):
        kwargs["tool_choice"] = {"type": "function", "function": function}
        kwargs["tools"] = [{"type": "function", "function": f} for f in kwargs.pop("functions")]
    raw: list[dict[str, Any]] = []

    def complete(prompts: list[str], **_: Any) -> dict[str, list[Any]]:
        replies = judge.complete([{"messages": prompt_to_chatml(p.strip()), **kwargs} for p in prompts])
        raw.extend(replies)
        replies = without_halves(replies)
        texts = [_text(reply) for reply in replies]
        return {"completions": texts, "completions_all": [r | {"text": t} for r, t in zip(replies, texts, strict=True)]}

    single = SinglePairwiseAnnotator(
        seed=seed,
        base_dir=EVALUATORS_CONFIG_DIR,
        annotation_column="preference",
        completion_column="judgement",
        is_shuffle=False,
        **(settings | {"fn_completions": complete, "completions_kwargs": {}}),
    )
    annotated = single(pairs.reset_index(drop=True).assign(row=range(len(pairs))))
    # Rows whose reply could not be read are left out by the package; here they have no preference.
    preference = pd.to_numeric(annotated.set_index("row")["preference"]).reindex(range(len(pairs)))
    return pd.DataFrame({"preference": preference.to_numpy(dtype=float), "judgement": list(map(as_json, raw))})


def _text(reply: dict[str, Any]) -> str:
    """What a parser reads: the message, or the arguments of the function that it calls."""
    if reply["tool_calls"]:
        return reply["tool_calls"][0]["function"]["arguments"]
    return reply["text"] or ""
