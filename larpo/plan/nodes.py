"""The plan of a run: its nodes in the order of the graph, each with what it needs, and the checks across them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from larpo.benchmarks import build_benchmark
from larpo.errors import UserError
from larpo.lists import RECIPES
from larpo.params import Params
from larpo.plan.architectures import Architecture, find_architecture, scratch_architecture
from larpo.plan.assumptions import Assumptions
from larpo.plan.estimates import (
    Estimate,
    Sharding,
    decoding_hours,
    forward_hours,
    forward_memory,
    number,
    total,
    training_hours,
    training_memory,
    transformers_engine,
    vllm_engine,
)
from larpo.plan.judging import JudgeCalls, judge_calls
from larpo.plan.launching import Launch, read_launch


@dataclass(frozen=True)
class NodePlan:
    """One node. `memory` is per GPU; None where the model is not known or the node needs no GPU."""

    name: str
    model: str | None = None
    gpus: int = 0
    sharding: str = ""
    memory: dict[str, Estimate] = field(default_factory=dict)
    sample_tokens: Estimate | None = None
    train_tokens: Estimate | None = None
    judge: JudgeCalls | None = None
    hours: Estimate | None = None
    notes: tuple[str, ...] = ()

    @property
    def memory_total(self) -> float | None:
        return total(self.memory) if self.memory else None


@dataclass(frozen=True)
class Check:
    """`ok` False: the run would fail or not fit. None: it runs, but somebody should know."""

    ok: bool | None
    line: str


@dataclass(frozen=True)
class Plan:
    nodes: tuple[NodePlan, ...]
    checks: tuple[Check, ...]
    architectures: tuple[Architecture, ...]
    assumptions: Assumptions

    @property
    def failed(self) -> list[str]:
        return [c.line for c in self.checks if c.ok is False]

    def sum_of(self, what: str) -> tuple[float, int]:
        """(sum, number of nodes for which it is not known) of `hours`, `sample_tokens` or `train_tokens`."""
        found = [e for n in self.nodes if (e := getattr(n, what)) is not None]
        return sum(e.value for e in found if e.value is not None), sum(e.value is None for e in found)

    @property
    def clock_hours(self) -> float:
        """Hours of the GPU nodes run one after another, as far as they are known."""
        return sum(n.hours.value / n.gpus for n in self.nodes if n.hours and n.hours.value is not None)

    @property
    def judge_cost(self) -> tuple[float, int]:
        """(US dollars, number of nodes whose judge has an unknown price)."""
        costs = [n.judge.cost.value for n in self.nodes if n.judge]
        return sum(c for c in costs if c is not None), costs.count(None)


class Planner:
    """Holds what the nodes share; `build_plan` is the way in."""

    def __init__(self, params: Params, a: Assumptions, name: str):
        self.params, self.a, self.name = params, a, name
        self.problems: list[Check] = []
        self.architectures: dict[str, Architecture] = {}
        self._counted: dict[str, int | None] = {}
        self.policy = self.architecture(params.policy.model, "policy.model")
        self.launch: Launch = read_launch(getattr(params.train, "launch", None), name)
        self.tensor_parallel = int(params.engine.options.get("tensor_parallel_size", 1))
        self.big = self.policy is not None and self.policy.parameters > 1e9

    def architecture(self, model: str, key: str) -> Architecture | None:
        if model not in self.architectures:
            try:
                scratch = self.params.policy.architecture if model == "scratch" else None
                self.architectures[model] = scratch_architecture(scratch) if scratch else find_architecture(model)
            except UserError as error:
                self.problems.append(Check(False, f"{self.name}: {key}: {error}"))
                return None
        return self.architectures[model]

    # What is sampled and trained on -----------------------------------------------------------------------------

    @property
    def response(self) -> float:
        return self.a.mean_response(self.params.sample.max_new_tokens)

    @property
    def prompt(self) -> float:
        """Mean tokens of a training prompt: of the data set where it is a known one."""
        dataset = (self.params.prompts.dataset or "").lower()
        return next((self.a.item_tokens[k] for k in ("gsm8k", "math") if k in dataset), self.a.prompt_tokens)

    def list_size(self, window: int) -> int:
        """m, responses in a list; candidates of one prompt add up over iterations only where prompts are the same."""
        lists = self.params.lists
        candidates = self.params.sample.responses * (window if self.params.prompts.draw == "same" else 1)
        if lists.recipe in ("top_rest", "all"):
            return candidates
        return lists.top + lists.bottom if lists.recipe == "top_bottom" else RECIPES[lists.recipe].needs(lists)

    def lists_count(self, window: int) -> tuple[int, str]:
        prompts = self.params.prompts
        many = window if prompts.draw == "fresh" else 1
        text = f"{prompts.per_iteration:,} prompts · {many} iterations in memory · {self.a.list_share:g} make a list"
        return round(prompts.per_iteration * many * self.a.list_share), text

    def packed(self, lists: float, prompt: float, m: int, response: float) -> float:
        """Tokens of packed lists: the prompt once, and every response without its last token (larpo/logps.py)."""
        return lists * (prompt + m * (response - 1))

    # Nodes ------------------------------------------------------------------------------------------------------

    def generation(
        self, name: str, prompts: float, prompt: float, responses: float, max_new: int, parallel: int, text: str
    ) -> NodePlan:
        """A node that generates: `responses` in all, to `prompts` prompts of `prompt` tokens; `parallel` share one."""
        engine, a = self.params.engine, self.a
        response = a.mean_response(max_new)
        tokens = Estimate(responses * response, "tokens", f"{text} · {response:g} tokens")
        context = a.longest_prompt_tokens + max_new
        wanted = min(engine.batch_size * parallel, math.ceil(responses))
        vllm = engine.name == "vllm"
        gpus = self.tensor_parallel if vllm else 1
        sharding = Sharding("tensor_parallel", gpus) if gpus > 1 else Sharding()
        base = NodePlan(name, self.params.policy.model, gpus, f"{engine.name}, {sharding}", sample_tokens=tokens)
        if self.policy is None:
            return base
        if vllm:
            utilisation = float(engine.options.get("gpu_memory_utilization", 0.9))
            decoding = vllm_engine(
                self.policy, dtype=engine.dtype, context=context, wanted=wanted, tensor_parallel=gpus,
                utilisation=utilisation, a=a,
            )  # fmt: skip
        else:
            decoding = transformers_engine(self.policy, dtype=engine.dtype, context=context, sequences=wanted)
        hours = decoding_hours(
            self.policy, prompts=prompts, prompt_tokens=prompt, new_tokens=tokens.value, response=response,
            sequences=decoding.sequences, dtype=engine.dtype, gpus=gpus,
            utilisation=a.decode_utilisation if vllm else a.decode_utilisation_transformers, a=a,
        )  # fmt: skip
        return replace(base, memory=decoding.memory, hours=hours)

    def sample(self, s: str) -> NodePlan:
        m, k = self.params.prompts.per_iteration, self.params.sample.responses
        return self.generation(
            f"sample@{s}", m * len(self.params.iterations[s].temperatures), self.prompt, m * k,
            self.params.sample.max_new_tokens, k // len(self.params.iterations[s].temperatures),
            f"{m:,} prompts · {k} responses",
        )  # fmt: skip

    def score(self, s: str) -> NodePlan:
        section = getattr(self.params, "reward", None)
        model = getattr(section, "model", None) or self.params.score.options.get("model")
        if model is None:
            return NodePlan(f"score@{s}", notes=(f"rule {self.params.score.reward}, on the CPU",))
        arch = self.architecture(model, "reward.model")
        if arch is None:
            return NodePlan(f"score@{s}", model, 1)
        dtype = getattr(section, "dtype", None) or arch.dtype
        m, k, prompt = self.params.prompts.per_iteration, self.params.sample.responses, self.prompt
        if arch.kind == "encoder":  # pairs of responses, every ordered pair once
            passes, length, text = m * k * (k - 1), prompt + 2 * self.response, f"{m:,} prompts · {k} · {k - 1} pairs"
        else:
            passes, length, text = m * k, prompt + self.response, f"{m:,} prompts · {k} responses"
        longest = min(arch.max_context, self.a.longest_prompt_tokens + self.params.sample.max_new_tokens)
        batch = max(getattr(section, "batch_tokens", 8192), longest)
        hours = forward_hours(arch, passes * length, length / (1 if arch.kind == "encoder" else 2), dtype, self.a)
        return NodePlan(
            f"score@{s}", model, 1, "one GPU",
            memory=forward_memory(arch, tokens=batch, predicted=0, dtype=dtype), hours=hours,
            notes=(f"{text} · {length:g} tokens read",),
        )  # fmt: skip

    def reference(self, s: str) -> NodePlan:
        window = len(self.params.memory_window(s))
        m, (lists, text) = self.list_size(window), self.lists_count(window)
        dtype, batch = self.params.policy.dtype, self.params.reference.lists_per_batch
        base = NodePlan(f"reference@{s}", self.params.policy.model, 1, "one GPU")
        if self.policy is None:
            return base
        max_new, longest = self.params.sample.max_new_tokens, self.a.longest_prompt_tokens
        tokens = self.packed(lists, self.prompt, m, self.response)
        return replace(
            base,
            memory=forward_memory(
                self.policy,
                tokens=int(self.packed(batch, longest, m, max_new)),
                predicted=batch * m * max_new,
                dtype=dtype,
            ),
            hours=forward_hours(self.policy, tokens, self.packed(batch, self.prompt, m, self.response), dtype, self.a),
            notes=(f"{text} = {lists:,} lists of {m}",),
        )

    def train(self, s: str) -> NodePlan:
        window = len(self.params.memory_window(s))
        m, (lists, text) = self.list_size(window), self.lists_count(window)
        p = self.params.train
        examples = lists * p.epochs
        if p.max_steps > 0:
            examples = min(examples, p.max_steps * p.lists_per_step)
        prompt, response = self.prompt, self.response
        tokens = Estimate(
            self.packed(examples, prompt, m, response), "tokens",
            f"{examples:,} lists [{text} · {p.epochs} epochs] · ({prompt:g} + {m} · ({response:g} − 1))",
        )  # fmt: skip
        longest, max_new, batch = (
            self.a.longest_prompt_tokens,
            self.params.sample.max_new_tokens,
            p.lists_per_device_batch,
        )
        return self.optimisation(
            f"train@{s}", p, tokens, examples / batch,
            int(self.packed(batch, longest, m, max_new)), batch * m * max_new, self.packed(batch, prompt, m, response),
            self.launch,
        )  # fmt: skip

    def optimisation(
        self, name: str, section: Any, tokens: Estimate, micro: float, peak: int, predicted: int, context: float,
        launch: Launch,
    ) -> NodePlan:  # fmt: skip
        base = NodePlan(
            name, self.params.policy.model, launch.sharding.gpus, str(launch.sharding), train_tokens=tokens
        )  # fmt: skip
        if self.policy is None:
            return base
        autocast = section.autocast == "bfloat16" or launch.bfloat16
        memory = training_memory(
            self.policy, tokens=peak, predicted=predicted, dtype=self.params.policy.dtype, autocast=autocast,
            checkpointing=section.gradient_checkpointing,
            optimizer=str(section.trainer_options.get("optim", "adamw_torch")), sharding=launch.sharding,
        )  # fmt: skip
        hours = training_hours(
            self.policy, tokens.value, context, dtype="bfloat16" if autocast else self.params.policy.dtype,
            checkpointing=section.gradient_checkpointing, micro_batches=micro, sharding=launch.sharding, a=self.a,
        )  # fmt: skip
        return replace(base, memory=memory, hours=hours)

    def sft(self, name: str, section: Any) -> NodePlan:
        """Fine-tuning: one prompt and one response per example, padded to at most max_length."""
        examples = section.examples or self.a.items.get(str(section.data.dataset))
        if examples is None:
            source = section.data.dataset
            unknown = Estimate(
                None,
                "tokens",
                f"sft.{name}.examples: null and the size of {source} is not known; --assume items.{source}=N",
            )
            return NodePlan(
                f"sft@{name}", self.params.policy.model, 1, train_tokens=unknown, hours=replace(unknown, unit="GPU h")
            )
        each = min(self.a.sft_tokens, section.max_length)
        tokens = Estimate(
            examples * section.epochs * each, "tokens",
            f"{int(examples):,} examples · {section.epochs} epochs · {each:g} tokens",
        )  # fmt: skip
        batch = section.examples_per_device_batch
        launch = read_launch(getattr(section, "launch", None), self.name)
        return self.optimisation(
            f"sft@{name}", section, tokens, examples * section.epochs / batch, batch * section.max_length,
            batch * section.max_length, each, launch,
        )  # fmt: skip

    def benchmark_items(self, name: str) -> int | None:
        """Items of a benchmark: counted where its data lie here, its public size where they are on the hub."""
        b = self.params.benchmarks[name]
        if b.items or b.data is None or not Path(b.data).exists():
            return b.items or self.a.items.get(b.benchmark)
        if name not in self._counted:
            try:
                self._counted[name] = len(build_benchmark(self.params, name, self.name).items())
            except UserError as error:
                self.problems.append(Check(False, str(error)))
                self._counted[name] = None
        return self._counted[name]

    def generate(self, policy: str, name: str) -> NodePlan:
        b = self.params.benchmarks[name]
        items, g = self.benchmark_items(name), b.generate
        stage = f"generate@{policy}-{name}"
        if items is None:
            unknown = Estimate(
                None, "tokens", f"benchmarks.{name}.items: null, and the size of {b.benchmark} is not known"
            )
            return NodePlan(stage, self.params.policy.model, 1, sample_tokens=unknown)
        sampled = min(g.sampled_items or items, items) * g.samples * len(g.temperatures)
        text = f"({number(items)} items · {1 + g.refinements} [greedy] + {number(sampled)} samples)"
        prompt = self.a.item_tokens.get(b.benchmark, self.a.prompt_tokens)
        asked = items * (1 + g.refinements) + (sampled / g.samples if g.samples else 0)
        return self.generation(
            stage, asked, prompt, items * (1 + g.refinements) + sampled, g.max_new_tokens, max(g.samples, 1), text
        )

    def evaluate(self, policy: str, name: str) -> NodePlan:
        b = self.params.benchmarks[name]
        return NodePlan(
            f"evaluate@{policy}-{name}", judge=judge_calls(self.params, b, self.benchmark_items(name), self.a)
        )

    def embed(self, name: str) -> NodePlan:
        p = self.params.retrieval[name]
        arch, passages = self.architecture(p.model, f"retrieval.{name}.model"), self.a.items.get(name)
        if arch is None:
            return NodePlan(f"embed@{name}", p.model, 1)
        memory = forward_memory(arch, tokens=p.batch_size * p.max_length, predicted=0, dtype="float32")
        hours = (
            Estimate(None, "GPU h", f"number of passages not known; --assume items.{name}=N")
            if passages is None
            else forward_hours(arch, passages * p.max_length, p.max_length, "float32", self.a)
        )
        return NodePlan(f"embed@{name}", p.model, 1, "one GPU", memory=memory, hours=hours)

    def nodes(self) -> list[NodePlan]:
        p = self.params
        out = [NodePlan("policy", p.policy.model)]
        out += [self.sft(name, section) for name, section in getattr(p, "sft", {}).items()]
        for s in sorted(p.iterations, key=int):
            out += [NodePlan(f"prompts@{s}"), self.sample(s), self.score(s), NodePlan(f"candidates@{s}")]
            out += [NodePlan(f"lists@{s}"), self.reference(s), self.train(s)]
        for b in p.benchmarks:
            out += [NodePlan(f"items@{b}")]
            out += [node for s in p.evaluate.policies for node in (self.generate(s, b), self.evaluate(s, b))]
        for name in p.retrieval:
            out += [self.embed(name), NodePlan(f"retrieve@{name}")]
        return [*out, NodePlan("report")]


def build_plan(params: Params, assumptions: Assumptions | None = None, name: str = "params.yaml") -> Plan:
    """The plan of the run that `params` describes. `name` is the file that lines name.

    Raises
    ------
    UserError
        `train.launch` names a file that is missing or that Accelerate would refuse. Everything else that is wrong is a
        failed check in the plan.
    """
    from larpo.plan.checks import all_checks

    planner = Planner(params, assumptions or Assumptions(), name)
    nodes = planner.nodes()
    checks = [*planner.problems, *all_checks(planner, nodes)]
    unique = {c.line: c for c in checks}
    return Plan(tuple(nodes), tuple(unique.values()), tuple(planner.architectures.values()), planner.a)
