"""AFM with experts (Trinity): gated attention, norms before and after, experts behind dense layers."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule


def _is_sparse(config: Config, layer: int) -> bool:
    return layer >= config["num_dense_layers"]


FAMILY = Family(
    classes=("AfmoeForCausalLM",),
    arch=MODEL_ARCH.AFMOE,
    model_type="afmoe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.NORMS_AFTER,
        layout.ATTENTION,
        layout.Tensors({"blk.attn_gate.weight": "num_attention_heads*head_dim hidden_size"}),
        layout.HEAD_NORMS,
        layout.Tensors(layout.FEED_FORWARD, lambda config, layer: not _is_sparse(config, layer)),
        layout.Tensors(
            {
                **layout.expert_tensors("num_experts", "moe_intermediate_size"),
                **layout.shared_expert("num_shared_experts*moe_intermediate_size"),
                "blk.exp_probs_b.bias": "num_experts",
            },
            _is_sparse,
        ),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        rope.ROTATED,
        Key("num_shared_experts", "expert_shared_count"),
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("num_dense_layers", "leading_dense_block_count"),
        keys.Rows(Key("route_norm", "expert_weights_norm", BOOL).write),
        Key("route_scale", "expert_weights_scale", FLOAT32),
        keys.WINDOW,
        keys.layers_every(4),
    ),
    defaults={
        "head_dim": 128,
        "layer_types": lambda config: keys.alternating(config.get("global_attn_every_n_layers") or 4)(config),
        "max_position_embeddings": 16384,
        "moe_intermediate_size": 1408,
        "num_dense_layers": 1,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_shared_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "route_scale": 1.0,
        "sliding_window": 1024,
        "tie_word_embeddings": False,
    },
    rules=(
        Rule(r"mlp\.expert_bias$", (Part("mlp.expert_bias.bias"),)),
        *rules.ordered_experts("gate", "up", "down"),
    ),
    vocabulary=tokenizer.llama,
    fixed={"mup_enabled": True},  # llama.cpp knows no other
)
