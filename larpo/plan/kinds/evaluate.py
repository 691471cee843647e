"""Node `evaluate`: what a benchmark asks of its judge, and what that costs."""

from pathlib import Path
from urllib.parse import urlparse

from larpo.config.judges import JudgeParams
from larpo.plan.assumptions import Assumptions
from larpo.plan.context import Context
from larpo.plan.formula import Estimate, Unknown, number
from larpo.plan.plans import JudgeCalls, NodePlan


def evaluate(context: Context, stage: str, policy: str, name: str) -> NodePlan:
    return NodePlan(stage, judge=judge_calls(context, name))


def judge_calls(context: Context, name: str) -> JudgeCalls | None:
    """Calls of one evaluation, None where no judge is asked (a rule parser, or no judge of that name)."""
    a, b, judges = context.a, context.params.benchmarks[name], context.params.judges
    if b.judge is None or b.judge not in judges:
        return None
    response = f"{number(a.mean_response(b.generate.max_new_tokens))} [response]"
    asked, letters = number(a.item_tokens.get(b.benchmark, a.prompt_tokens)), number(a.characters_per_token)
    if b.benchmark == "alpaca_eval":
        template, reply = annotator_sizes(str(b.options.get("annotator", "weighted_alpaca_eval_gpt4_turbo")))
        text = f"{asked} [instruction] + {number(a.baseline_tokens)} [baseline] + {response}"
        completion = Estimate("tokens", f"{reply} [the annotator's max_tokens]")
    elif b.benchmark.startswith("mixeval") and b.options.get("parser") == "model":
        from larpo.benchmarks.mixeval.judge import FREE_FORM_JUDGE

        template, text = len(FREE_FORM_JUDGE), f"{asked} [item] + {response}"
        completion = Estimate("tokens", f"{number(a.judge_reply_tokens)} [assumed; max_tokens is 999]")
    else:
        return None
    prompt = Estimate("tokens", f"{template:,} characters / {letters} [template] + {text}")
    items, judge = context.items(name), judges[b.judge]
    unknown = Unknown("calls", f"the size of {b.benchmark} is not known")
    calls = Estimate("calls", f"{items:,} [one per item]") if items else unknown
    return JudgeCalls(b.judge, judge.model, calls, prompt, completion, _cost(judge, calls, prompt, completion, a))


def _cost(judge: JudgeParams, calls: Estimate, prompt: Estimate, completion: Estimate, a: Assumptions) -> Estimate:
    host = urlparse(judge.base_url).hostname if judge.base_url else None
    if host in ("127.0.0.1", "localhost", "::1"):
        return Estimate("USD", "0 [on this machine]")
    price = a.prices.get(judge.model)
    if price is None or calls.value is None:
        return Unknown("USD", f"unknown price of {judge.model}" if price is None else calls.formula)
    each = f"{number(prompt.value)} · {number(price[0])} + {number(completion.value)} · {number(price[1])}"
    return Estimate("USD", f"{calls.value:,} calls · ({each}) / 1e6")


def annotator_sizes(name: str) -> tuple[int, int]:
    """(characters of the prompt template, max_tokens of the reply) of an annotator that the package ships."""
    import alpaca_eval

    from larpo.benchmarks.alpaca_eval.judge import annotator_config

    settings = annotator_config(name)
    template = Path(alpaca_eval.__file__).parent / "evaluators_configs" / settings["prompt_template"]
    return len(template.read_text("utf-8")), int(settings["completions_kwargs"]["max_tokens"])
