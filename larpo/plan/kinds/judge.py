"""What a benchmark asks of its judge, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from larpo.config.params import Params
from larpo.config.sections import BenchmarkParams
from larpo.plan.assumptions import Assumptions
from larpo.plan.estimates import Estimate


@dataclass(frozen=True)
class JudgeCalls:
    """`prompt` and `completion` are tokens of one call."""

    judge: str
    model: str
    calls: Estimate
    prompt: Estimate
    completion: Estimate
    cost: Estimate


def judge_calls(params: Params, b: BenchmarkParams, items: int | None, a: Assumptions) -> JudgeCalls | None:
    """Calls of one evaluation, None where no judge is asked (a rule parser, or no judge of that name)."""
    if b.judge is None or b.judge not in params.judges:
        return None
    response = a.mean_response(b.generate.max_new_tokens)
    asked = a.item_tokens.get(b.benchmark, a.prompt_tokens)
    if b.benchmark == "alpaca_eval":
        template, reply = annotator_sizes(str(b.options.get("annotator", "weighted_alpaca_eval_gpt4_turbo")))
        prompt = template / a.characters_per_token + asked + a.baseline_tokens + response
        text = (
            f"{template:,} characters / {a.characters_per_token:g} [template] + {asked:g} [instruction] + "
            f"{a.baseline_tokens:g} [baseline] + {response:g} [response]"
        )
        completion = Estimate(reply, "tokens", f"{reply} [the annotator's max_tokens]")
    elif b.benchmark.startswith("mixeval") and b.options.get("parser") == "model":
        from larpo.benchmarks.mixeval.parsers import FREE_FORM_JUDGE

        prompt = len(FREE_FORM_JUDGE) / a.characters_per_token + asked + response
        text = (
            f"{len(FREE_FORM_JUDGE):,} characters / {a.characters_per_token:g} [template] + {asked:g} [item] + "
            f"{response:g} [response]"
        )
        completion = Estimate(a.judge_reply_tokens, "tokens", f"{a.judge_reply_tokens:g} [assumed; max_tokens is 999]")
    else:
        return None
    judge = params.judges[b.judge]
    calls = Estimate(
        items, "calls", f"{items:,} [one per item]" if items else f"the size of {b.benchmark} is not known"
    )
    prompt_tokens = Estimate(prompt, "tokens", text)
    return JudgeCalls(
        b.judge, judge.model, calls, prompt_tokens, completion, _cost(judge, calls, prompt_tokens, completion, a)
    )


def _cost(judge, calls: Estimate, prompt: Estimate, completion: Estimate, a: Assumptions) -> Estimate:
    host = urlparse(judge.base_url).hostname if judge.base_url else None
    if host in ("127.0.0.1", "localhost", "::1"):
        return Estimate(0.0, "USD", f"0 [{judge.model} on this machine]")
    price = a.prices.get(judge.model)
    if price is None or calls.value is None:
        return Estimate(None, "USD", f"unknown price of {judge.model}" if price is None else calls.formula)
    value = calls.value * (prompt.value * price[0] + completion.value * price[1]) / 1e6
    return Estimate(
        value,
        "USD",
        f"{calls.value:,} calls · ({prompt.value:.5g} · {price[0]:g} + {completion.value:.5g} · {price[1]:g}) / 1e6",
    )


def annotator_sizes(name: str) -> tuple[int, int]:
    """(characters of the prompt template, max_tokens of the reply) of an annotator that the package ships."""
    import alpaca_eval

    from larpo.benchmarks.alpaca_eval.benchmark import annotator_config

    settings = annotator_config(name)
    home = Path(alpaca_eval.__file__).parent / "evaluators_configs"
    return len((home / settings["prompt_template"]).read_text("utf-8")), int(
        settings["completions_kwargs"]["max_tokens"]
    )
