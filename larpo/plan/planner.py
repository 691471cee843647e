"""The plan of a run: its nodes in the order of the graph, each with what it needs, and the checks across them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from larpo.benchmarks import build_benchmark
from larpo.config.params import Params
from larpo.errors import UserError
from larpo.lists.recipes import RECIPES
from larpo.plan.architectures import Architecture, find_architecture, scratch_architecture
from larpo.plan.assumptions import Assumptions
from larpo.plan.estimates import (
    Estimate,
    Sharding,
    decoding_hours,
    forward_hours,
    forward_memory,
    number,
    training_hours,
    training_memory,
    transformers_engine,
    vllm_engine,
)
from larpo.plan.kinds.judge import judge_calls
from larpo.plan.kinds.retrieve import embed, lists, retrieve
from larpo.plan.kinds.reward import best_of_n, reward, score
from larpo.plan.launch import Launch, read_launch
from larpo.plan.plans import Check, NodePlan, Plan
from larpo.plan.sizes import of_characters, rows_of, unknown_size


class Planner:
    """Holds what the nodes share; `build_plan` is the way in."""

    def __init__(self, params: Params, a: Assumptions, name: str):
        self.params, self.a, self.name = params, of_characters(params, a), name
        self.problems: list[Check] = []
        self.architectures: dict[str, Architecture] = {}
        self._counted: dict[str, int | None] = {}
        self.policy = self.architecture(params.policy.model, "policy.model")
        self.launch: Launch = read_launch(params.train.launch, name)
        self.tensor_parallel = int(params.engine.options.get("tensor_parallel_size", 1))
        self.big = self.policy is not None and self.policy.parameters > 1e9

    def architecture(self, model: str, key: str) -> Architecture | None:
        if model not in self.architectures:
            try:
                # A reward on a policy has its size, whatever taught it.
                of_policy = self.params.reward.policy is not None and model == self.params.reward.source
                known = self.params.policy.model if of_policy else model
                scratch = self.params.policy.architecture if known == "scratch" else None
                made = {"policy": "data/policy/0", "reward": "data/reward"}.get(key.partition(".")[0])
                code = self.params.may_run_code(made) if made else None
                self.architectures[model] = scratch_architecture(scratch) if scratch else find_architecture(known, code)
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
        """m, responses in a list, an upper bound where the recipe takes all of a kind; candidates of one prompt add up
        over iterations only where prompts are the same."""
        wanted = self.params.lists
        top, bottom = RECIPES.load(wanted.recipe).counts(wanted)
        candidates = self.params.sample.responses * (window if self.params.prompts.draw == "same" else 1)
        if wanted.positive == "gold":  # one solution per prompt
            return 1 + (candidates if bottom is None else bottom)
        if wanted.negatives != "own":  # the other prompts' responses, whose number the recipe names
            return (candidates if top is None else top) + (bottom or 0)
        return candidates if top is None or bottom is None else top + bottom

    @property
    def candidates(self) -> int:
        """Responses per prompt and iteration that are scored: k, and the solution with `sample.gold`."""
        return self.params.sample.responses + int(self.params.sample.gold)

    def lists_count(self, window: int) -> tuple[int, str]:
        prompts = self.params.prompts
        many = window if prompts.draw == "fresh" else 1
        text = f"{prompts.per_iteration:,} prompts · {many} iterations in memory · {self.a.list_share:g} make a list"
        return round(prompts.per_iteration * many * self.a.list_share), text

    def packed(self, lists: float, prompt: float, m: int, response: float) -> float:
        """Tokens of packed lists: the prompt once, every response without its last token (larpo/training/logps.py)."""
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
                self.policy,
                dtype=engine.dtype,
                context=context,
                wanted=wanted,
                tensor_parallel=gpus,
                utilisation=utilisation,
                a=a,
            )
        else:
            decoding = transformers_engine(self.policy, dtype=engine.dtype, context=context, sequences=wanted)
        hours = decoding_hours(
            self.policy,
            prompts=prompts,
            prompt_tokens=prompt,
            new_tokens=tokens.value,
            response=response,
            sequences=decoding.sequences,
            dtype=engine.dtype,
            gpus=gpus,
            utilisation=a.decode_utilisation if vllm else a.decode_utilisation_transformers,
            a=a,
        )
        return replace(base, memory=decoding.memory, hours=hours)

    def sample(self, s: str) -> NodePlan:
        m, k = self.params.prompts.per_iteration, self.params.sample.responses
        return self.generation(
            f"sample@{s}",
            m * len(self.params.iterations[s].temperatures),
            self.prompt,
            m * k,
            self.params.sample.max_new_tokens,
            k // len(self.params.iterations[s].temperatures),
            f"{m:,} prompts · {k} responses",
        )

    def reference(self, s: str) -> NodePlan:
        window = len(self.params.memory_window(s))
        m, (lists, text) = self.list_size(window), self.lists_count(window)
        dtype, batch = self.params.policy.dtype, self.params.reference.lists_per_batch
        base = NodePlan(f"reference@{s}", self.params.policy.model, 1, "one GPU")
        if self.policy is None:
            return base
        text = f"{text} = {lists:,} lists of {m}"
        if self.params.reference.mismatched:
            m, text = m + 1, f"{text} and a mismatched response"
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
            notes=(text,),
        )

    def train(self, s: str) -> NodePlan:
        window = len(self.params.memory_window(s))
        m, (lists, text) = self.list_size(window), self.lists_count(window)
        m += self.params.reference.mismatched  # it stands behind the list's own in the same forward pass
        p = self.params.train
        examples = lists * p.epochs
        if p.max_steps > 0:
            examples = min(examples, p.max_steps * p.lists_per_step)
        prompt, response = self.prompt, self.response
        tokens = Estimate(
            self.packed(examples, prompt, m, response),
            "tokens",
            f"{examples:,} lists [{text} · {p.epochs} epochs] · ({prompt:g} + {m} · ({response:g} − 1))",
        )
        longest, max_new, batch = (
            self.a.longest_prompt_tokens,
            self.params.sample.max_new_tokens,
            p.lists_per_device_batch,
        )
        return self.optimisation(
            f"train@{s}",
            self.policy,
            self.params.policy.model,
            self.params.policy.dtype,
            p,
            tokens,
            examples / batch,
            int(self.packed(batch, longest, m, max_new)),
            batch * m * max_new,
            self.packed(batch, prompt, m, response),
            self.launch,
        )

    def optimisation(
        self,
        name: str,
        arch: Architecture | None,
        model: str,
        dtype: str,
        section: Any,
        tokens: Estimate,
        micro: float,
        peak: int,
        predicted: int,
        context: float,
        launch: Launch,
        rows: int = 1,
    ) -> NodePlan:
        """Training of all weights: `micro` micro-batches of at most `peak` tokens, `predicted` of them through the
        vocabulary, in `rows` padded rows; a mean token attends to `context` others."""
        base = NodePlan(name, model, launch.sharding.gpus, str(launch.sharding), train_tokens=tokens)
        if arch is None:
            return base
        autocast = section.autocast == "bfloat16" or launch.bfloat16
        memory = training_memory(
            arch,
            tokens=peak,
            predicted=predicted,
            dtype=dtype,
            autocast=autocast,
            checkpointing=section.gradient_checkpointing,
            optimizer=str(section.trainer_options.get("optim", "adamw_torch")),
            sharding=launch.sharding,
            rows=rows,
        )
        if tokens.value is None:
            return replace(base, memory=memory, hours=replace(tokens, unit="GPU h"))
        hours = training_hours(
            arch,
            tokens.value,
            context,
            dtype="bfloat16" if autocast else dtype,
            checkpointing=section.gradient_checkpointing,
            micro_batches=micro,
            sharding=launch.sharding,
            a=self.a,
        )
        return replace(base, memory=memory, hours=hours)

    def sft(self, name: str, section: Any) -> NodePlan:
        """Fine-tuning: one prompt and one response per example, padded to at most max_length."""
        source, batch = str(section.data.dataset), section.examples_per_device_batch
        examples = section.examples or rows_of(section.data.dataset, self.a)
        each = min(self.a.sft_tokens, section.max_length)
        seen = 0.0
        if examples is None:
            tokens = Estimate(None, "tokens", unknown_size(source, f"sft.{name}.examples: null"))
        else:
            share = 1.0 if section.examples else 1 - section.data.held_out
            seen = examples * share * section.epochs
            text = f"{int(examples):,} examples" + (f" · {share:g} [not held out]" if share < 1 else "")
            text += f" · {section.epochs} epochs"
            if 0 < section.max_steps * section.examples_per_step < seen:
                seen = section.max_steps * section.examples_per_step
                text = f"{section.max_steps:,} steps · {section.examples_per_step} examples"
            tokens = Estimate(seen * each, "tokens", f"{text} · {each:g} tokens")
        launch = read_launch(section.launch, self.name, f"sft.{name}")
        return self.optimisation(
            f"sft@{name}",
            self.policy,
            self.params.policy.model,
            self.params.policy.dtype,
            section,
            tokens,
            seen / batch,
            batch * section.max_length,
            batch * section.max_length,
            each,
            launch,
            rows=batch,
        )

    def benchmark_items(self, name: str) -> int | None:
        """Items of a benchmark: counted where its data lie here, its public size where they are on the hub."""
        b = self.params.benchmarks[name]
        if b.items or b.data is None or not Path(b.data).exists():
            return b.items or self.a.items.get(b.benchmark)
        if name not in self._counted:
            try:
                self._counted[name] = len(build_benchmark(self.params, name).items())
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
        prompt = self.a.item_tokens.get(b.benchmark, self.prompt)
        asked = items * (1 + g.refinements) + (sampled / g.samples if g.samples else 0)
        return self.generation(
            stage, asked, prompt, items * (1 + g.refinements) + sampled, g.max_new_tokens, max(g.samples, 1), text
        )

    def evaluate(self, policy: str, name: str) -> NodePlan:
        b = self.params.benchmarks[name]
        return NodePlan(
            f"evaluate@{policy}-{name}", judge=judge_calls(self.params, b, self.benchmark_items(name), self.a)
        )

    def nodes(self, only: Collection[str] | None = None) -> list[NodePlan]:
        """A plan for each stage of dvc.yaml (a test compares them), or for those of these names."""
        p = self.params
        makers: dict[str, Callable[[], NodePlan]] = {"policy": lambda: NodePlan("policy", p.policy.model)}
        makers |= {f"sft@{n}": partial(self.sft, n, section) for n, section in p.sft.items()}
        makers["reward"] = partial(reward, self)
        for s in sorted(p.iterations, key=int):
            makers[f"prompts@{s}"] = partial(NodePlan, f"prompts@{s}")
            makers[f"sample@{s}"] = partial(self.sample, s)
            makers[f"score@{s}"] = partial(score, self, s)
            makers[f"candidates@{s}"] = partial(NodePlan, f"candidates@{s}")
            makers[f"lists@{s}"] = partial(lists, self, s)
            makers[f"reference@{s}"] = partial(self.reference, s)
            makers[f"train@{s}"] = partial(self.train, s)
        for b in p.benchmarks:
            makers[f"items@{b}"] = partial(NodePlan, f"items@{b}")
            for s in p.evaluate.policies:
                makers[f"generate@{s}-{b}"] = partial(self.generate, s, b)
                makers[f"evaluate@{s}-{b}"] = partial(self.evaluate, s, b)
        makers |= {f"best_of_n@{name}": partial(best_of_n, self, name) for name in p.best_of_n}
        for name in p.retrieval:
            makers[f"embed@{name}"] = partial(embed, self, name)
            makers[f"retrieve@{name}"] = partial(retrieve, self, name)
        makers["report"] = partial(NodePlan, "report")
        return [make() for name, make in makers.items() if only is None or name in only]


def build_plan(
    params: Params,
    assumptions: Assumptions | None = None,
    name: str = "params.yaml",
    only: Collection[str] | None = None,
) -> Plan:
    """The plan of the run that `params` describes.

    Parameters
    ----------
    name
        The file that lines name.
    only
        Names of the nodes that are made, where it is not the whole graph; others are neither planned nor checked.

    Raises
    ------
    UserError
        `train.launch` names a file that is missing or that Accelerate would refuse. Everything else that is wrong is a
        failed check in the plan.
    """
    from larpo.plan.checks import all_checks

    planner = Planner(params, assumptions or Assumptions(), name)
    nodes = planner.nodes(only)
    used = {node.model for node in nodes}
    checks = [*planner.problems, *all_checks(planner, nodes)]
    unique = {c.line: c for c in checks}
    architectures = tuple(arch for model, arch in planner.architectures.items() if model in used)
    return Plan(tuple(nodes), tuple(unique.values()), architectures, planner.a)
