"""MiMo V2 Flash: windows with sinks and twice the key and value heads, experts behind dense layers."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, Item, Key
from quantmill.gguf_io.convert.mamba2 import of_layers
from quantmill.gguf_io.convert.rules import Config, Part, Rule


def _layer_types(config: Config) -> list[str]:
    """By the checkpoint's pattern of 0 and 1, else what the class fills in: the first and every sixth are full."""
    pattern = config.get("hybrid_layer_pattern")
    if pattern is None:
        pattern = [bool(i and (i + 1) % 6) for i in range(config["num_hidden_layers"])]
    return ["sliding_attention" if slides else "full_attention" for slides in pattern]


def _mlp_layer_types(config: Config) -> list[str]:
    sparse = config.get("moe_layer_freq")
    if isinstance(sparse, list):
        return ["sparse" if one else "dense" for one in sparse]
    return layout.dense_first(1)(config)


def _slides(config: Config, layer: int) -> bool:
    return config["layer_types"][layer] == "sliding_attention"


def _sliding_heads(config: Config) -> int:
    return config.get("swa_num_key_value_heads") or 2 * config["num_key_value_heads"]


def _kv_heads(config: Config) -> list[int]:
    full, sliding = config["num_key_value_heads"], _sliding_heads(config)
    return [sliding if _slides(config, i) else full for i in range(config["num_hidden_layers"])]


def _write_layers(config: Config) -> Iterable[Item]:
    further = config.get("nextn", 0)  # layers that predict further tokens slide
    yield "attention.head_count_kv", ARRAY, _kv_heads(config) + [_sliding_heads(config)] * further
    yield from keys.WINDOW.write(config)
    slides = [int(_slides(config, layer)) for layer in range(config["num_hidden_layers"])]
    yield "attention.sliding_window_pattern", ARRAY, slides + [1] * further
    yield "attention.value_length", keys.UINT32, config["v_head_dim"]


def _read(facts: Facts) -> Settings:
    slides = [bool(one) for one in facts.need("attention.sliding_window_pattern")][: facts.n_layers]
    heads = of_layers(facts, "attention.head_count_kv")
    full = [n for n, is_sliding in zip(heads, slides, strict=True) if not is_sliding]
    own = rope.read(facts)
    sliding = {**own, "rope_theta": facts.get("rope.freq_base_swa", own["rope_theta"])}
    return {
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
        "num_key_value_heads": full[0] if full else heads[0] // 2,
        "v_head_dim": facts.need("attention.value_length"),
        "attention_value_scale": facts.get("attention.value_scale"),
        "rope_parameters": {"full_attention": own, "sliding_attention": sliding},
        **keys.read_dense(facts),
    }


def _rotated(config: Config) -> int:
    return int(keys.head_dim(config) * rope.of_full_attention(config).get("partial_rotary_factor", 1.0))


def attention(kv_heads: str) -> dict[str, str]:
    """kv_heads: the key of their number in a layer."""
    return {
        "blk.attn_q.weight": "num_attention_heads*head_dim hidden_size",
        "blk.attn_k.weight": f"{kv_heads}*head_dim hidden_size",
        "blk.attn_v.weight": f"{kv_heads}*v_head_dim hidden_size",
        "blk.attn_output.weight": "hidden_size num_attention_heads*v_head_dim",
    }


FAMILY = Family(
    classes=("MiMoV2FlashForCausalLM",),
    arch=MODEL_ARCH.MIMO2,
    model_type="mimo_v2_flash",
    is_this=lambda facts: not facts.has("blk.0.attn_qkv.weight"),  # those of V2.5
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(attention("kv_heads")),
        layout.Tensors({"blk.attn_sinks.weight": "num_attention_heads"}, _slides),
        layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
        layout.Tensors(
            {
                **layout.expert_tensors("n_routed_experts", "moe_intermediate_size"),
                "blk.exp_probs_b.bias": "n_routed_experts",
            },
            layout.is_sparse,
        ),
    ),
    keys=(
        *keys.SIZES[:-1],
        keys.Rows(keys.KV_HEADS.write),
        keys.Rows(rope.write),
        keys.RMS_NORM,
        *keys.experts("n_routed_experts"),
        *keys.EXPERT_GROUPS,
        keys.GATE,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.Rows(_write_layers, keys.WINDOW.read),
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        keys.written("rope.dimension_count", _rotated),
        Key("attention_value_scale", "attention.value_scale", FLOAT32),
        nextn.LAYERS,
        keys.Rows(read=_read),
    ),
    defaults={
        "attention_value_scale": 0.707,
        "head_dim": 192,
        "layer_types": _layer_types,
        "max_position_embeddings": 131072,
        "mlp_layer_types": _mlp_layer_types,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.334,
        "rope_theta": 5000000.0,
        "rms_norm_eps": lambda config: config.get("layernorm_epsilon") or 1e-5,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
        "sliding_window": 129,
        "swa_rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 128,
        "kv_heads": _kv_heads,
        "sliding_heads": _sliding_heads,
    },
    rules=(
        rules.MTP_LEFT_OUT,
        Rule(
            r"^model\.layers\.(\d+)\.self_attn\.(?:attention_sink_bias|sinks)$",
            (Part(r"blk.\1.attn_sinks.weight"),),
        ),
        *rules.ordered_experts("gate", "up", "down"),
    ),
    fixed={"norm_topk_prob": True},
    # llama.cpp runs those of MiMo V2.5 only, whose projections of attention are one.
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {
            **layout.NORMS_BEFORE.shapes,
            **attention("sliding_heads"),
            "blk.attn_sinks.weight?": "num_attention_heads",
            **layout.FEED_FORWARD,
        },
        draft=False,
        final="layer_output_norm",
    ),
)
