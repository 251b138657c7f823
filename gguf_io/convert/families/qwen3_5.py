"""Qwen 3.5, 3.6 and 3.8, the text part: three layers of gated delta net for one of attention.

ggml repeats the key heads of the delta net tile by tile, so value heads stand in another order than in Hugging Face's
tensors: first the first of each key head, then the second of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, nextn, rope, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, Item, Key
from quantmill.gguf_io.convert.mamba2 import DECAY
from quantmill.gguf_io.convert.rules import MTP_LEFT_OUT, PLUS_ONE, Config, Index, Part, Rule

TEXT_SECTIONS = [11, 11, 10, 0]  # of RoPE, where config.json has none


def value_heads(config: Config, n_rows: int) -> Index | None:
    """Rows of whole value heads, from those of one key head side by side to tiles."""
    n_keys, n_values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    if n_rows % n_values or n_values % n_keys:
        return None
    return np.arange(n_rows).reshape(n_keys, n_values // n_keys, -1).swapaxes(0, 1).ravel()


def query_key_value(config: Config, n_rows: int) -> Index | None:
    before = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = value_heads(config, n_rows - before) if n_rows > before else None
    if not isinstance(values, np.ndarray):
        return None
    return np.concatenate([np.arange(before), before + values])


RULES = (
    MTP_LEFT_OUT,
    Rule(r"linear_attn\.in_proj_qkv\.weight$", (Part(rows=query_key_value),)),
    Rule(r"linear_attn\.conv1d\.weight$", (Part(rows=query_key_value, squeeze=True),)),
    Rule(r"linear_attn\.in_proj_[zba]\.weight$", (Part(rows=value_heads),)),
    Rule(r"linear_attn\.out_proj\.weight$", (Part(columns=value_heads),)),
    Rule(r"linear_attn\.A_log$", (Part(rows=value_heads, values=DECAY),)),
    Rule(r"linear_attn\.dt_bias$", (Part("linear_attn.dt_proj.bias", rows=value_heads),)),
    Rule(r"^(?!.*linear_attn\.norm).*norm\.weight$", (Part(values=PLUS_ONE),)),
)


def is_recurrent(config: Config, layer: int) -> bool:
    kinds = config.get("layer_types")
    if kinds:
        return kinds[layer] == "linear_attention"
    return bool((layer + 1) % config["full_attention_interval"])


def _recurrent(config: Config) -> Iterable[Item]:
    if config.get("layer_types"):
        layers = [is_recurrent(config, layer) for layer in range(config["num_hidden_layers"])]
        layers += [False] * config.get("nextn", 0)
        yield "attention.recurrent_layers", ARRAY, layers


def _sections(config: Config) -> Iterable[Item]:
    if config["rope_parameters"].get("mrope_section") is None:
        yield "rope.dimension_sections", ARRAY, TEXT_SECTIONS


def _read_layers(facts: Facts) -> Settings:
    recurrent = facts.get("attention.recurrent_layers")
    if recurrent is None:
        every = facts.get("full_attention_interval", 4)
        recurrent = [bool((layer + 1) % every) for layer in range(facts.n_layers)]
    kinds = ["linear_attention" if is_recurrent else "full_attention" for is_recurrent in recurrent]
    return {"layer_types": kinds[: facts.n_layers]}


def _read_values(facts: Facts) -> Settings:
    n_heads = facts.need("ssm.time_step_rank")
    return {
        "linear_num_value_heads": n_heads,
        "linear_value_head_dim": facts.need("ssm.inner_size") // n_heads,
    }


def _read_sections(facts: Facts) -> Settings:
    return {"mrope_section": list(facts.get("rope.dimension_sections", TEXT_SECTIONS))[:3]}


def _rotated(config: Config) -> int:
    return int(keys.head_dim(config) * rope.of_full_attention(config).get("partial_rotary_factor", 0.25))


VALUES = "linear_num_value_heads*linear_value_head_dim"
QKV = f"2*linear_num_key_heads*linear_key_head_dim+{VALUES}"
DELTA_NET = {
    "blk.attn_qkv.weight": f"{QKV} hidden_size",
    "blk.attn_gate.weight": f"{VALUES} hidden_size",
    "blk.ssm_conv1d.weight": f"{QKV} linear_conv_kernel_dim",
    "blk.ssm_dt.bias": "linear_num_value_heads",
    "blk.ssm_a": "linear_num_value_heads",
    "blk.ssm_beta.weight": "linear_num_value_heads hidden_size",
    "blk.ssm_alpha.weight": "linear_num_value_heads hidden_size",
    "blk.ssm_norm.weight": "linear_value_head_dim",
    "blk.ssm_out.weight": f"hidden_size {VALUES}",
}
NORMS = {"blk.attn_norm.weight": "hidden_size", "blk.post_attention_norm.weight": "hidden_size"}
FULL_ATTENTION = {
    # with a gate for each value of the output
    "blk.attn_q.weight": "2*num_attention_heads*head_dim hidden_size",
    "blk.attn_k.weight": "num_key_value_heads*head_dim hidden_size",
    "blk.attn_v.weight": "num_key_value_heads*head_dim hidden_size",
    "blk.attn_output.weight": "hidden_size num_attention_heads*head_dim",
    **layout.HEAD_NORMS.shapes,
}
ATTENTION = (
    layout.EMBEDDING,
    *layout.HEAD,
    layout.Tensors(NORMS),
    layout.Tensors(FULL_ATTENTION, lambda config, layer: not is_recurrent(config, layer)),
)


def later(feed_forward: Mapping[str, str]) -> nextn.Nextn:
    """Layers that predict further tokens attend to everything."""
    return nextn.Nextn("mtp_num_hidden_layers", {**NORMS, **FULL_ATTENTION, **feed_forward}, PLUS_ONE)


MIXERS = (*ATTENTION, layout.Tensors(DELTA_NET, is_recurrent))
# Behind the common keys
MIXER_KEYS = (
    nextn.LAYERS,
    Key("linear_conv_kernel_dim", "ssm.conv_kernel", needed=True),
    Key("linear_key_head_dim", "ssm.state_size", needed=True),
    Key("linear_num_key_heads", "ssm.group_count", needed=True),
    Key("linear_num_value_heads", "ssm.time_step_rank", needed=True),
    keys.Rows(
        keys.written(
            "ssm.inner_size",
            lambda config: config["linear_value_head_dim"] * config["linear_num_value_heads"],
        ).write,
        _read_values,
    ),
    keys.Rows(_recurrent, _read_layers),
    keys.written("full_attention_interval", lambda config: config["full_attention_interval"]),
    keys.written("rope.dimension_count", _rotated),
)
SECTIONS = keys.Rows(_sections)
ROPE = rope.rope_known(_read_sections)
DEFAULTS = {
    "full_attention_interval": 4,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

FAMILY = Family(
    classes=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    arch=MODEL_ARCH.QWEN35,
    model_type="qwen3_5_text",
    tensors=(*MIXERS, layout.Tensors(layout.FEED_FORWARD)),
    keys=(*keys.SIZES, ROPE, keys.RMS_NORM, keys.HEAD_SIZES, keys.FILE_TYPE, *MIXER_KEYS, SECTIONS),
    defaults=DEFAULTS,
    rules=RULES,
    vocabulary=tokenizer.bpe,
    nextn=later(layout.FEED_FORWARD),
)
