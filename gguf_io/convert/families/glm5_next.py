"""GLM-5.3-Flash, its text part: delta attention by channel as in Kimi-Linear, latent attention without RoPE over pools
of tokens that an indexer chooses, several streams of states that layers mix (hyper-connections), experts chosen by
sigmoid.

transformers has its text model only inside the one that sees; so it is converted and quantized, not run.
"""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules, tokenizer
from quantmill.gguf_io.convert.families import deepseek2, glm_moe_dsa, kimi_linear
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, BOOL, FLOAT32, Item, Key, need
from quantmill.gguf_io.convert.mamba2 import DECAY
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

# What llama.cpp computes, where config.json may say that a model is otherwise.
_ONLY = {
    "hc_mult": 4,
    "qk_rope_head_dim": 0,
    "mhc": True,
    "mla_use_nope": True,
}


def _is_linear(config: Config, layer: int) -> bool:
    return need(config, "layer_types")[layer] == "linear_attention"


def _attends(config: Config, layer: int) -> bool:
    return not _is_linear(config, layer)


def _has_indexer(config: Config, layer: int) -> bool:
    return _attends(config, layer) and glm_moe_dsa.chooses(config, layer)


def _layer_types(config: Config) -> list[str]:
    layers = range(config["num_hidden_layers"])
    return ["indexed_attention" if layer % 4 == 3 else "linear_attention" for layer in layers]


def _lower_bound(config: Config) -> float | None:
    """Of the decay's logarithm; where it is null but a gate is safe, the class has one all the same."""
    stated = kimi_linear.linear(config)
    bound = stated.get("gate_lower_bound", -5.0)
    return -5.0 if bound is None and stated.get("safe_gate", True) else bound


def _check(config: Config) -> None:
    keys.only(config, _ONLY)
    n_layers, pool = config["num_hidden_layers"], need(config, "index_kpool")
    for key in ("layer_types", "mlp_layer_types", "indexer_types"):
        if not isinstance(config[key], list) or len(config[key]) != n_layers:
            raise GGUFError(f"config.json: {key} must be a list of {n_layers} layers, not {config[key]!r}")
    if not isinstance(pool, int) or pool < 2 or need(config, "index_topk") % pool:
        raise GGUFError(
            f"config.json: index_kpool must be from 2 on and divide index_topk, {config['index_topk']}, not {pool!r}"
        )
    if config["linear_num_heads"] != config["num_attention_heads"]:
        raise GGUFError(
            f"config.json: delta attention has {config['linear_num_heads']} heads, num_attention_heads is "
            f"{config['num_attention_heads']}; llama.cpp has one number for both"
        )
    if config["mlp_layer_types"] != sorted(config["mlp_layer_types"]):
        raise GGUFError(
            "config.json: mlp_layer_types has a dense layer behind one with experts; llama.cpp has none"
        )
    first = next((layer for layer in range(n_layers) if _attends(config, layer)), None)
    if first is not None and not _has_indexer(config, first):
        raise GGUFError(f"config.json: indexer_types: layer {first} shares, but none before it attends")


def _write_layers(config: Config) -> Iterable[Item]:
    """As of Kimi-Linear: 0 says that a layer does not attend."""
    heads = [int(_attends(config, layer)) for layer in range(config["num_hidden_layers"])]
    yield "attention.head_count_kv", ARRAY, heads + [1] * config.get("nextn", 0)


def _limits(config: Config) -> list[float] | None:
    limit = config.get("swiglu_limit")
    n_layers = config["num_hidden_layers"] + config.get("nextn", 0)
    return None if limit is None else [float(limit)] * n_layers


def of_streams(where: str) -> dict[str, str]:
    """What mixes hc_mult streams into one, spreads it again and mixes them with each other."""
    n = "2*hc_mult+hc_mult*hc_mult"
    return {
        f"blk.hc_{where}_fn.weight": f"{n} hc_mult*hidden_size",
        f"blk.hc_{where}_base.weight": n,
        f"blk.hc_{where}_scale.weight": "3",
    }


_WHERE = r"^model\.layers\.(\d+)\."
INDEXER = {
    **glm_moe_dsa.INDEXER,
    "blk.indexer_compressor_ape.weight": "index_kpool index_head_dim",
    "blk.indexer_compressor_gate.weight": "index_head_dim hidden_size",
}
DELTA_ATTENTION = {**kimi_linear.DELTA_ATTENTION, "blk.ssm_a": "linear_num_heads"}
EXPERTS = {
    **layout.expert_tensors("n_routed_experts", "moe_intermediate_size"),
    **layout.shared_expert("n_shared_experts*moe_intermediate_size"),
    "blk.exp_probs_b.bias": "n_routed_experts",
}
RULES = (
    *rules.tied_head_left_out(by_default=False),
    rules.LATER_LAYERS_LEFT_OUT,
    *kimi_linear.delta_rules("self_attn"),
    Rule(
        rf"{_WHERE}self_attn\.(?:forget_gate\.)?A_log$",
        (Part(r"blk.\1.ssm_a", values=DECAY, squeeze=True),),
    ),
    Rule(rf"{_WHERE}self_attn\.forget_gate\.f_([ab])_proj\.weight$", (Part(r"blk.\1.ssm_f_\2.weight"),)),
    Rule(rf"{_WHERE}hc_(attn|ffn)_(fn|base|scale)$", (Part(r"blk.\1.hc_\2_\3.weight"),)),
    Rule(rf"{_WHERE}(attn|ffn)_hc\.(fn|base|scale)$", (Part(r"blk.\1.hc_\2_\3.weight"),)),
    Rule(
        rf"{_WHERE}self_attn\.indexer\.index_kpool_compress_(ape|gate)$",
        (Part(r"blk.\1.indexer_compressor_\2.weight"),),
    ),
    *glm_moe_dsa.INDEXER_RULES,
    deepseek2.LATENT_KEYS,
    *rules.ordered_experts("down", "gate", "up"),
)

FAMILY = Family(
    classes=("Glm5NextForConditionalGeneration",),
    arch="glm5-next",
    model_type="glm5_next_text",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors({**of_streams("attn"), **of_streams("ffn")}),
        layout.Tensors(DELTA_ATTENTION, _is_linear),
        layout.Tensors(deepseek2.LATENT, _attends),
        layout.Tensors(INDEXER, _has_indexer),
        layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
        layout.Tensors(EXPERTS, layout.is_sparse),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        keys.INNER,
        keys.HEADS,
        keys.Rows(_write_layers),
        keys.Rows(rope.write),
        keys.RMS_NORM,
        *keys.experts("n_routed_experts"),
        *keys.EXPERT_GROUPS,
        keys.GATE,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        keys.written("attention.layer_norm_epsilon", lambda config: 1e-6, FLOAT32),
        nextn.LAYERS,
        Key("linear_conv_kernel_dim", "ssm.conv_kernel"),
        Key("linear_head_dim", "kda.head_dim"),
        Key("linear_lower_bound", "kda.gate_lower_bound", FLOAT32),
        Key("q_lora_rank", "attention.q_lora_rank", needed=True),
        deepseek2.RANK,
        keys.written("rope.dimension_count", lambda config: config["qk_rope_head_dim"]),
        deepseek2.ABSORBED,
        keys.written("attention.key_length_mla", deepseek2.long_keys),
        Key("v_head_dim", "attention.value_length_mla"),
        *glm_moe_dsa.INDEXER_KEYS,
        Key("index_kpool", "attention.indexer.kpool"),
        Key("index_kpool_always_select_tail", "attention.indexer.kpool_select_tail", BOOL),
        glm_moe_dsa.TYPES,
        Key("hc_mult", "hyper_connection.count"),
        Key("hc_sinkhorn_iters", "hyper_connection.sinkhorn_iterations"),
        Key("hc_eps", "hyper_connection.epsilon", FLOAT32),
        keys.LEADING_DENSE,
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("n_shared_experts", "expert_shared_count", needed=True),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        Key("norm_topk_prob", "expert_weights_norm", BOOL, needed=True),
        keys.written("swiglu_clamp_exp", _limits, ARRAY),
        keys.written("swiglu_clamp_shexp", _limits, ARRAY),
    ),
    defaults={
        "first_k_dense_replace": 3,
        "hc_eps": 1e-6,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "index_head_dim": 128,
        "index_kpool": 16,
        "index_kpool_always_select_tail": True,
        "index_n_heads": 32,
        "index_topk": 2048,
        "indexer_types": glm_moe_dsa.types,
        "kv_lora_rank": 512,
        "layer_types": _layer_types,
        "linear_conv_kernel_dim": kimi_linear.of_linear("short_conv_kernel_size", 4),
        "linear_head_dim": kimi_linear.of_linear("head_dim", 128),
        "linear_lower_bound": _lower_bound,
        "linear_num_heads": kimi_linear.of_linear("num_heads", 64),
        "max_position_embeddings": 1048576,
        "mlp_layer_types": layout.dense_first("first_k_dense_replace"),
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 288,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 64,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 256,
        "qk_rope_head_dim": 0,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 2.5,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 256,
    },
    rules=RULES,
    vocabulary=tokenizer.glm,
    names=MODEL_ARCH.KIMI_LINEAR,
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {**layout.NORMS_BEFORE.shapes, **deepseek2.LATENT, **INDEXER, **EXPERTS},
        draft=False,
    ),
    check=_check,
    runs=False,
)
