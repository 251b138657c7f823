"""GLM-4.5 to 4.7."""

from __future__ import annotations

from gguf import MODEL_ARCH, ExpertGatingFuncType

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key
from quantmill.gguf_io.convert.rules import Config


def _rotated(config: Config) -> int:
    return int(keys.head_dim(config) * rope.of_full_attention(config).get("partial_rotary_factor", 0.5))


def _parts(facts: Facts) -> Settings:
    return {
        "attention_bias": facts.has("blk.0.attn_q.bias"),
        "use_qk_norm": facts.has("blk.0.attn_q_norm.weight"),
    }


LATER_LAYER = {
    "blk.attn_norm.weight": "hidden_size",
    "blk.post_attention_norm.weight": "hidden_size",
    **layout.ATTENTION.shapes,
    **layout.BIASES_OF_QKV.shapes,
    **{f"{name}?": shape for name, shape in layout.HEAD_NORMS.shapes.items()},
    **layout.dense_then_experts("n_routed_experts", "n_shared_experts")[1].shapes,
}

FAMILY = Family(
    classes=("Glm4MoeForCausalLM",),
    arch=MODEL_ARCH.GLM4_MOE,
    model_type="glm4_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.Tensors(
            {"blk.attn_norm.weight": "hidden_size", "blk.post_attention_norm.weight": "hidden_size"}
        ),
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(layout.HEAD_NORMS.shapes, lambda config, layer: bool(config["use_qk_norm"])),
        *layout.dense_then_experts("n_routed_experts", "n_shared_experts"),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("n_routed_experts"),
        *keys.EXPERT_GROUPS,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.written("rope.dimension_count", _rotated),
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("n_shared_experts", "expert_shared_count"),
        Key("first_k_dense_replace", "leading_dense_block_count"),
        keys.written("expert_gating_func", lambda config: int(ExpertGatingFuncType.SIGMOID)),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32),
        Key("norm_topk_prob", "expert_weights_norm", BOOL),
        nextn.LAYERS,
        keys.Rows(read=_parts),
    ),
    defaults={
        "first_k_dense_replace": 1,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    rules=(rules.LATER_LAYERS_LEFT_OUT, *rules.STACKED_EXPERTS),
    vocabulary=tokenizer.glm,
    nextn=nextn.Nextn("num_nextn_predict_layers", LATER_LAYER),
)
