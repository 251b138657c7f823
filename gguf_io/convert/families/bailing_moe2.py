"""Ling 2, Ring 2: experts chosen by sigmoid in groups, behind dense layers. transformers has no model of this class, so
it is converted and quantized, not run. Layers that predict further tokens are carried along; llama.cpp runs none.
"""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key, need
from quantmill.gguf_io.convert.rules import Config, Part, Rule


def _rotated(config: Config) -> int:
    return int(keys.head_dim(config) * rope.of_full_attention(config).get("partial_rotary_factor", 0.5))


def _shared_size(config: Config) -> int:
    stated = config.get("moe_shared_expert_intermediate_size")
    return stated or need(config, "moe_intermediate_size") * need(config, "num_shared_experts")


_WHERE = r"^model\.layers\.(\d+)\."

ATTENTION = {
    **layout.NORMS_BEFORE.shapes,
    **layout.HEAD_NORMS.shapes,
    "blk.attn_qkv.weight": "num_attention_heads*head_dim+2*num_key_value_heads*head_dim hidden_size",
    "blk.attn_output.weight": "hidden_size num_attention_heads*head_dim",
}
EXPERTS = {
    **layout.expert_tensors("num_experts", "moe_intermediate_size"),
    **layout.shared_expert("shared_size"),
    "blk.exp_probs_b.bias?": "num_experts",
}

FAMILY = Family(
    classes=("BailingMoeV2ForCausalLM",),
    arch=MODEL_ARCH.BAILINGMOE2,
    model_type="bailing_moe_v2",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.Tensors(ATTENTION),
        layout.Tensors(layout.FEED_FORWARD, layout.before_experts),
        layout.Tensors(EXPERTS, layout.behind_dense),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        *keys.EXPERT_GROUPS,
        keys.GATE,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.written("rope.dimension_count", _rotated),
        Key("first_k_dense_replace", "leading_dense_block_count", needed=True),
        keys.VOCABULARY_SIZE,
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("shared_size", "expert_shared_feed_forward_length"),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        Key("num_shared_experts", "expert_shared_count", needed=True),
        Key("norm_topk_prob", "expert_weights_norm", BOOL, needed=True),
        keys.written(
            "nextn_predict_layers",
            lambda config: None if config.get("num_nextn_predict_layers") is None else config.get("nextn", 0),
        ),
    ),
    defaults={
        "rope_theta": 10000.0,
        "scoring_func": lambda config: config.get("score_function"),
        "shared_size": _shared_size,
        "tie_word_embeddings": False,
    },
    rules=(
        rules.LATER_LAYERS_LEFT_OUT,
        Rule(rf"{_WHERE}mlp\.gate\.expert_bias$", (Part(r"blk.\1.exp_probs_b.bias"),)),
        *rules.ordered_experts("down", "gate", "up"),
    ),
    nextn=nextn.Nextn(
        "num_nextn_predict_layers", {**ATTENTION, **EXPERTS}, draft=False, final="layer_output_norm"
    ),
    runs=False,
)
