"""Hunyuan 3: experts chosen by sigmoid, behind dense layers."""

from __future__ import annotations

from gguf import MODEL_ARCH, ExpertGatingFuncType

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, Key
from quantmill.gguf_io.convert.rules import Part, Rule

_WHERE = r"^model\.layers\.(\d+)\.mlp\."
RULES = (
    Rule(rf"{_WHERE}(?:router\.)?gate\.weight$", (Part(r"blk.\1.ffn_gate_inp.weight"),)),
    Rule(rf"{_WHERE}(?:expert_bias|e_score_correction\.bias)$", (Part(r"blk.\1.exp_probs_b"),)),
    Rule(
        rf"{_WHERE}shared_(?:mlp|experts)\.(gate|up|down)_proj\.weight$",
        (Part(r"blk.\1.ffn_\2_shexp.weight"),),
    ),
    *rules.STACKED_EXPERTS,
)

EXPERTS = {
    **layout.expert_tensors("num_experts", "moe_intermediate_size"),
    **layout.shared_expert("num_shared_experts*moe_intermediate_size"),
    "blk.exp_probs_b": "num_experts",
}

FAMILY = Family(
    classes=("HYV3ForCausalLM",),
    arch="hy_v3",
    model_type="hy_v3",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.HEAD_NORMS,
        layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
        layout.Tensors(EXPERTS, layout.is_sparse),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        keys.Rows(
            keys.written(
                "expert_shared_feed_forward_length",
                lambda config: config["moe_intermediate_size"] * config["num_shared_experts"],
            ).write,
            lambda facts: {
                "num_shared_experts": facts.need("expert_shared_feed_forward_length")
                // facts.need("expert_feed_forward_length")
            },
        ),
        keys.written("expert_weights_norm", lambda config: config.get("route_norm", True), keys.BOOL),
        Key("router_scaling_factor", "expert_weights_scale", FLOAT32),
        keys.written("expert_gating_func", lambda config: int(ExpertGatingFuncType.SIGMOID)),
        nextn.LAYERS,
        keys.Rows(read=keys.read_dense),
    ),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "mlp_layer_types": layout.dense_first(1),
        "moe_intermediate_size": 1536,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_shared_experts": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 11158840.0,
        "router_scaling_factor": 2.826,
        "tie_word_embeddings": False,
    },
    rules=RULES,
    names=MODEL_ARCH.EXAONE_MOE,
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {
            **layout.NORMS_BEFORE.shapes,
            **layout.ATTENTION.shapes,
            **layout.HEAD_NORMS.shapes,
            **EXPERTS,
        },
    ),
)
