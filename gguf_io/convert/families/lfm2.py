"""LFM2 and LFM2.5: short convolutions, and attention in some layers."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, UINT32, Item, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule


def convolves(config: Config, layer: int) -> bool:
    return config["layer_types"][layer] == "conv"


def _attends(config: Config, layer: int) -> bool:
    return not convolves(config, layer)


def _inner_size(config: Config) -> int:
    """The size of the feed-forward layers, which the class adjusts (Lfm2MLP)."""
    size = config.get("block_ff_dim") or keys.need(config, "intermediate_size")
    if config["block_auto_adjust_ff_dim"]:
        size = int(2 * size / 3)
        if config["block_ffn_dim_multiplier"] is not None:
            size = int(config["block_ffn_dim_multiplier"] * size)
        multiple = config["block_multiple_of"]
        size = multiple * ((size + multiple - 1) // multiple)
    return size


def _write_heads(config: Config) -> Iterable[Item]:
    """0 heads tell llama.cpp that a layer convolves."""
    n_heads = config["num_key_value_heads"]
    layers = range(config["num_hidden_layers"])
    yield "attention.head_count_kv", ARRAY, [0 if convolves(config, layer) else n_heads for layer in layers]


def _read_heads(facts: Facts) -> Settings:
    heads = facts.need("attention.head_count_kv")
    heads = [heads] * facts.n_layers if isinstance(heads, int) else list(heads)[: facts.n_layers]
    return {
        "num_key_value_heads": max(heads),
        "layer_types": ["full_attention" if n else "conv" for n in heads],
    }


def all_attend(config: Config) -> list[str]:
    attend = config.get("full_attn_idxs")
    layers = range(config["num_hidden_layers"])
    return ["full_attention" if attend is None or layer in attend else "conv" for layer in layers]


KV_HEADS = keys.Rows(_write_heads, _read_heads)
INNER = keys.written("feed_forward_length", lambda config: config["inner_size"], UINT32)
NORM = Key("norm_eps", "attention.layer_norm_rms_epsilon", FLOAT32)
CACHE = Key("conv_L_cache", "shortconv.l_cache", needed=True)
RULES = (Rule(r"conv\.conv\.weight$", (Part(squeeze=True),)),)
MIXERS = (
    layout.Tensors({"token_embd.weight": "vocab_size hidden_size", "token_embd_norm.weight": "hidden_size"}),
    *layout.HEAD,
    layout.NORMS_BEFORE,
    layout.Tensors({**layout.ATTENTION.shapes, **layout.HEAD_NORMS.shapes}, _attends),
    layout.Tensors(
        {
            "blk.shortconv.conv.weight": "hidden_size conv_L_cache",
            "blk.shortconv.in_proj.weight": "3*hidden_size hidden_size",
            "blk.shortconv.out_proj.weight": "hidden_size hidden_size",
        },
        convolves,
    ),
)
FEED_FORWARD = {
    name: shape.replace("intermediate_size", "inner_size") for name, shape in layout.FEED_FORWARD.items()
}
DEFAULTS = {
    "conv_L_cache": 3,
    "norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 128000,
    "tie_word_embeddings": lambda config: bool(config.get("tie_embedding", True)),
}

FAMILY = Family(
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    arch=MODEL_ARCH.LFM2,
    model_type="lfm2",
    tensors=(*MIXERS, layout.Tensors(FEED_FORWARD)),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        keys.Rows(
            INNER.write,
            lambda facts: {
                "intermediate_size": facts.need("feed_forward_length"),
                "block_auto_adjust_ff_dim": False,
            },
        ),
        keys.HEADS,
        KV_HEADS,
        rope.ROPE,
        NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        CACHE,
    ),
    defaults={
        **DEFAULTS,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "inner_size": _inner_size,
        "layer_types": all_attend,
    },
    rules=RULES,
)
