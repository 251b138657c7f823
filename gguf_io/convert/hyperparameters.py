"""Hyperparameters: config.json keys → GGUF keys of the architecture.

gguf's GGUFWriter serves as the recorder: its `add_*` methods know the key and the value type of each setting.
What most models share is a table; what a family adds or does differently is a small function, named in its
row of families.py. The facts are those of llama.cpp's converter (`conversion/*.py: set_gguf_parameters`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gguf import ExpertGatingFuncType, GGUFWriter, RopeScalingType

from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

KeyWriter = Callable[[GGUFWriter, Config], None]

# (config keys in order of preference, GGUFWriter method)
SIZES = (
    (("num_hidden_layers",), GGUFWriter.add_block_count),
    (("max_position_embeddings", "n_positions"), GGUFWriter.add_context_length),
    (("hidden_size",), GGUFWriter.add_embedding_length),
    (("dense_intermediate_size", "intermediate_size"), GGUFWriter.add_feed_forward_length),
    (("num_attention_heads",), GGUFWriter.add_head_count),
    (("num_key_value_heads",), GGUFWriter.add_head_count_kv),
)
NORMS_AND_EXPERTS = (
    (("rms_norm_eps", "norm_eps"), GGUFWriter.add_layer_norm_rms_eps),
    (("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"), GGUFWriter.add_layer_norm_eps),
    (("num_local_experts", "num_experts", "n_routed_experts"), GGUFWriter.add_expert_count),
    (("num_experts_per_tok", "num_experts_per_token"), GGUFWriter.add_expert_used_count),
    (("n_group",), GGUFWriter.add_expert_group_count),
    (("topk_group",), GGUFWriter.add_expert_group_used_count),
)
YARN = (
    (("extrapolation_factor",), GGUFWriter.add_rope_scaling_yarn_ext_factor),
    (("attention_factor", "attn_factor"), GGUFWriter.add_rope_scaling_yarn_attn_factor),
    (("beta_fast",), GGUFWriter.add_rope_scaling_yarn_beta_fast),
    (("beta_slow",), GGUFWriter.add_rope_scaling_yarn_beta_slow),
)
# llama3 becomes a tensor (rope.py); llama.cpp's converter writes nothing for dynamic and mrope.
ROPE_TYPES = ("default", "linear", "yarn", "longrope", "llama3", "dynamic", "mrope")
GATING = {"sigmoid": ExpertGatingFuncType.SIGMOID, "softmax": ExpertGatingFuncType.SOFTMAX}


def need(config: Config, key: str) -> Any:
    """config[key]. Raises GGUFError when the key is missing or null."""
    if config.get(key) is None:
        raise GGUFError(f"config.json: key {key!r} is missing; the architecture needs it")
    return config[key]


def head_dim(config: Config) -> int:
    return config.get("head_dim") or need(config, "hidden_size") // need(config, "num_attention_heads")


def global_rope(config: Config) -> Mapping[str, Any]:
    """The RoPE settings of full attention layers."""
    rope = config["rope_parameters"]
    return rope.get("full_attention", rope)


def common(writer: GGUFWriter, config: Config) -> None:
    """What every family writes that does not say otherwise."""
    _from_table(writer, config, SIZES)
    _rope(writer, config)
    _from_table(writer, config, NORMS_AND_EXPERTS)
    gating = config.get("scoring_func")
    if gating is not None:
        if gating not in GATING:
            raise GGUFError(f"config.json: scoring_func {gating!r}; known are {', '.join(GATING)}")
        writer.add_expert_gating_func(GATING[gating])
    key_length = config.get("key_length", config.get("head_dim"))
    if key_length is not None:
        writer.add_key_length(key_length)
        writer.add_value_length(config.get("value_length", key_length))
    writer.add_file_type(config["file_type"])


def _from_table(writer: GGUFWriter, config: Config, table: Any) -> None:
    for keys, add in table:
        key = next((key for key in keys if config.get(key) is not None), None)
        if key is None:
            continue
        if isinstance(config[key], bool) or not isinstance(config[key], (int, float)):
            raise GGUFError(f"config.json: key {key!r} must be a number, not {config[key]!r}")
        add(writer, config[key])


def _rope(writer: GGUFWriter, config: Config) -> None:
    rope, both = global_rope(config), config["rope_parameters"]
    kind = rope.get("rope_type")
    if kind == "linear" and rope.get("factor") is not None:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn" and rope.get("factor") is not None:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        _from_table(writer, rope, YARN)
    elif kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
    elif kind not in ROPE_TYPES:
        raise GGUFError(
            f"config.json: RoPE scaling {kind!r} is not supported; known are {', '.join(ROPE_TYPES)}"
        )
    sections = both.get("mrope_section")
    if sections is not None:
        if not (isinstance(sections, list) and all(type(n) is int for n in sections)):
            raise GGUFError(f"config.json: mrope_section must be a list of numbers, not {sections!r}")
        writer.add_rope_dimension_sections([*sections, 0, 0, 0, 0][:4])
    if rope.get("rope_theta") is not None:
        writer.add_rope_freq_base(rope["rope_theta"])
    local_theta = both.get("sliding_attention", {}).get("rope_theta")
    if local_theta is not None:
        writer.add_rope_freq_base_swa(local_theta)


def llama(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(head_dim(config))


def granite(writer: GGUFWriter, config: Config) -> None:
    llama(writer, {**config, "head_dim": None})  # Granite's head size always follows from the hidden size
    for key, add in (
        ("attention_multiplier", GGUFWriter.add_attention_scale),
        ("embedding_multiplier", GGUFWriter.add_embedding_scale),
        ("residual_multiplier", GGUFWriter.add_residual_scale),
        ("logits_scaling", GGUFWriter.add_logit_scale),
    ):
        if config.get(key):
            add(writer, config[key])
    if config.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])


def qwen_moe(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    if config.get("moe_intermediate_size") is not None:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config.get("shared_expert_intermediate_size") is not None:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def gemma2(writer: GGUFWriter, config: Config) -> None:
    writer.add_context_length(need(config, "max_position_embeddings"))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(need(config, "num_key_value_heads"))
    writer.add_layer_norm_rms_eps(need(config, "rms_norm_eps"))
    writer.add_key_length(need(config, "head_dim"))
    writer.add_value_length(need(config, "head_dim"))
    writer.add_file_type(config["file_type"])
    writer.add_attn_logit_softcapping(need(config, "attn_logit_softcapping"))
    writer.add_final_logit_softcapping(need(config, "final_logit_softcapping"))
    writer.add_sliding_window(need(config, "sliding_window"))


def gemma3(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    if config.get("attn_logit_softcapping") is not None:
        raise GGUFError("config.json: attn_logit_softcapping is set; Gemma 3 has none")
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if config.get("sliding_window_pattern") != 1:
        writer.add_sliding_window(need(config, "sliding_window"))


def phi3(writer: GGUFWriter, config: Config) -> None:
    rope = global_rope(config)
    rotated = (
        int(rope.get("partial_rotary_factor", 1.0) * config["hidden_size"]) // config["num_attention_heads"]
    )
    original = rope.get("original_max_position_embeddings") or need(
        config, "original_max_position_embeddings"
    )
    writer.add_context_length(need(config, "max_position_embeddings"))
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(need(config, "num_key_value_heads"))
    writer.add_layer_norm_rms_eps(need(config, "rms_norm_eps"))
    writer.add_rope_dimension_count(rotated)
    writer.add_rope_freq_base(need(rope, "rope_theta"))
    writer.add_file_type(config["file_type"])
    writer.add_sliding_window(config.get("sliding_window") or 0)  # 0 tells Phi-4 from Phi-3


def olmo(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(_sliding_layers(config))


def gpt_oss(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    writer.add_sliding_window(need(config, "sliding_window"))
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def deepseek(writer: GGUFWriter, config: Config) -> None:
    rank, rope_dim = need(config, "kv_lora_rank"), need(config, "qk_rope_head_dim")
    # Absorbed latent attention is attention with one large key and value head.
    absorbed = {"num_key_value_heads": 1, "key_length": rank + rope_dim, "value_length": rank}
    common(writer, {**config, **absorbed})
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace") or 0)
    writer.add_vocab_size(config["vocab_size"])
    if config.get("q_lora_rank") is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length_mla(need(config, "qk_nope_head_dim") + rope_dim)
    writer.add_value_length_mla(need(config, "v_head_dim"))
    writer.add_expert_feed_forward_length(need(config, "moe_intermediate_size"))
    writer.add_expert_shared_count(config.get("n_shared_experts") or 0)
    if config.get("routed_scaling_factor") is not None:
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config.get("norm_topk_prob"):
        writer.add_expert_weights_norm(True)
    writer.add_rope_dimension_count(rope_dim)
    mscale = global_rope(config).get("mscale_all_dim")
    if mscale is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * mscale)


def glm4(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    writer.add_rope_dimension_count(
        int(head_dim(config) * global_rope(config).get("partial_rotary_factor", 0.5))
    )


def exaone4(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window") is not None:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(_sliding_layers(config))


def cohere2(writer: GGUFWriter, config: Config) -> None:
    common(writer, config)
    writer.add_logit_scale(need(config, "logit_scale"))
    writer.add_sliding_window(need(config, "sliding_window"))
    writer.add_vocab_size(config["vocab_size"])
    size = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(config.get("rotary_pct", 1.0) * size))
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def _sliding_layers(config: Config) -> list[bool]:
    """Which layers attend to the window only: layer_types, or a pattern as number or as letters (LLLG)."""
    n_layers = config["num_hidden_layers"]
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    pattern = need(config, "sliding_window_pattern")
    if isinstance(pattern, str):
        return [pattern[i % len(pattern)] == "L" for i in range(n_layers)]
    return [(i + 1) % pattern != 0 for i in range(n_layers)]
