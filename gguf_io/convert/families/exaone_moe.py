"""K-EXAONE: EXAONE 4 with experts; a layer that predicts further tokens has none."""

from __future__ import annotations

from gguf import MODEL_ARCH, RopeScalingType

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, STRING, Key
from quantmill.gguf_io.convert.rules import Rule

FAMILY = Family(
    classes=("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    arch=MODEL_ARCH.EXAONE_MOE,
    model_type="exaone_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        *layout.dense_then_experts("num_experts", "num_shared_experts"),
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
        keys.VOCABULARY_SIZE,
        Key("sliding_window", "attention.sliding_window"),
        keys.Rows(keys.write_pattern, keys.layers_every(4).read),
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("num_shared_experts", "expert_shared_count", needed=True),
        keys.written(
            "expert_shared_feed_forward_length",
            lambda config: config["moe_intermediate_size"] * config["num_shared_experts"],
        ),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        Key("norm_topk_prob", "expert_weights_norm", BOOL, needed=True),
        Key("first_k_dense_replace", "leading_dense_block_count"),
        keys.written("nextn_predict_layers", lambda config: config.get("nextn", 0)),
        keys.written("rope.scaling.type", lambda config: RopeScalingType.NONE.value, STRING),
    ),
    defaults={
        "first_k_dense_replace": 1,
        "layer_types": keys.alternating(4),
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1024,
        "n_group": 1,
        "norm_topk_prob": True,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 32,
        "num_shared_experts": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "tie_word_embeddings": False,
        "topk_group": 1,
    },
    rules=(Rule(r"^mtp\."), *rules.STACKED_EXPERTS),
    tables=rope.llama3,
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {
            **layout.NORMS_BEFORE.shapes,
            **layout.ATTENTION.shapes,
            **layout.HEAD_NORMS.shapes,
            **layout.FEED_FORWARD,
        },
        draft=False,
    ),
)
