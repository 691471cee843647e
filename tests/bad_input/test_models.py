"""Checkpoints that are broken or bring a program along: as policy 0, and as a policy of the graph.

A program that a checkpoint brings must not run: each writes a file when it does, and no such file may be there.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bad_input.harness import Case, param, refused

FOLDER = Path("data/policy/0")
PROOF = "pwned"


class Program:
    """Unpickling it runs a command."""

    def __reduce__(self):
        return os.system, (f"touch {Path(PROOF).resolve()}",)


def plant(path: str | Path) -> None:
    Path(path).write_bytes(pickle.dumps(Program()))


def plant_zip(path: str | Path) -> None:
    """The same in the format of torch.save."""
    torch.save(Program(), path)


def remove(*names: str) -> Callable[[], None]:
    return lambda: [(FOLDER / name).unlink() for name in names]


def config(file: str = "config.json", **values: Any) -> Callable[[], None]:
    def spoil() -> None:
        raw = json.loads((FOLDER / file).read_text())
        (FOLDER / file).write_text(json.dumps(raw | values))

    return spoil


def content(file: str, new: str | bytes) -> Callable[[], None]:
    return lambda: (FOLDER / file).write_bytes(new if isinstance(new, bytes) else new.encode("utf-8"))


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[], None]:
    def spoil() -> None:
        tensors = load_file(FOLDER / "model.safetensors")
        change(tensors)
        save_file(tensors, FOLDER / "model.safetensors", metadata={"format": "pt"})

    return spoil


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = float("nan")


def fewer_tokens() -> None:
    """A vocabulary smaller than the tokenizer's: half of the characters have no embedding."""
    weights(lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:8].clone()}))()
    config(vocab_size=8)()


def pickle_only() -> None:
    (FOLDER / "model.safetensors").unlink()
    plant_zip(FOLDER / "pytorch_model.bin")


def cut_short() -> None:
    path = FOLDER / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def index_elsewhere() -> None:
    """An index of shards that points out of the folder."""
    shutil.move(FOLDER / "model.safetensors", "elsewhere.safetensors")
    names = load_file("elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../../../no.safetensors")}
    (FOLDER / "model.safetensors.index.json").write_text(json.dumps(index))


def own_code(*, tokenizer: bool = False) -> Callable[[], None]:
    """A checkpoint that needs its own Python files."""

    def spoil() -> None:
        code = f"open({str(Path(PROOF).resolve())!r}, 'w').close()\nfrom transformers import *\n"
        code += "class C(LlamaConfig): model_type = 'evil'\nclass M(LlamaForCausalLM): pass\n"
        (FOLDER / "modeling_evil.py").write_text(code + "class T(LlamaTokenizer): pass\n")
        if tokenizer:
            auto = {"AutoTokenizer": ["modeling_evil.T", None]}
            config("tokenizer_config.json", auto_map=auto, tokenizer_class="T")()
        else:
            auto = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
            config(model_type="evil", auto_map=auto)()

    return spoil


ESCAPE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for c in ''.__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "{{ self.__init__.__globals__.__builtins__.open('pwned', 'w') }}",
    "{{ ('%s' % messages).format.__globals__ }}{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{% set x = messages.append({'role': 'user', 'content': 'x'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch pwned') }}",
)

BROKEN: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ("tokenizer",)),
    "tokenizer that is no JSON": (content("tokenizer.json", "{"), ("tokenizer",)),
    "tokenizer of nothing": (content("tokenizer.json", "{}"), ("tokenizer",)),
    "no chat template": (remove("chat_template.jinja"), ("chat template", "chat_template.jinja")),
    "no end token": (config("tokenizer_config.json", eos_token=None), ("end-of-sequence", "eos_token")),
    "no weights": (remove("model.safetensors"), ("model.safetensors",)),
    "weights cut short": (cut_short, ("incomplete",)),
    "weights that are no safetensors": (content("model.safetensors", b"\x08" + b"\0" * 64), ("header",)),
    "a header that claims everything": (content("model.safetensors", b"\xff" * 64), ("header",)),
    "empty weights": (content("model.safetensors", b""), ("header",)),
    "a weight is missing": (weights(lambda t: t.pop("model.norm.weight")), ("lacks model.norm.weight", "config.json")),
    "all weights are missing": (weights(lambda t: [t.pop(k) for k in [*t]]), ("lacks", "more")),
    "weights of another shape": (config(hidden_size=64), ("has shape", "config.json expects")),
    "more layers than weights": (config(num_hidden_layers=3), ("lacks model.layers.2", "more")),
    "fewer layers than weights": (config(num_hidden_layers=1), ("layers beyond config.json", "model.layers.1")),
    "NaN weights": (weights(nan), ("model.norm.weight", "not finite")),
    "weights in a pickle alone": (pickle_only, ("safetensors",)),
    "shards outside of the folder": (index_elsewhere, ("no.safetensors",)),
    "no configuration": (remove("config.json"), ("config.json",)),
    "configuration that is no JSON": (content("config.json", "{"), ("JSON",)),
    "configuration nested without end": (content("config.json", '{"a":' * 9999), ("recursion",)),
    "unknown architecture": (config(model_type="llama9"), ("llama9",)),
    "an encoder": (config(model_type="vit", architectures=["ViTModel"]), ("ViT",)),
    "sizes that are text": (config(hidden_size="large"), ("hidden_size",)),
    "sizes that are negative": (config(num_hidden_layers=-1), ()),
    "no heads": (config(num_attention_heads=0), ()),
    "its own model code": (own_code(), ("custom code",)),
    "its own tokenizer code": (own_code(tokenizer=True), ("custom code",)),
    "quantised for a library that is not here": (config(quantization_config={"quant_method": "gptq", "bits": 4}), ()),
    "an adapter without its model": (
        lambda: [content("adapter_config.json", '{"base_model_name_or_path": "x/y"}')(), remove("model.safetensors")()],
        (),
    ),
    "attention from the hub": (config(attn_implementation="kernels-community/flash-attn"), ("code of the hub",)),
}
OF_THE_GRAPH: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a vocabulary smaller than the tokenizer's": (fewer_tokens, ("token id", "vocabulary, 0 to 7")),
    "template that is no jinja": (content("chat_template.jinja", "{% for %}"), ("chat template refuses", "user")),
    "template that refuses": (content("chat_template.jinja", "{{ raise_exception('alternate!') }}"), ("alternate!",)),
    "template that makes nothing": (content("chat_template.jinja", "{# #}"), ("chat template makes no text",)),
    "generation_config that is no JSON": (content("generation_config.json", "{"), ("generation_config.json",)),
} | {f"template that would escape {i}": (content("chat_template.jinja", t), ()) for i, t in enumerate(ESCAPE)}


@pytest.mark.parametrize("name", BROKEN)
def test_as_policy_0(workspace, name):
    spoil, words = BROKEN[name]

    def somewhere() -> None:
        spoil()
        shutil.copytree(FOLDER, "broken")
        param("policy.model", "./broken")()

    refused(Case(name, somewhere, "policy", ("params.yaml: policy.model", "broken", *words)))
    assert not Path(PROOF).exists()


@pytest.mark.parametrize("name", BROKEN | OF_THE_GRAPH)
def test_as_a_policy_of_the_graph(workspace, name):
    spoil, words = (BROKEN | OF_THE_GRAPH)[name]
    refused(Case(name, spoil, "sample 1", ("data/policy/0", *words)))
    assert not Path(PROOF).exists()
