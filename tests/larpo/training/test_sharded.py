"""A model sharded as FSDP shards it gives the losses and gradients of the whole one (two processes, CPU, gloo)."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM
from larpo.training.packing import ResponseList
from larpo.objectives import build
from larpo.training.exactness import check_exact
from larpo.training.list_trainer import ListTrainer, TrainingList, collate, list_batch
from tests.larpo.training.kit import arguments

dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
lists = [
    TrainingList(ResponseList([3, 4, 5], [[6, 7, 1], [8, 9], [10, 1]]), [2.0, 1.0, 0.0], [-3.0, -4.0, -5.0]),
    TrainingList(ResponseList([3, 9], [[6, 1], [11, 12, 13]]), [1.0, 0.0], [-2.0, -4.0]),
]

def load():
    return AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()

def losses(model, mine):
    return build("lambdarank", beta=0.1)(list_batch(model, collate(mine)["batch"]))

whole = load()
expected = losses(whole, lists)
expected.mean().backward()
for policy in (MixedPrecisionPolicy(), MixedPrecisionPolicy(torch.bfloat16, torch.float32)):
    model = load()
    if rank == 0:  # as `train@s`: the first process has computed the model before all of them shard it
        check_exact(model, [entry.tokens for entry in lists], "train")
    ListTrainer(model, arguments(sys.argv[2]), lists, build("lambdarank", beta=0.1))
    assert "larpo_way" in model.__dict__, "settled in this process too"
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    loss = losses(model, [lists[rank]])
    loss.sum().backward()
    exact = policy.param_dtype is None
    torch.testing.assert_close(loss, expected[rank : rank + 1].detach(), atol=1e-5 if exact else 5e-2, rtol=0)
    for (name, a), b in zip(model.named_parameters(), whole.parameters()):
        assert a.grad.full_tensor().dtype == torch.float32
        full = a.grad.full_tensor()
        scale = float(b.grad.abs().max())
        torch.testing.assert_close(full, b.grad, atol=(1e-5 if exact else 0.1) * (scale + 1e-6), rtol=0, msg=name)
sys.stdout.write(f"equal {rank}\\n")  # in one piece: the two share a pipe
sys.stdout.flush()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_losses_and_gradients(tiny_policy, tmp_path):
    """Each process has one of two lists; gradients are averaged, so they are those of the mean over both. In float32 to
    1e-5; with bfloat16 layers and float32 reduction, as configs/fsdp-*.yaml ask for, to a tenth of the largest one."""
    script = tmp_path / "sharded.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tiny_policy), str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal 0" in done.stdout and "equal 1" in done.stdout
