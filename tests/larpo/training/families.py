"""Tiny models of the families that transformers ships: random weights, windows of 4, caps and sinks that bite."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "head_dim": 8}
MOE = {"num_experts_per_tok": 2}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
MLA |= {"num_key_value_heads": 4}
EXPERTS = MOE | {"n_routed_experts": 4, "moe_intermediate_size": 16, "n_shared_experts": 1}
GEMMA3N = {"vocab_size_per_layer_input": 40, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 2}
GEMMA3N |= {"num_kv_shared_layers": 0, "intermediate_size": [48, 48], "activation_sparsity_pattern": [0.5, 0.0]}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
PACKED = {
    "llama": SIZE,
    "llama, tied": SIZE | {"tie_word_embeddings": True},
    "mistral": SIZE | {"sliding_window": 4},
    "mixtral": SIZE | MOE | {"sliding_window": 4, "num_local_experts": 4},
    "qwen2": SIZE | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    "qwen3": SIZE | {"head_dim": 8},
    "qwen3_moe": SIZE | MOE | {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16},
    "gemma": SIZE | {"head_dim": 8},
    "gemma2": SIZE
    | MIXED
    | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": SIZE | MIXED | {"query_pre_attn_scalar": 8},
    "phi3": SIZE | {"sliding_window": 4},
    "olmo2": SIZE,
    "granite": SIZE | {"logits_scaling": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "cohere2": SIZE | MIXED | {"logit_scale": 0.3},
    "gpt_neox": SIZE,
    "gpt2": GPT2,  # learned absolute positions
    "gpt_oss": SIZE | MOE | MIXED | {"num_local_experts": 4},
    "opt": SIZE | {"ffn_dim": 48, "word_embed_proj_dim": 32},  # no gradient reaches a key's bias: rounding is all of it
    "olmo3": SIZE | MIXED,
    "exaone4": SIZE | MIXED | {"sliding_window_pattern": "LG"},
    "deepseek_v3": SIZE | MLA | EXPERTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gemma3n_text": SIZE | MIXED | GEMMA3N,
    "jetmoe": SIZE | MOE | {"kv_channels": 8, "num_local_experts": 2},  # which needs its attention in one piece
    "smollm3": SIZE | MIXED | {"use_sliding_window": True, "no_rope_layers": [1, 0]},
}
ONE_PER_ROW = {  # state beyond attention, ALiBi, attention in chunks
    "lfm2": SIZE | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "falcon_h1": SIZE
    | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
    | {"lm_head_multiplier": 0.5},
    "mamba": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3},
    "mamba2": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3}
    | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "qwen3_next": SIZE
    | {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | MOE
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "head_dim": 8, "num_experts": 4}
    | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "gptj": GPT2 | {"rotary_dim": 4},
    "doge": SIZE | {"sliding_window": 4},  # reads its mask as a tensor
    "bloom": {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "falcon": SIZE | {"alibi": False},  # its attention is chosen when it is built
    "mpt": {"vocab_size": 40, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "initializer_range": 0.3},
    "llama4_text": SIZE
    | MOE
    | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 4, "head_dim": 8}
    | {"num_local_experts": 2, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]},
}


def family(name: str, attention: str | None = None, **more) -> PreTrainedModel:
    """The same float32 weights at each call; `attention` as transformers names it, None for the model's default."""
    options = {**PACKED, **ONE_PER_ROW}[name] | more
    config = AutoConfig.for_model(name.partition(",")[0], **options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    for parameter in model.parameters():
        if not parameter.any():  # sinks, biases: drawn here, for zeros would hide that they are left out
            torch.nn.init.normal_(parameter)
    return model
