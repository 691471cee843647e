"""Tiny reward models with random weights in the layouts of the real ones: noise for scores, real code paths."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from larpo.config.reward import RewardParams
from larpo.rewards.checkpoint import write_identity

MARKERS = ["source", "candidate1", "candidate2", "candidate"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz 0123456789+-=:?\n"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def characters(specials: list[str], post: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    """One token per character. `post` is what the tokenizer adds around a text, such as "[CLS] $A [SEP]"."""
    vocabulary = {token: i for i, token in enumerate([*specials, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.add_special_tokens(specials)
    if post:
        pair = f"{post} $B:1 [SEP]:1" if "[SEP]" in post else f"{post} $B"
        used = [(t, vocabulary[t]) for t in specials if t in post or t in pair]
        backend.post_processor = TemplateProcessing(single=post, pair=pair, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **names)


def decoder(folder: Path, adds_bos: bool = True, padding_side: str = "right", seed: int = 0, **changes) -> Path:
    """A Llama with a head for one logit, pad = eos, and a template that ends every turn with eos: FsfairX in small."""
    specials = ["<unk>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>"]
    tokenizer = characters(
        specials,
        "<bos> $A" if adds_bos else None,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        chat_template=TEMPLATE,
        padding_side=padding_side,
    )
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "num_labels": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.3,
    } | changes
    LlamaForSequenceClassification(LlamaConfig(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder(folder: Path, seed: int = 0) -> Path:
    """A BERT with a head for one logit and no chat template."""
    tokenizer = characters(
        ["<unk>", "[CLS]", "[SEP]", "[PAD]"],
        "[CLS] $A [SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        num_labels=1,
        pad_token_id=3,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pairrm(folder: Path, seed: int = 0) -> Path:
    """PairRM-hf's layout: DeBERTa-v2 with relative positions, the five added tokens, the head's names."""
    from larpo.rewards.pairrm_model import PairRM

    tokenizer = characters(
        ["[PAD]", "[CLS]", "[SEP]", "<unk>", "[MASK]", *(f"<|{m}|>" for m in MARKERS)],
        "[CLS] $A [SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )
    torch.manual_seed(seed)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_relative_positions=-1,
        type_vocab_size=0,
        max_position_embeddings=32,
        pad_token_id=0,
        initializer_range=0.3,
        n_tasks=1,
        drop_out=0.05,
    )
    PairRM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_identity(folder: Path, **settings) -> Path:
    """Add the reward.json that the node `reward` would write."""
    from transformers import AutoTokenizer

    params = RewardParams(**({"model": str(folder), "max_length": 256} | settings))
    write_identity(folder, params, AutoTokenizer.from_pretrained(folder))
    return folder
