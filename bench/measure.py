"""One measurement in a process of its own, so that its peak memory is its own: seconds of each training step.

    python bench/measure.py step --side ours --lists 2 --responses 4 --prompt 180 --response 100
    python bench/measure.py step --side trl --pairs once …        # TRL's DPOTrainer with its best options
    python bench/measure.py forward --lists 4 --responses 4 --prompt 512 --response 400

Prints one line of JSON. Random weights of SmolLM2-135M's architecture and random tokens: what is measured depends on
sizes alone. Both sides train on the same lists, everything of a step in one batch.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from itertools import combinations

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

VOCABULARY, END, PAD = 49_152, 0, 1
SPREAD = (0.6, 1.4)  # of the mean length of a response


def policy() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def lists_of(count: int, responses: int, prompt: int, response: int) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt, responses) as token ids; a response ends with the end token."""
    draw = random.Random(0)

    def ids(n: int) -> list[int]:
        return [draw.randrange(2, VOCABULARY) for _ in range(n)]

    def answer() -> list[int]:
        return [*ids(round(response * draw.uniform(*SPREAD)) - 1), END]

    return [(ids(prompt), [answer() for _ in range(responses)]) for _ in range(count)]


class Clock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.start)


def settings(folder: str, batch: int, steps: int) -> dict:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "seed": 0,
    }


def train_ours(lists: list, steps: int, folder: str) -> list[float]:
    from transformers import TrainingArguments

    from larpo.objectives import build
    from larpo.training.list_trainer import ListTrainer, TrainingList
    from larpo.training.packing import ResponseList

    entries = [
        TrainingList(ResponseList(prompt, answers), [float(-i) for i in range(len(answers))], [0.0] * len(answers))
        for prompt, answers in lists
    ]
    args = TrainingArguments(**settings(folder, len(entries), steps), remove_unused_columns=False)
    clock = Clock()
    ListTrainer(policy(), args, entries, build("lambdarank", beta=0.1), callbacks=[clock]).train()
    return clock.seconds


def train_trl(lists: list, steps: int, folder: str, pairs: str) -> list[float]:
    """Reference log-probabilities computed beforehand, the head fused with the loss (what DPOTrainer does by itself);
    sorting by length has nothing to do where a step is one batch."""
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"</s>": END, "<pad>": PAD} | {f"w{i}": i for i in range(2, VOCABULARY)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")

    def text(ids: list[int]) -> str:
        return " ".join("</s>" if i == END else f"w{i}" for i in ids)

    def pairs_of(n: int) -> list[tuple[int, int]]:
        return list(combinations(range(n), 2)) if pairs == "all" else [(i, i + 1) for i in range(0, n, 2)]

    rows = [
        {"prompt": text(prompt), "chosen": f" {text(answers[a])}", "rejected": f" {text(answers[b])}"}
        for prompt, answers in lists
        for a, b in pairs_of(len(answers))
    ]
    args = trl.DPOConfig(**settings(folder, len(rows), steps), precompute_ref_log_probs=True, max_length=None)
    clock, data = Clock(), Dataset.from_list(rows)
    trainer = trl.DPOTrainer(policy(), args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
    read = sum(len(row["prompt_ids"]) + len(row[side]) for row in trainer.train_dataset for side in CHOICES)
    expected = sum(len(p) + len(a[i]) for p, a in lists for pair in pairs_of(len(a)) for i in pair)
    if read != expected:
        raise RuntimeError(f"TRL reads {read} tokens, expected {expected}: the sides would not do the same work")
    trainer.train()
    return clock.seconds


CHOICES = ("chosen_ids", "rejected_ids")


def forward_and_backward(lists: list, steps: int) -> list[float]:
    """Log-probabilities of one micro-batch and their gradients, without an optimizer."""
    try:
        from larpo.training.logps import response_logps
        from larpo.training.packing import ResponseList, pack
    except ImportError:  # an earlier revision's places
        from larpo.logps import ResponseList, pack, response_logps

    model, seconds = policy().train(), []
    batch = pack([ResponseList(prompt, answers) for prompt, answers in lists])
    for _ in range(steps):
        start = time.perf_counter()
        response_logps(model, batch)[0].sum().backward()
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "forward"])
    parser.add_argument("--side", choices=["ours", "trl"], default="ours")
    parser.add_argument("--pairs", choices=["once", "all"], default="once")
    for name, default in (("lists", 2), ("responses", 4), ("prompt", 180), ("response", 100), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    lists = lists_of(a.lists, a.responses, a.prompt, a.response)
    with tempfile.TemporaryDirectory() as folder:
        if a.what == "forward":
            seconds = forward_and_backward(lists, a.steps)
        elif a.side == "ours":
            seconds = train_ours(lists, a.steps, folder)
        else:
            seconds = train_trl(lists, a.steps, folder, a.pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tokens = sum(len(answer) for _, answers in lists for answer in answers)
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "response_tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
