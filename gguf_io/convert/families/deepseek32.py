"""DeepSeek V3.2: version 3 over the tokens that an indexer chooses."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import layout, nextn
from quantmill.gguf_io.convert.families import deepseek2, glm_moe_dsa
from quantmill.gguf_io.convert.family import Family

FAMILY = Family(
    classes=("DeepseekV32ForCausalLM",),
    arch="deepseek32",
    model_type="deepseek_v32",
    tensors=(*deepseek2.TENSORS, glm_moe_dsa.BIAS, layout.Tensors(glm_moe_dsa.INDEXER)),
    keys=(*deepseek2.KEYS, nextn.LAYERS, *glm_moe_dsa.INDEXER_KEYS),
    defaults={
        "first_k_dense_replace": 3,
        "head_dim": lambda config: config["qk_rope_head_dim"],
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 2048,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 4,
        "v_head_dim": 128,
    },
    rules=glm_moe_dsa.RULES,
    names=MODEL_ARCH.DEEPSEEK2,
    nextn=glm_moe_dsa.NEXTN,
)
