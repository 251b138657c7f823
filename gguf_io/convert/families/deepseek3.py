"""DeepSeek V3 and R1, Kimi K2, text part of Kimi K2.5: V2 with experts chosen by sigmoid."""

from __future__ import annotations

from dataclasses import replace

from quantmill.gguf_io.convert import layout, tokenizer
from quantmill.gguf_io.convert.families import deepseek2

FAMILY = replace(
    deepseek2.FAMILY,
    classes=("DeepseekV3ForCausalLM", "KimiK25ForConditionalGeneration"),
    model_type="deepseek_v3",
    tensors=(
        *deepseek2.TENSORS,
        layout.Tensors({"blk.exp_probs_b.bias": "n_routed_experts"}, layout.behind_dense),
    ),
    defaults={
        **deepseek2.FAMILY.defaults,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 128,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",  # the class knows no other; llama.cpp must be told
        "topk_group": 4,
    },
    vocabulary=tokenizer.bpe_or_tiktoken,
    is_this=lambda facts: facts.get("expert_gating_func") == deepseek2.SIGMOID,
)
