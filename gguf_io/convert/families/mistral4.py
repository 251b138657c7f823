"""Mistral Small 4 and Large 3, the text part: latent attention with YaRN, and experts whose gates and ups are fused."""

from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import layout, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import deepseek2
from quantmill.gguf_io.convert.keys import Rows
from quantmill.gguf_io.convert.rules import Config, Part, Rule

_WHERE = r"^model\.layers\.(\d+)\.mlp\.experts\."
RULES = (Rule(rf"{_WHERE}gate_up_proj$", (Part(r"blk.\1.ffn_gate_up_exps.weight"),)), *deepseek2.RULES)
FUSED = {
    "blk.ffn_gate_inp.weight": "n_routed_experts hidden_size",
    "blk.ffn_gate_up_exps.weight": "n_routed_experts 2*moe_intermediate_size hidden_size",
    "blk.ffn_down_exps.weight": "n_routed_experts hidden_size moe_intermediate_size",
    **layout.shared_expert("n_shared_experts*moe_intermediate_size"),
}


def _read(facts: Facts) -> Settings:
    """With the factor that grows far into a text: the models share it, GGUF has none."""
    settings = deepseek2.read(facts)
    return {
        "head_dim": settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"],
        "rope_parameters": settings["rope_parameters"] | {"llama_4_scaling_beta": 0.1},
    }


def _rope(config: Config) -> dict[str, object] | None:
    """What the class fills in."""
    return None if config.get("rope_scaling") else dict(YARN)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

FAMILY = replace(
    deepseek2.FAMILY,
    classes=("Mistral3ForConditionalGeneration",),
    arch=MODEL_ARCH.MISTRAL4,
    model_type="mistral4",
    tensors=(*deepseek2.TENSORS[:-1], layout.Tensors(FUSED, layout.behind_dense)),
    keys=(*deepseek2.KEYS, Rows(read=_read)),
    defaults={
        "first_k_dense_replace": 0,
        "head_dim": lambda config: config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "kv_lora_rank": 256,
        "max_position_embeddings": 1048576,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 4,
        "q_lora_rank": 1024,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rope,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 128,
    },
    rules=RULES,
    vocabulary=tokenizer.bpe,
    is_this=lambda facts: True,
    takes=lambda raw: raw.get("model_type") == "mistral4",
)
