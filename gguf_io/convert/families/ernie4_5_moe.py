"""ERNIE 4.5 with experts; tensors that predict further tokens are left out."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule


def _has_experts(config: Config, layer: int) -> bool:
    return layer >= (config["moe_layer_start_index"] or 0)


def _shared_length(config: Config) -> int | None:
    """llama.cpp's converter divides so; in the published models it is the shared experts' inner size."""
    if not config["moe_num_shared_experts"]:
        return None
    return config["intermediate_size"] // config["num_key_value_heads"]


EXPERTS = tuple(
    Rule(
        rf"mlp\.experts\.(?P<expert>\d+)\.{kind}_proj\.weight$",
        (Part(f"mlp.experts.{kind}_proj.weight"),),
        order=position,
    )
    for position, kind in enumerate(("gate", "up", "down"))
)

FAMILY = Family(
    classes=("Ernie4_5_MoeForCausalLM",),
    arch=MODEL_ARCH.ERNIE4_5_MOE,
    model_type="ernie4_5_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors({"blk.attn_output.bias?": "hidden_size"}),
        layout.Tensors(layout.FEED_FORWARD, lambda config, layer: not _has_experts(config, layer)),
        layout.Tensors(
            {
                **layout.expert_tensors("moe_num_experts", "moe_intermediate_size"),
                "blk.exp_probs_b.bias": "1 moe_num_experts",
            },
            _has_experts,
        ),
        layout.Tensors(
            layout.shared_expert("moe_num_shared_experts*moe_intermediate_size"),
            lambda config, layer: bool(config["moe_num_shared_experts"]) and _has_experts(config, layer),
        ),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.FILE_TYPE,
        Key("moe_num_experts", "expert_count", needed=True),
        Key("moe_k", "expert_used_count", needed=True),
        Key("moe_layer_interval", "interleave_moe_layer_step", needed=True),
        Key("moe_layer_start_index", "leading_dense_block_count", needed=True),
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("moe_num_shared_experts", "expert_shared_count"),
        keys.written("expert_shared_feed_forward_length", _shared_length),
    ),
    defaults={
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    rules=(
        Rule(r"^model\.mtp_"),
        Rule(
            r"mlp\.(gate\.)?moe_statics\.e_score_correction\.bias$",
            (Part("mlp.moe_statics.e_score_correction.bias"),),
        ),
        *EXPERTS,
        *rules.STACKED_EXPERTS[1:],
    ),
    vocabulary=tokenizer.ernie,
)
