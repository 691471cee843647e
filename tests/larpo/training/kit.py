"""A tiny policy, lists for it, and one way to train it."""

import dataclasses
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from larpo.training.list_trainer import TrainingList
from larpo.training.logps import response_logps
from larpo.training.packing import ResponseList, pack

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=1, **TINY)).eval()


def logps_of(model, prompt: list[int], responses: list[list[int]]) -> list[float]:
    with torch.no_grad():
        return response_logps(model, pack([ResponseList(prompt, responses)]))[0][0].tolist()


def some_lists(model, sizes: list[int]) -> list[TrainingList]:
    """One list per entry of `sizes`, with the reference log-probabilities of `model` itself."""
    generator = torch.Generator().manual_seed(7)
    lists = []
    for size in sizes:
        responses = [
            torch.randint(2, 30, (int(torch.randint(1, 6, (1,), generator=generator)),), generator=generator).tolist()
            for _ in range(size)
        ]
        rewards = [float(size - j) for j in range(size)]
        lists.append(TrainingList(ResponseList([3, 4, 5], responses), rewards, logps_of(model, [3, 4, 5], responses)))
    return lists


def with_mismatched(reference, lists: list[TrainingList]) -> list[TrainingList]:
    """Prompt i behind another prompt's response: here 3 + i tokens, with their log π_ref."""
    others = [[9 + i] * (3 + i) for i in range(len(lists))]
    return [
        dataclasses.replace(entry, mismatched=(other, *logps_of(reference, entry.tokens.prompt_ids, [other])))
        for entry, other in zip(lists, others, strict=True)
    ]


def arguments(folder: Path, **settings) -> TrainingArguments:
    """On the CPU, seeded, every step logged, nothing saved; two steps at rate 1e-2 if `settings` say nothing else."""
    plain = {
        "output_dir": str(folder),
        "max_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "use_cpu": True,
        "seed": 0,
        "data_seed": 0,
    }
    return TrainingArguments(**plain | settings)


def curve(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same_weights(one, other, **tolerance: float) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}", **tolerance)
