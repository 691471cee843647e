"""This machine measured in about a minute: what a plan assumes of a GPU's data sheet, replaced by rates of this run's
policy here, and lengths by those of its own prompts and first responses.

    matmul rate, memory bandwidth     two kernels of torch
    utilisations                      a forward pass, a training step and a batch of sampling, each against what its
                                      formula gives at those rates
"""

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from larpo.config.params import Params
from larpo.engines import Sampling, build_engine
from larpo.errors import UserError
from larpo.models.chat import render_prompts
from larpo.models.load import load_model, load_tokenizer
from larpo.models.resolve import Checkpoint
from larpo.plan.architectures import Architecture, find_architecture, scratch_architecture
from larpo.plan.assumptions import GIB, Assumptions
from larpo.plan.formula import evaluate
from larpo.plan.time import decoding_hours, forward_flops
from larpo.sources.prompts import draw
from larpo.training.forward import CHUNK
from larpo.training.logps import response_logps
from larpo.training.packing import ResponseList, pack, tokens_of

POLICY, PROMPTS, LISTS = Path("data/policy/0"), 32, 4


def calibrated(params: Params, a: Assumptions) -> Assumptions:
    """`a` with this machine's rates for this run's policy.

    Raises
    ------
    UserError
        The policy is not there yet.
    """
    if not POLICY.is_dir():
        raise UserError(
            f"larpo plan --calibrate: {POLICY}: not found, and it is measured; run `dvc repro policy` first"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arch = scratch_architecture(params.policy.architecture) if params.policy.architecture else None
    arch = arch or find_architecture(str(POLICY), ("policy.trust_remote_code", params.policy.trust_remote_code))
    a = replace(a, **machine(device))
    tokenizer = load_tokenizer(Checkpoint(str(POLICY)))
    messages = draw(params.prompts, PROMPTS, params.seed, held_out=False)["messages"].tolist()
    prompts = render_prompts(tokenizer, messages)
    lengths = [len(ids) for ids in prompts]
    a = replace(a, prompt_tokens=sum(lengths) / len(lengths), longest_prompt_tokens=max(lengths))
    model = load_model(Checkpoint(str(POLICY)), params.policy.dtype).to(device)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if device == "cpu" else 0
    a = replace(a, process_gib=max(0.0, held - sum(p.nbytes for p in model.parameters())) / GIB)
    a, responses = sampling(params, a, arch, prompts)
    m = min(params.sample.responses, 4)
    lists = [ResponseList(p, own[:m]) for p, own in zip(prompts, responses, strict=False)]
    return training(model, params, a, arch, lists[: params.train.lists_per_device_batch or LISTS])


def machine(device: str) -> dict[str, float]:
    """Memory of this machine and the rates of its kernels."""
    size, memory = (8192, torch.cuda.mem_get_info()[1]) if device == "cuda" else (1024, psutil.virtual_memory().total)
    rates = {}
    for name, dtype in (("fp32_flops", torch.float32), ("bf16_flops", torch.bfloat16)):
        n = size if dtype is torch.float32 or device == "cuda" else size // 4  # slow where a processor has no bfloat16
        x = torch.randn(n, n, device=device, dtype=dtype)
        rates[name] = 2 * n**3 / seconds(lambda x=x: x @ x, device)
    x = torch.zeros(2**26, device=device)  # 256 MiB, read and written
    rates["memory_bytes_per_s"] = 2 * x.nbytes / seconds(x.clone, device)
    reserved = 2.0 if device == "cuda" else 0.0
    return rates | {
        "gpus": 1,
        "gpu_memory_gib": memory / GIB,
        "gpu_reserved_gib": reserved,
        "logits_at_once": CHUNK[device],
    }


def seconds(run: Callable[[], object], device: str, times: int = 3) -> float:
    """Of the fastest of some runs, after one that is not counted."""
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def sampling(
    params: Params, a: Assumptions, arch: Architecture, prompts: list[list[int]]
) -> tuple[Assumptions, list[list[list[int]]]]:
    """One batch as iteration 1 samples it: the engine's utilisation, mean length of a response, and the responses."""
    engine = build_engine(params.engine, Checkpoint(str(POLICY)), params.seed)
    some, n = prompts[: min(params.engine.batch_size, PROMPTS)], params.sample.responses
    wanted = Sampling(n, params.iterations["1"].temperatures[0], params.sample.max_new_tokens, params.sample.top_p)
    engine.generate(some[:1], wanted, params.seed)
    start = time.perf_counter()
    made = [[c.token_ids for c in many] for many in engine.generate(some, wanted, params.seed)]
    taken = time.perf_counter() - start
    tokens = sum(len(ids) for many in made for ids in many)
    a = replace(a, response_tokens=tokens / (len(some) * n))
    shape = {"prompts": len(some), "prompt_tokens": a.prompt_tokens, "new_tokens": tokens}
    shape |= {"response": a.response_tokens, "sequences": len(some) * n, "dtype": params.engine.dtype}
    ideal = decoding_hours(arch, **shape, utilisation=1.0, a=replace(a, forward_utilisation=1.0)).value * 3600
    name = "decode_utilisation" if params.engine.name == "vllm" else "decode_utilisation_transformers"
    return replace(a, **{name: ideal / taken}), made


def training(
    model: torch.nn.Module, params: Params, a: Assumptions, arch: Architecture, lists: list[ResponseList]
) -> Assumptions:
    """A forward pass and a training step of some lists."""
    device, packed = str(next(model.parameters()).device.type), pack(lists)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    half = params.train.autocast == "bfloat16"

    def logps() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return response_logps(model, packed.to(device))[0]

    def step() -> None:
        logps().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        forward = seconds(logps, device, 2)
    whole = seconds(step, device, 2)
    tokens = tokens_of(lists)
    rate = a.flops("bfloat16" if half else params.policy.dtype)
    work = evaluate(forward_flops(arch, tokens, a.prompt_tokens)) / rate
    return replace(a, forward_utilisation=work / forward, train_utilisation=3 * work / whole)
