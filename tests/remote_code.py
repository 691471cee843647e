"""Tiny checkpoints with code of their own: real classes in files beside the weights, found by `auto_map`."""

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from larpo.models.load import load_model
from larpo.models.remote_code import admit

HELPER = "tiny_scale.py"
CODE = ("modeling_tiny.py", HELPER)
KEY = "policy.trust_remote_code"
PROMPT = torch.tensor([[3, 6, 15, 7]])
# The sign of every logit is turned: what such a model answers, and its log-probabilities, are not a Llama's. Each time
# the file is imported, a letter is added to the file `marker`.
MODELING = """\
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from .tiny_scale import SCALE

with open({marker!r}, "a") as file:
    file.write({letter!r})


class TinyConfig(LlamaConfig):
    model_type = "tiny_code"


class TinyModel(LlamaModel):
    config_class = TinyConfig


# By which the library's head builds its body.
{register}AutoModel.register(TinyConfig, TinyModel, exist_ok=True)


class Turned:
    config_class = TinyConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = SCALE * out.logits
        return out


class TinyForCausalLM(Turned, LlamaForCausalLM):
    pass


class TinyForSequenceClassification(Turned, LlamaForSequenceClassification):
    pass
"""
CLASSES = {
    "AutoConfig": "modeling_tiny.TinyConfig",
    "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
    "AutoModelForSequenceClassification": "modeling_tiny.TinyForSequenceClassification",
}


def modeling(marker: Path, letter: str = "x", register: str = "") -> str:
    return MODELING.format(marker=str(marker), letter=letter, register=register)


def with_code(llama: Path, folder: Path, marker: Path, model_type: str = "tiny_code", **auto_map: str) -> Path:
    """A copy of a Llama's checkpoint whose classes are those of `modeling_tiny.py` in it."""
    shutil.copytree(llama, folder)
    (folder / "modeling_tiny.py").write_text(modeling(marker))
    (folder / HELPER).write_text("SCALE = -1.0\n")
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"model_type": model_type, "auto_map": auto_map or CLASSES}
    raw["architectures"] = [raw["architectures"][0].replace("Llama", "Tiny")]
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def turned(folder: Path) -> bool:
    """Whether the checkpoint's logits are those of a Llama with its weights, their sign turned."""
    checkpoint = admit(folder, KEY, True)
    llama = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return torch.equal(load_model(checkpoint, "float32").eval()(PROMPT).logits, -llama(PROMPT).logits)
