"""Cohere 2 with experts, in parallel with attention."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH, RopeScalingType

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import cohere2
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, STRING, UINT32, Item, Key
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError


def _write_gate(config: Config) -> Iterable[Item]:
    name = config["expert_selection_fn"]
    if name not in keys.GATING:
        raise GGUFError(f"config.json: expert_selection_fn {name!r}; known are {', '.join(keys.GATING)}")
    yield "expert_gating_func", UINT32, keys.GATING[name]


def _read_gate(facts: Facts) -> Settings:
    names = {int(value): name for name, value in keys.GATING.items()}
    return {"expert_selection_fn": names[facts.get("expert_gating_func", 1)]}


def _write_shared(config: Config) -> Iterable[Item]:
    n_shared = config["num_shared_experts"]
    if n_shared:
        if config["shared_expert_combination_strategy"] != "average":
            raise GGUFError(
                "config.json: shared_expert_combination_strategy "
                f"{config['shared_expert_combination_strategy']!r}; llama.cpp knows average only"
            )
        yield "expert_shared_count", UINT32, n_shared
        yield "expert_shared_feed_forward_length", UINT32, n_shared * config["intermediate_size"]


def _layer_types(config: Config) -> list[str]:
    """What the class fills in: dense layers at the beginning have a period of their own."""
    n_dense = config.get("first_k_dense_replace") or 0
    periods = (
        (n_dense, config.get("prefix_dense_sliding_window_pattern") or 1),
        (config["num_hidden_layers"] - n_dense, config.get("sliding_window_pattern") or 4),
    )
    return [
        "sliding_attention" if (layer + 1) % period else "full_attention"
        for n_layers, period in periods
        for layer in range(n_layers)
    ]


def _read_norm(facts: Facts) -> Settings:
    return {"rms_norm_eps": facts.get("attention.layer_norm_rms_epsilon")}


FEED_FORWARD = {
    name: shape.replace("intermediate_size", "dense_size") for name, shape in layout.FEED_FORWARD.items()
}
FAMILY = Family(
    classes=("Cohere2MoeForCausalLM",),
    arch="cohere2moe",
    model_type="cohere2_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.Tensors({"blk.attn_norm.weight": "hidden_size"}),
        layout.ATTENTION,
        layout.Tensors(FEED_FORWARD, layout.is_dense),
        layout.Tensors(layout.expert_tensors("num_experts", "intermediate_size"), layout.is_sparse),
        layout.Tensors(
            layout.shared_expert("num_shared_experts*intermediate_size"),
            lambda config, layer: bool(config["num_shared_experts"]) and layout.is_sparse(config, layer),
        ),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        Key(("prefix_dense_intermediate_size", "intermediate_size"), "feed_forward_length"),
        keys.HEADS,
        keys.KV_HEADS,
        rope.ROPE,
        keys.Rows(keys.RMS_NORM.write, _read_norm),
        Key("layer_norm_eps", "attention.layer_norm_epsilon", FLOAT32),
        *keys.experts("num_experts"),
        keys.Rows(_write_gate, _read_gate),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("logit_scale", "logit_scale", FLOAT32, needed=True),
        keys.WINDOW,
        keys.Rows(keys.write_pattern, keys.layers_every(4).read),
        keys.VOCABULARY_SIZE,
        Key("intermediate_size", "expert_feed_forward_length"),
        keys.LEADING_DENSE,
        Key("norm_topk_prob", "expert_weights_norm", BOOL),
        keys.Rows(_write_shared, lambda facts: {"num_shared_experts": facts.get("expert_shared_count", 0)}),
        nextn.LAYERS,
        keys.written("rope.dimension_count", keys.head_dim),
        keys.written("rope.scaling.type", lambda config: RopeScalingType.NONE.value, STRING),
    ),
    defaults={
        "expert_selection_fn": "softmax",
        "head_dim": 128,
        "layer_norm_eps": 1e-5,
        "layer_types": _layer_types,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "mlp_layer_types": layout.dense_first("first_k_dense_replace"),
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 0,
        "rope_theta": 10000.0,
        "shared_expert_combination_strategy": "average",
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "dense_size": lambda config: (
            config.get("prefix_dense_intermediate_size") or config["intermediate_size"]
        ),
    },
    rules=(
        rules.LATER_LAYERS_LEFT_OUT,
        *cohere2.ZERO_BIAS_LEFT_OUT,
        *rules.STACKED_EXPERTS,
        *rules.tied_head_left_out(True),
    ),
    names=MODEL_ARCH.EXAONE_MOE,
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {
            "blk.attn_norm.weight": "hidden_size",
            **layout.ATTENTION.shapes,
            **layout.expert_tensors("num_experts", "intermediate_size"),
            **{
                f"{name}?": shape
                for name, shape in layout.shared_expert("num_shared_experts*intermediate_size").items()
            },
        },
    ),
)
