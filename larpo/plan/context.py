"""What a plan's nodes share: parameters, assumptions, architectures, and what an iteration samples and trains on."""

from pathlib import Path

from larpo.benchmarks import build_benchmark
from larpo.config.params import Params
from larpo.errors import UserError, at
from larpo.lists.recipes import counts_of
from larpo.plan.architectures import Architecture, find_architecture, scratch_architecture
from larpo.plan.assumptions import Assumptions
from larpo.plan.launch import Launch, read_launch
from larpo.plan.memory import MicroBatch
from larpo.plan.plans import Check
from larpo.plan.sizes import of_characters


class Context:
    """One run to be planned. `problems` are checks that failed on the way; `file` is what their lines name."""

    def __init__(self, params: Params, a: Assumptions, file: str):
        self.params, self.a, self.file = params, of_characters(params, a), file
        self.problems: list[Check] = []
        self.architectures: dict[str, Architecture] = {}
        self._items: dict[str, int | None] = {}
        self.policy = self.architecture(params.policy.model, "policy.model")
        self.launch: Launch = read_launch(params.train.launch, file)
        self.tensor_parallel = int(params.engine.options.get("tensor_parallel_size", 1))

    def architecture(self, model: str, key: str) -> Architecture | None:
        """Of the model at `key` of params.yaml; None where it is not known, which is a problem."""
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
                self.problems.append(Check(False, f"{self.file}: {key}: {error}"))
                return None
        return self.architectures[model]

    @property
    def response(self) -> float:
        """Mean tokens of a sampled response."""
        return self.a.mean_response(self.params.sample.max_new_tokens)

    @property
    def prompt(self) -> float:
        """Mean tokens of a training prompt: of the data set where it is a known one."""
        dataset = (self.params.prompts.dataset or "").lower()
        return next((self.a.item_tokens[k] for k in ("gsm8k", "math") if k in dataset), self.a.prompt_tokens)

    @property
    def candidates(self) -> int:
        """Responses per prompt and iteration that are scored: k, and the solution with `sample.gold`."""
        return self.params.sample.responses + int(self.params.sample.gold)

    def window(self, s: str) -> int:
        """Iterations whose candidates iteration s makes its lists of."""
        return len(self.params.memory_window(s))

    def list_size(self, window: int) -> int:
        """m, responses in a list, an upper bound where the recipe takes all of a kind; candidates of one prompt add up
        over iterations only where prompts are the same."""
        wanted = self.params.lists
        top, bottom = counts_of(wanted)
        candidates = self.params.sample.responses * (window if self.params.prompts.draw == "same" else 1)
        if wanted.positive == "gold":  # one solution per prompt
            return 1 + (candidates if bottom is None else bottom)
        if wanted.negatives != "own":  # the other prompts' responses, whose number the recipe names
            return (candidates if top is None else top) + (bottom or 0)
        return candidates if top is None or bottom is None else top + bottom

    def lists_count(self, window: int) -> tuple[int, str]:
        """(lists of an iteration, how they are counted)."""
        prompts = self.params.prompts
        many = window if prompts.draw == "fresh" else 1
        text = f"{prompts.per_iteration:,} prompts · {many} iterations in memory · {self.a.list_share:g} make a list"
        return round(prompts.per_iteration * many * self.a.list_share), text

    def list_tokens(self, m: int) -> float:
        """Mean tokens of a packed list: the prompt once, every response without its last token
        (larpo/training/packing.py)."""
        return self.prompt + m * (self.response - 1)

    def attended(self, m: int) -> float:
        """Tokens that a mean token sees: a prompt's half of it, a response's the prompt and half of its own."""
        p, r = self.prompt, self.response - 1
        return (p * p / 2 + m * r * (p + r / 2)) / (p + m * r)

    def in_memory(self, m: int, lists: int | None, tokens: int | None = None) -> MicroBatch:
        """The longest micro-batch of lists of m responses: so many lists, or as many as there are in `tokens`, at least
        one."""
        prompt, response = self.a.longest_prompt_tokens, self.params.sample.max_new_tokens
        longest = prompt + m * (response - 1)
        if tokens is None:
            return MicroBatch(lists * longest, lists * m * response, lists * m * prompt)
        most = max(tokens, longest)
        # Shorter lists fill it up: at most every token is predicted, and prompts have their share of the longest list.
        return MicroBatch(most, most, round(most / longest * m * prompt))

    def items(self, name: str) -> int | None:
        """Items of a benchmark: counted where its data lie here, its public size where they are on the hub."""
        b = self.params.benchmarks[name]
        if b.items or b.data is None or not Path(b.data).exists():
            return b.items or self.a.items.get(b.benchmark)
        if name not in self._items:
            try:
                with at(file=self.file):
                    self._items[name] = len(build_benchmark(self.params, name).items())
            except UserError as error:
                self.problems.append(Check(False, str(error)))
                self._items[name] = None
        return self._items[name]

    def unknown_items(self, name: str) -> str:
        """Why a number that follows from them is not known."""
        return f"benchmarks.{name}.items: null, and the size of {self.params.benchmarks[name].benchmark} is not known"
