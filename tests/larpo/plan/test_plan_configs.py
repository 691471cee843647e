"""What configs/ ships: Accelerate takes the launch files, and the parameters fit the GPUs that their names promise."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy
from typer.testing import CliRunner

from flows.cli import app
from larpo.config.overlays import lay_over
from larpo.config.params import parse_params
from larpo.errors import UserError
from larpo.plan import Assumptions, build_plan, load_with
from larpo.plan.launch import read_launch
from tests.conftest import ROOT
from tests.larpo.plan.test_plan_runs import paper

LAUNCHES = {"configs/fsdp-8x80gb.yaml": (8, False), "configs/fsdp-1x80gb-offload.yaml": (1, True)}


@pytest.mark.parametrize("file", LAUNCHES)
def test_accelerate_reads_the_launch_files(file, monkeypatch):
    """Through Accelerate's own classes: the file, the launcher's environment, and the FSDP plugin made from that."""
    monkeypatch.chdir(ROOT)
    processes, offload = LAUNCHES[file]
    config = load_config_from_file(file)
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == DistributedType.FSDP
    assert config.num_processes == processes
    args = launch_command_parser().parse_args(["--config_file", file, "--module", "tasks.train", "1"])
    args, _, _ = _validate_launch_command(args)
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    with patch_environment(**{k: v for k, v in environment.items() if k.startswith(("FSDP", "ACCELERATE"))}):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is True
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) is offload
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    sharding = read_launch(file).sharding
    assert (sharding.kind, sharding.gpus, sharding.offload) == ("fsdp", processes, offload)
    assert sharding.activation_checkpointing


# A training step of a 7B model and lists of four, on one GPU and on eight.
@pytest.mark.parametrize(("overlay", "gpus"), [("params-1x80gb", 1), ("params-8x80gb", 8)])
@pytest.mark.parametrize("model", ["mistralai/Mistral-7B-Instruct-v0.2", "google/gemma-2-2b-it"])
def test_parameters_fit_what_they_are_named_for(overlay, gpus, model, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = paper(**{"policy.model": model})
    del base["engine"], base["reference"], base["train"]["autocast"], base["train"]["gradient_checkpointing"]
    del base["train"]["trainer_options"], base["train"]["lists_per_device_batch"]
    laid = lay_over(base, yaml.safe_load(Path(f"configs/{overlay}.yaml").read_text()))
    plan = build_plan(parse_params(laid), Assumptions(gpus=gpus))
    assert plan.failed == []
    assert not [c.line for c in plan.checks if c.ok is None and ("uses" in c.line or "autocast" in c.line)]
    bare = build_plan(parse_params(base), Assumptions(gpus=gpus))
    assert any(line.startswith("train: ") for line in bare.failed), "the defaults do not fit, so the file is needed"


def test_overlays(tmp_path):
    base, over, wrong = tmp_path / "params.yaml", tmp_path / "over.yaml", tmp_path / "wrong.yaml"
    raw = paper()
    raw["benchmarks"] = {"gsm8k": raw["benchmarks"]["gsm8k"]}
    base.write_text(yaml.safe_dump(raw))
    over.write_text("sample: {responses: 12}\ntrain: {epochs: 1}\n")
    wrong.write_text("sample: {response: 12}\n")
    params = load_with(base, [over])
    assert (params.sample.responses, params.sample.max_new_tokens, params.train.epochs) == (12, 1024, 1)
    with pytest.raises(UserError, match=r"sample\.response: does not exist; did you mean 'responses'"):
        load_with(base, [wrong])
    with pytest.raises(UserError, match=r"absent\.yaml: not found"):
        load_with(base, [tmp_path / "absent.yaml"])


def test_the_command(monkeypatch):
    """`larpo plan` on the project's own parameters: text, JSON, exit codes 0, 1 (does not fit) and 2 (bad input)."""
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["plan", "--json"])
    assert done.exit_code == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["architectures"][0]["parameters"] == 134_515_008
    assert tree["failed"] == []
    # The questions that ship with the project are 28, counted from their files.
    asked = next(n for n in tree["nodes"] if n["name"] == "generate@0-question_sample")
    assert asked["sample_tokens"]["value"] == 28 * 12
    done = CliRunner().invoke(app, ["plan", "--gpu-memory", "4"])
    assert done.exit_code == 1 and "FAIL train: " in done.stdout
    done = CliRunner().invoke(app, ["plan", "--assume", "gpu=2"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: larpo plan: --assume 'gpu=2': expected NAME=VALUE; did you mean 'gpus'?")
