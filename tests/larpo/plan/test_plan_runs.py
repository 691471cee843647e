"""Plans of whole runs: tokens, judges, reward models, checks of one line, and formulas that give their values."""

import json
from typing import Any

import pytest

from larpo.config.params import parse_params
from larpo.errors import UserError
from larpo.graph import read_stages, unroll
from larpo.plan import Assumptions, build_plan, render_plan, to_json


def paper(**changes: Any) -> dict[str, Any]:
    """A run of the paper's size (Table 2, instruct) as params.yaml holds it; dotted keys change it."""
    raw: dict[str, Any] = {
        "policy": {"model": "mistralai/Mistral-7B-Instruct-v0.2"},
        "iterations": {str(s): {"previous": str(s - 1), "temperatures": [0.8]} for s in (1, 2, 3)},
        "prompts": {"source": "dataset", "dataset": "HuggingFaceH4/ultrafeedback_binarized", "per_iteration": 20_000},
        "engine": {"name": "vllm", "dtype": "bfloat16", "batch_size": 256, "options": {"max_model_len": 4096}},
        "sample": {"responses": 10, "max_new_tokens": 1024},
        "score": {"reward": "exact_match"},
        "lists": {"recipe": "top_bottom", "top": 2, "bottom": 2, "memory": "current"},
        "reference": {"lists_per_batch": 1, "autocast": "bfloat16"},
        "train": {
            "learning_rate": 5e-7,
            "epochs": 2,
            "lists_per_step": 128,
            "lists_per_device_batch": 1,
            "autocast": "bfloat16",
            "gradient_checkpointing": True,
            "trainer_options": {"optim": "adafactor"},
        },
        "evaluate": {"policies": ["0", "3"]},
        "benchmarks": {
            "alpaca": {"benchmark": "alpaca_eval", "generate": {"max_new_tokens": 1024}, "judge": "gpt4"},
            "hard": {
                "benchmark": "mixeval_hard",
                "generate": {"max_new_tokens": 512},
                "judge": "parser",
                "options": {"parser": "model"},
            },
            "gsm8k": {"benchmark": "gsm8k", "generate": {"max_new_tokens": 400, "samples": 20, "sampled_items": 100}},
        },
        "judges": {"gpt4": {"model": "gpt-4-1106-preview"}, "parser": {"model": "gpt-3.5-turbo-0125"}},
    }
    for dotted, value in changes.items():
        tree, *_ = (raw,)
        *path, last = dotted.split(".")
        for key in path:
            tree = tree.setdefault(key, {})
        tree[last] = value
    return raw


def plan_of(assumptions: Assumptions | None = None, **changes: Any):
    return build_plan(parse_params(paper(**changes)), assumptions)


def node(plan, name: str):
    return next(n for n in plan.nodes if n.name == name)


def test_tokens_and_lists_of_a_run():
    """Sampling 20,000 · 10 · min(1,024/2, 450) = 90,000,000 tokens per iteration. Lists of 4 behind prompts of 200:
    2 epochs · 20,000 · (200 + 4 · 449) = 79,840,000 tokens, with memory `all` twice and three times that. GSM8K: 1,319
    greedy and 100 · 20 sampled answers of 200 tokens: 663,800."""
    plan = plan_of()
    assert plan.failed == []
    assert [node(plan, f"sample@{s}").sample_tokens.value for s in "123"] == [90_000_000] * 3
    assert [node(plan, f"train@{s}").train_tokens.value for s in "123"] == [79_840_000] * 3
    assert node(plan, "generate@0-gsm8k").sample_tokens.value == 663_800
    everything = plan_of(**{"lists.memory": "all"})
    assert [node(everything, f"train@{s}").train_tokens.value for s in "123"] == [79_840_000 * n for n in (1, 2, 3)]
    # The same prompts in every iteration: one list per prompt, of every candidate, 10, 20, 30 of them.
    same = plan_of(**{"lists.memory": "all", "lists.recipe": "all", "prompts.draw": "same"})
    assert [node(same, f"train@{s}").train_tokens.value for s in "123"] == [
        40_000 * (200 + m * 449) for m in (10, 20, 30)
    ]
    # At most 5 steps of 128 lists.
    assert node(plan_of(**{"train.max_steps": 5}), "train@1").train_tokens.value == 640 * (200 + 4 * 449)


def test_micro_batches_by_tokens():
    """The longest list has 1,280 + 4 · 1,023 = 5,372 tokens. A limit below changes nothing but what may be predicted;
    of 20,000 tokens all may be, 10 B each of bfloat16 logits in chunks of 2^28 / 32,000 = 8,388 rows."""
    by_list = node(plan_of(), "train@1").memory

    def by_tokens(limit):
        changes = {"train.lists_per_device_batch": None, "train.tokens_per_device_batch": limit}
        return node(plan_of(**changes), "train@1").memory

    assert by_tokens(100)["activations"].value == by_list["activations"].value
    many = by_tokens(20_000)
    assert many["activations"].value == pytest.approx(by_list["activations"].value * 20_000 / 5372, rel=1e-3)
    assert many["logits"].value == pytest.approx(2**28 * 10) and by_tokens(100)["logits"].value == 5372 * 32_000 * 10


def test_judges_by_hand():
    """AlpacaEval: 805 calls, one token each; the template has 1,398 characters: 1,398 / 4.4 + 60 + 459 + 450 = 1,286.7
    tokens: 805 · (1,286.7 · 10 + 1 · 30) / 1e6 = 10.38 USD. Twice, for two policies, and MixEval-Hard: 1,000 calls,
    1,245 / 4.4 + 170 + 256 = 709.0 tokens and 60: (709.0 · 0.5 + 60 · 1.5) / 1e3 = 0.4445 USD, twice."""
    plan = plan_of()
    asked = node(plan, "evaluate@0-alpaca").judge
    assert (asked.calls.value, asked.completion.value) == (805, 1)
    assert asked.prompt.value == pytest.approx(1286.73, abs=0.01)
    assert asked.cost.value == pytest.approx(10.382, abs=0.001)
    assert node(plan, "evaluate@3-hard").judge.cost.value == pytest.approx(0.4445, abs=1e-4)
    assert (plan.totals.judge_cost, plan.unknown("judge_cost")) == (pytest.approx(2 * (10.3823 + 0.4445), abs=1e-3), 0)
    assert node(plan, "evaluate@0-gsm8k").judge is None
    unknown = plan_of(**{"judges.gpt4.model": "meta-llama/Meta-Llama-3-70B-Instruct"})
    assert unknown.unknown("judge_cost") == 2
    assert "unknown price" in render_plan(unknown)
    local = plan_of(**{"judges.gpt4.base_url": "http://127.0.0.1:8000/v1", "judges.gpt4.model": "any"})
    assert node(local, "evaluate@0-alpaca").judge.cost.value == 0
    priced = plan_of(Assumptions().override(["prices.any=1/2"]), **{"judges.gpt4.model": "any"})
    assert node(priced, "evaluate@0-alpaca").judge.cost.value == pytest.approx(805 * (1286.73 + 2) / 1e6, rel=1e-5)


WRONG = {
    "context": ({"sample.max_new_tokens": 3000}, "1,280 + 3,000 tokens of 4,096 (engine.options.max_model_len)"),
    "lists": ({"sample.responses": 3}, "top_bottom needs 4 responses, sample.responses is 3"),
    "unknown policy": ({"policy.model": "a/b"}, "policy.model: a/b: unknown architecture: give a folder"),
    "kv cache": (
        {"engine.options": {"gpu_memory_utilization": 0.18, "max_model_len": 4096}},
        "one sequence of max_model_len 4,096 takes 0.5 GiB; lower max_model_len",
    ),
    "tensor parallel": ({"engine.options": {"tensor_parallel_size": 3}}, "tensor_parallel_size: 3 divides 32 heads"),
    "gpus": ({"engine.options": {"tensor_parallel_size": 2}}, "tensor_parallel_size: 2 of 1 GPU(s)"),
    "data parallel": ({"engine.options": {"data_parallel_size": 2}}, "vLLM refuses it in one process"),
    "training": ({"train.trainer_options": {}}, "AdamW with configs/fsdp-1x80gb-offload.yaml"),
    "adafactor is offered": ({"train.trainer_options": {}}, "train.optimizer adafactor on one GPU 7"),
    "steps": ({"train.lists_per_step": 127, "train.lists_per_device_batch": 2}, "127 is a multiple of"),
    "judge": ({"benchmarks.hard.judge": "parsr"}, "'parsr' is not in `judges`; did you mean 'parser'?"),
    "no judge": ({"benchmarks.alpaca.judge": None}, "benchmarks.alpaca.judge: missing"),
    "optimizer": ({"train.trainer_options": {"optim": "lion"}}, "memory not known: unknown optimizer 'lion'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(case):
    changes, words = WRONG[case]
    failed = plan_of(**changes).failed
    assert any(words in line for line in failed), failed
    assert all("\n" not in line for line in failed)
    *_, checks = render_plan(plan_of(**changes)).partition("Checks\n")
    lines = checks.splitlines()
    assert lines[0].startswith("  FAIL"), "what fails comes first"
    assert lines[-1].startswith(f"Verdict: does not fit, {len(failed)} of ") and failed[0] in lines[-1]


FSFAIRX = {
    "reward": {"model": "sfairXC/FsfairX-LLaMA3-RM-v0.1", "dtype": "bfloat16", "max_length": 4096},
    "score.reward": "sequence_classification",
}
PAIRRM = {"reward": {"model": "llm-blender/PairRM", "kind": "pairrm"}, "score.reward": "pairrm"}


def test_reward_models():
    """FsfairX reads 20,000 · 10 · (200 + 450) = 130,000,000 tokens; a forward pass of a token at 325 attended:
    2 · 7,504,928,768 + 4 · 32 · 4,096 · 325 = 15,180,249,…; at 989e12 · 0.5 that is 1.108 h. PairRM compares every
    ordered pair, 90 per prompt, and reads 2,048 tokens: a longest pair of 1,280 + 2 · 1,024 is cut, which is noted."""
    plan = plan_of(**FSFAIRX)
    flops = 130_000_000 * (2 * 7_504_928_768 + 4 * 32 * 4096 * 325)
    assert node(plan, "score@1").hours.value == pytest.approx(flops / (989e12 * 0.5) / 3600)
    assert node(plan, "score@1").memory["weights"].value == 2 * 7_504_928_768
    plan = plan_of(**PAIRRM)
    assert "20,000 prompts · 10 · 9 ordered pairs · 1100 tokens read" in node(plan, "score@1").notes
    assert any(c.ok is None and "the longest is 3,328: longer candidates are cut" in c.line for c in plan.checks)
    plan = plan_of(**{**FSFAIRX, "reward": {"model": "someone/reward"}})
    assert any("reward.model: someone/reward: unknown architecture" in line for line in plan.failed)
    # Rules do not read the model that is there.
    assert node(plan_of(reward=FSFAIRX["reward"]), "score@1").notes == ("rule exact_match, on the CPU",)


def test_fine_tuning():
    """395,000 examples, given as an assumption, 0.7 of them not held out, 3 epochs of 400 tokens: 331,800,000. Unknown,
    it says how to give it, and the total says that a node is missing. Two examples of 1,024 tokens at once predict up
    to 2,048."""
    tuned = {
        "previous": "0",
        "learning_rate": 1e-5,
        "epochs": 3,
        "examples_per_device_batch": 2,
        "data": {"source": "dataset", "dataset": "someone/solutions", "held_out": 0.3},
    }
    params = parse_params(paper(**{"sft.metamath": tuned}))
    unknown = build_plan(params)
    assert node(unknown, "sft@metamath").train_tokens.value is None
    assert "--assume items.someone/solutions=N" in node(unknown, "sft@metamath").hours.formula
    assert unknown.unknown("hours") == 1
    plan = build_plan(params, Assumptions().override(["items.someone/solutions=395000"]))
    assert node(plan, "sft@metamath").train_tokens.value == 331_800_000
    assert node(plan, "sft@metamath").memory["logits"].value == 2048 * 32_000 * 12
    assert any(line.startswith("sft: ") for line in plan.failed), "AdamW in float32 on one GPU"


def test_a_kind_that_the_plan_does_not_know():
    """It stands in the plan as `no estimate`, in the order of its declaration, and nothing else changes."""
    params = parse_params(paper())
    own = {"probe": {"foreach": "${iterations}", "do": {"cmd": "python -m tasks.probe ${key}", "outs": ["p/${key}"]}}}
    stages = unroll(read_stages() | own, params.model_dump(mode="json"))
    plan = build_plan(params, stages=stages.values())
    names = [n.name for n in plan.nodes]
    assert names[names.index("train@1") + 1] == "probe@1" and node(plan, "probe@1").notes == ("no estimate",)
    assert "probe@1" in render_plan(plan) and "no estimate" in render_plan(plan, formulas=True)
    assert plan.totals.hours == plan_of().totals.hours and plan.failed == []


def test_json_and_text_hold_the_same(tmp_path):
    plan = plan_of()
    tree = json.loads(json.dumps(to_json(plan)))
    assert tree["totals"]["sample_tokens"] == plan.totals.sample_tokens
    assert tree["totals"]["gpu_hours"] == pytest.approx(sum(n.hours.value for n in plan.nodes if n.hours))
    names = [n["name"] for n in tree["nodes"]]
    assert names[:6] == ["inputs", "policy", "reward", "prompts@1", "sample@1", "score@1"]
    assert tree["nodes"][4]["memory"]["weights"] == {
        "value": 2.0 * 7_241_732_096,
        "unit": "B",
        "formula": "7,241,732,096 · 2 B",
    }
    text = render_plan(plan)
    assert text.splitlines()[-1] == f"Verdict: fits, {len(plan.checks)} checks hold, 0 to note"
    for n in plan.nodes:
        assert n.name in text
    for c in plan.checks:
        assert c.line in text
    assert "Formulas" not in text and "Formulas" in render_plan(plan, formulas=True)


def test_assumptions_are_checked():
    a = Assumptions().override(["train_utilisation=0.5", "gpus=4", "items.mine=7", "longest_prompt_tokens=99"])
    assert (a.train_utilisation, a.gpus, a.items["mine"], a.longest_prompt_tokens) == (0.5, 4, 7, 99)
    for pair, words in (
        ("train_utilization=1", "did you mean 'train_utilisation'"),
        ("gpus", "expected NAME=VALUE"),
        ("gpus=x", "expected a number"),
    ):
        with pytest.raises(UserError, match=words):
            Assumptions().override([pair])


def test_a_model_from_nothing():
    """`scratch` is counted from its section, and as the model that it describes."""
    from larpo.models.blank import scratch_policy

    changes = {"policy.model": "scratch", "policy.architecture": {"hidden_size": 64, "heads": 2}}
    plan = plan_of(**changes)
    model, _ = scratch_policy(parse_params(paper(**changes)).policy.architecture)
    assert plan.architectures[0].parameters == model.num_parameters()
