"""Small random models of every family, as transformers makes them: the reference of test_families.py."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from quantmill.models.fill import of_config
from tests.support.convert_tokenizers import write_tokenizer
from tests.support.measure_models import EXAMPLE

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
DEFAULT_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
COMMON: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": DEFAULT_ROPE,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
GRANITE = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 4.0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
INDEXER = {"q_lora_rank": 96, "index_n_heads": 2, "index_head_dim": 64, "index_topk": 48}
MAMBA = {
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 32,
    "mamba_expand": 2,
    "mamba_n_groups": 2,
    "mamba_n_heads": 4,
}
NEMOTRON = {
    "conv_kernel": 4,
    "head_dim": 64,
    "mamba_head_dim": 64,
    "mamba_num_heads": 4,
    "n_groups": 2,
    "ssm_state_size": 32,
}
GEMMA_4 = {
    "head_dim": 32,
    "global_head_dim": 64,
    "final_logit_softcapping": 10.0,
    "sliding_window": 32,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1000000.0,
            "partial_rotary_factor": 0.25,
        },
        "sliding_attention": DEFAULT_ROPE,
    },
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
FULL_AND_SLIDING = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_attention": DEFAULT_ROPE,
}
DELTA_NET = {
    "head_dim": 64,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_value_head_dim": 32,
    "rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.25, "mrope_section": [3, 3, 2]},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 32 for i in range(16)],
    "long_factor": [2.0 + i / 8 for i in range(16)],
    "original_max_position_embeddings": 128,
}
DEFAULT_AND_SCALED = {
    "full_attention": YARN
    | {"rope_theta": 500000.0, "attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
}

# name: transformers' model type and what it changes. Settings that a family reads from metadata differ from defaults.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama 3 rope": ("llama", {"rope_parameters": LLAMA_3}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2 moe": ("qwen2_moe", EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 64}),
    "qwen3, yarn": ("qwen3", {"head_dim": 64, "rope_parameters": YARN}),
    "qwen3 moe": ("qwen3_moe", EXPERTS | {"head_dim": 64, "num_experts": 4, "norm_topk_prob": True}),
    "gemma 3": (
        "gemma3_text",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 32,
            "num_hidden_layers": 7,
            "tie_word_embeddings": True,
            "rope_parameters": FULL_AND_SLIDING,
        },
    ),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}),
    "granite": ("granite", GRANITE),
    "granite moe": ("granitemoe", GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite moe, shared": (
        "granitemoeshared",
        GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
    ),
    "olmo 2": ("olmo2", {}),
    "starcoder 2": ("starcoder2", {"tie_word_embeddings": True}),
    "gpt-oss": (
        "gpt_oss",
        {
            "head_dim": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 32,
            "rope_parameters": YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        },
    ),
    "deepseek v2": (
        "deepseek_v2",
        LATENT
        | EXPERTS
        | {
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
    ),
    "deepseek v3": (
        "deepseek_v3",
        LATENT
        | EXPERTS
        | {
            "q_lora_rank": 96,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
    ),
    "exaone 4": ("exaone4", {"sliding_window": 32, "sliding_window_pattern": 4}),
    "cohere 2": ("cohere2", {"sliding_window": 32, "tie_word_embeddings": True, "logit_scale": 0.25}),
    "mistral": ("mistral", {"head_dim": 64, "sliding_window": None}),
    "gemma 2": (
        "gemma2",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 32,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
            "tie_word_embeddings": True,
        },
    ),
    "phi 3": ("phi3", {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 512}),
    # llama.cpp has switched Phi-3's window off (src/models/phi3.cpp), and so have we.
    "phi 3, longrope": ("phi3", {"original_max_position_embeddings": 128, "rope_parameters": LONGROPE}),
    "olmo 3": ("olmo3", {"sliding_window": 32, "rope_parameters": DEFAULT_AND_SCALED}),
    "seed-oss": ("seed_oss", {"head_dim": 64}),
    "arcee": ("arcee", {}),
    "olmoe": ("olmoe", {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}),
    "ministral 3": (
        "ministral3",
        {
            "head_dim": 64,
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "ernie 4.5": ("ernie4_5", {"head_dim": 64, "tie_word_embeddings": True}),
    "ernie 4.5 moe": (
        "ernie4_5_moe",
        {
            "moe_intermediate_size": 64,
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 2,
            "tie_word_embeddings": True,
        },
    ),
    "minimax m2": (
        "minimax_m2",
        {"head_dim": 64, "rotary_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "exaone moe": (
        "exaone_moe",
        EXPERTS | {"head_dim": 64, "num_experts": 4, "num_shared_experts": 1, "sliding_window": 32},
    ),
    "dots1": (
        "dots1",
        EXPERTS
        | {
            "head_dim": 32,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "sliding_window": None,
        },
    ),
    "glm 4 moe": (
        "glm4_moe",
        EXPERTS
        | {
            "head_dim": 64,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "routed_scaling_factor": 2.5,
        },
    ),
    "qwen 3.5": ("qwen3_5_text", DELTA_NET),
    "qwen 3.5 moe": (
        "qwen3_5_moe_text",
        DELTA_NET | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 64},
    ),
    "glm 4.7 flash": (
        "glm4_moe_lite",
        LATENT | EXPERTS | {"q_lora_rank": 96, "n_routed_experts": 4, "routed_scaling_factor": 1.8},
    ),
    "qwen3-next": (
        "qwen3_next",
        DELTA_NET
        | EXPERTS
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 64,
            "norm_topk_prob": True,
            "rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.25},
        },
    ),
    "lfm2": (
        "lfm2",
        {
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "tie_word_embeddings": True,
            "block_multiple_of": 64,
        },
    ),
    "lfm2 moe": (
        "lfm2_moe",
        EXPERTS
        | {
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "tie_word_embeddings": True,
            "num_experts": 4,
            "num_dense_layers": 1,
        },
    ),
    "granite 4": (
        "granitemoehybrid",
        GRANITE
        | MAMBA
        | {
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
        },
    ),
    "granite 4, no experts": (
        "granitemoehybrid",
        GRANITE
        | MAMBA
        | {
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 256,
        },
    ),
    "granite 4, dense": (
        "granitemoehybrid",
        GRANITE
        | MAMBA
        | {
            "layer_types": ["full_attention"] * 4,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 256,
            "position_embedding_type": "rope",
        },
    ),
    "falcon h1": (
        "falcon_h1",
        MAMBA
        | {
            "head_dim": 64,
            "mamba_d_ssm": 256,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            # Not those of what enters matrices: of a GGUF it enters undivided.
            "attention_out_multiplier": 0.7,
            "embedding_multiplier": 3.0,
            "key_multiplier": 0.5,
            "lm_head_multiplier": 0.3,
            "mlp_multipliers": [0.9, 0.4],
            "ssm_out_multiplier": 0.6,
            "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
        },
    ),
    "nemotron h": (
        "nemotron_h",
        NEMOTRON | {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
    ),
    "nemotron 3": (
        "nemotron_h",
        NEMOTRON
        | EXPERTS
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 128,
            "moe_latent_size": 64,
            "routed_scaling_factor": 2.5,
        },
    ),
    "glm 5": ("glm_moe_dsa", LATENT | EXPERTS | INDEXER | {"n_routed_experts": 4}),
    "deepseek v3.2": (
        "deepseek_v32",
        LATENT
        | EXPERTS
        | INDEXER
        | {
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "hy v3": (
        "hy_v3",
        EXPERTS | {"head_dim": 64, "num_experts": 4, "num_shared_experts": 2, "router_scaling_factor": 2.5},
    ),
    "laguna": (
        "laguna",
        EXPERTS
        | {
            "head_dim": 64,
            "num_experts": 4,
            "shared_expert_intermediate_size": 96,
            "num_attention_heads_per_layer": [4, 6, 6, 6],
            "layer_types": ["full_attention", *["sliding_attention"] * 3],
            "sliding_window": 32,
            "moe_routed_scaling_factor": 2.5,
            "rope_parameters": {
                "full_attention": DEFAULT_ROPE | {"rope_theta": 500000.0, "partial_rotary_factor": 0.5},
                "sliding_attention": DEFAULT_ROPE,
            },
        },
    ),
    "afmoe": (
        "afmoe",
        EXPERTS
        | {
            "head_dim": 64,
            "num_experts": 4,
            "num_dense_layers": 1,
            "sliding_window": 32,
            "mup_enabled": True,
        },
    ),
    "cohere 2 moe": (
        "cohere2_moe",
        {
            "head_dim": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "expert_selection_fn": "sigmoid",
            "first_k_dense_replace": 1,
            "prefix_dense_intermediate_size": 384,
            "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
            "sliding_window": 32,
            "logit_scale": 0.25,
            "tie_word_embeddings": True,
        },
    ),
    "mimo v2": (
        "mimo_v2_flash",
        EXPERTS
        | {
            "head_dim": 64,
            "v_head_dim": 32,
            "num_key_value_heads": 1,
            "n_routed_experts": 4,
            "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
            "sliding_window": 32,
            "rope_parameters": {
                "full_attention": DEFAULT_ROPE | {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
                "sliding_attention": DEFAULT_ROPE | {"partial_rotary_factor": 0.5},
            },
        },
    ),
    "hunyuan": (
        "hunyuan_v1_dense",
        {
            "head_dim": 64,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 1000.0,
                "factor": 1.0,
            },
        },
    ),
    "hunyuan moe": (
        "hunyuan_v1_moe",
        {
            "head_dim": 64,
            "num_experts": 4,
            "moe_topk": 2,
            "moe_intermediate_size": 256,
            "num_shared_expert": 1,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 1000.0,
                "factor": 1.0,
            },
        },
    ),
    "gemma 3n": (
        "gemma3n_text",
        {
            "head_dim": 32,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 2048,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.95, 0.95, 0.5, 0.0, 0.0, 0.0],
            "laurel_rank": 16,
            "final_logit_softcapping": 10.0,
            "sliding_window": 32,
            "tie_word_embeddings": True,
            "rope_parameters": FULL_AND_SLIDING,
        },
    ),
    "gemma 4": (
        "gemma4_text",
        GEMMA_4
        | {
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 2048,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma 4 moe": (
        "gemma4_text",
        GEMMA_4
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
        },
    ),
    "kimi linear": (
        "kimi_linear",
        LATENT
        | EXPERTS
        | {
            "num_attention_heads": 4,
            "linear_num_heads": 4,
            "linear_head_dim": 32,
            "num_experts": 4,
            "num_shared_experts": 1,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "full_attention"],
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-6,
        },
    ),
    "ling 3": (
        "bailing_hybrid",
        LATENT
        | EXPERTS
        | {
            "head_dim": 32,
            "layer_group_size": 2,
            "num_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_shared_experts": 1,
            "rms_norm_eps": 1e-6,
        },
    ),
    "minimax m3": (
        "minimax_m3_vl_text",
        {
            "head_dim": 64,
            "dense_intermediate_size": 256,
            "intermediate_size": 64,
            "shared_intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rotary_dim": 32,
            "rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.5},
            "routed_scaling_factor": 2.5,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "layer_types": ["full_attention", *["minimax_m3_sparse"] * 3],
            "index_n_heads": 2,
            "index_head_dim": 64,
            "index_block_size": 16,
            "index_topk_blocks": 3,
        },
    ),
    "deepseek v4": (
        "deepseek_v4",
        EXPERTS
        | INDEXER
        | {
            "num_key_value_heads": 1,
            "head_dim": 64,
            "partial_rotary_factor": 0.5,
            "o_groups": 2,
            "o_lora_rank": 32,
            "n_routed_experts": 4,
            "index_topk": 8,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
                "compressed_sparse_attention",
            ],
            "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
            "sliding_window": 32,
            "swiglu_limit": 7.0,
            "rope_parameters": YARN | {"beta_fast": 32.0, "beta_slow": 1.0},
        },
    ),
    "glm 4": ("glm4", {"head_dim": 64, "attention_bias": True, "partial_rotary_factor": 0.5}),
}
# Transformers has no class of its own for a directory of it; test_families.py wraps it.
MISTRAL_4: tuple[str, dict[str, Any]] = (
    "mistral4",
    LATENT
    | EXPERTS
    | {
        "q_lora_rank": 96,
        "n_routed_experts": 4,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
)
# Families whose vocabulary the example's tokenizer cannot be: tests.convert_tokenizers' kinds.
VOCABULARIES = {
    "gemma2": "spm",
    "phi3": "spm",
    "glm4": "llama-bpe",
    "glm4_moe": "llama-bpe+glm",
    "glm4_moe_lite": "llama-bpe+glm",
    "ernie4_5": "spm",
    "ernie4_5_moe": "spm",
    "gemma3n_text": "spm",
    "gemma4_text": "gemma4",
    "glm_moe_dsa": "llama-bpe+glm",
}


def random_model(path: Path, kind: str, settings: dict[str, Any]) -> Any:
    """A model with weights that matter: norms off their defaults, routers and biases not zero."""
    torch.manual_seed(0)
    # Configuration classes write into the dictionaries that they are given.
    config = AutoConfig.for_model(kind, **copy.deepcopy(COMMON | settings))
    model: Any = of_config(config, torch.float32).eval()
    with torch.no_grad():
        for tensor in (
            *model.parameters(),
            *(b for name, b in model.named_buffers() if "e_score" in name or "expert_bias" in name),
        ):
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))
            else:
                tensor.mul_(2)
        for name, tensor in model.named_buffers():
            if name.endswith("tid2eid"):  # experts of each token
                first = torch.randint(0, config.n_routed_experts, tensor.shape[:1])
                tensor.copy_(torch.stack((first, (first + 1) % config.n_routed_experts), 1))
    model.save_pretrained(path)
    if kind in VOCABULARIES:
        write_tokenizer(path, VOCABULARIES[kind], COMMON["vocab_size"])
    else:
        for name in TOKENIZER:
            shutil.copy(EXAMPLE / name, path / name)
    return model
