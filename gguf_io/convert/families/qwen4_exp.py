"""Qwen3.8-Flash-Next, its text part: Qwen 3.5's mixers and experts, attention to blocks of tokens that an indexer
chooses, several streams of states mixed by narrow matrices (hyper-connections), and embeddings of groups of tokens
under a hash, from a table that checkpoints hold in parts.

transformers computes the hash's numbers from settings that a GGUF does not hold; so it is converted and quantized, not
run.
"""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rules
from quantmill.gguf_io.convert.families import qwen3_5, qwen3_5_moe
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, Item, Key, Wide, need
from quantmill.gguf_io.convert.rules import PLUS_ONE, Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

_WHERE = r"^model\.layers\.(\d+)\."
_NUMBERS = ("layer_multipliers", "ngram_heads_offsets", "ngram_heads_vocab_sizes")
_FROM_START = lambda config, n: slice(0, need(config, "indexer_n_heads") * need(config, "indexer_head_dim"))  # noqa: E731


def _attends(config: Config, layer: int) -> bool:
    return not qwen3_5.is_recurrent(config, layer)


def _embeds_groups(config: Config, layer: int) -> bool:
    return layer + 1 in config["ple_layer_ids"]


def _has_table(config: Config, layer: int) -> bool:
    return bool(config["ple_layer_ids"])


def _layer_types(config: Config) -> list[str]:
    every = config.get("full_attention_interval", 4)
    layers = range(config["num_hidden_layers"])
    return ["linear_attention" if (layer + 1) % every else "full_attention" for layer in layers]


def _n_heads(config: Config) -> int:
    """How many numbers of the hash each token has."""
    return (config["ngram_size"] - 1) * config["heads_per_ngram"]


def _row_size(config: Config) -> int | None:
    width, heads = config["ple_embed_dim"], _n_heads(config)
    if not config["ple_layer_ids"]:
        return None
    if heads < 1 or width % heads:
        raise GGUFError(f"config.json: ple_embed_dim {width} is not divided by {heads} heads of the hash")
    return width // heads


def _n_rows(config: Config) -> int | None:
    """Of the table: as many as the heads have values, rounded up."""
    sizes = config.get("ngram_heads_vocab_sizes")
    if sizes is None:
        return None
    step = config["make_ngram_vocab_size_divisible_by"]
    return -(-sum(sizes) // step) * step


def _check(config: Config) -> None:
    layers = config["ple_layer_ids"]
    if len(layers) > 1:
        raise GGUFError(f"config.json: ple_layer_ids {layers}: llama.cpp has one such layer only")
    missing = [name for name in _NUMBERS if layers and name not in config]
    if missing:
        raise GGUFError(f"ple_embedding.{missing[0]} is missing: the checkpoint is incomplete")
    for name in ("indexer_n_heads", "indexer_head_dim", "indexer_budget", "indexer_compress_ratio"):
        need(config, name)
    if config["hc_count"] < 2:
        raise GGUFError(f"config.json: hc_count is {config['hc_count']}; llama.cpp has 2 streams or more")


def _ratios(config: Config) -> list[int]:
    layers = range(config["num_hidden_layers"])
    return [config["indexer_compress_ratio"] if _attends(config, layer) else 0 for layer in layers]


def _write_groups(config: Config) -> Iterable[Item]:
    if not config["ple_layer_ids"]:
        return
    yield "ple.layers", ARRAY, [layer - 1 for layer in config["ple_layer_ids"]]
    for name in ("ngram_size", "heads_per_ngram"):
        yield f"ple.{name}", keys.UINT32, need(config, name)
    yield "ple.conv_kernel", keys.UINT32, need(config, "ple_conv_kernel_size")
    ends = need(config, "eos_token_id")
    yield "ple.eos_token_id", keys.UINT32, ends[-1] if isinstance(ends, list) else ends
    if config.get("image_token_id") is not None:
        yield "ple.image_token_id", keys.UINT32, config["image_token_id"]
    yield "embedding_length_per_layer_input", keys.UINT32, config["ple_row_size"]
    for name, key in zip(_NUMBERS, ("layer_multipliers", "head_offsets", "head_vocab_sizes"), strict=True):
        yield f"ple.{key}", ARRAY, Wide(config[name])


def _streams(where: str) -> dict[str, str]:
    """What makes one stream of hc_count, and spreads what comes of it."""
    return {
        f"{where}_norm.weight": "hc_count*hidden_size",
        f"{where}_down.weight": "hc_lowrank hc_count*hidden_size",
        f"{where}_up.weight": "hc_count*hidden_size hc_lowrank",
    }


def _stream_rules(module: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{module}\.hc_norm\.weight$", (Part(rf"{ours}_norm.weight", values=PLUS_ONE),)),
        Rule(rf"{module}\.input_mix_weight_(down|up)\.weight$", (Part(rf"{ours}_\g<1>.weight"),)),
    )


def _stream_rules_of_layer(module: str, ours: str) -> tuple[Rule, ...]:
    where = rf"{_WHERE}{module}\."
    return (
        Rule(rf"{where}hc_norm\.weight$", (Part(rf"blk.\1.{ours}_norm.weight", values=PLUS_ONE),)),
        Rule(rf"{where}input_mix_weight_(down|up)\.weight$", (Part(rf"blk.\1.{ours}_\2.weight"),)),
        Rule(rf"{where}block_inject_weight\.weight$", (Part(rf"blk.\1.{ours}_inject.weight"),)),
    )


RULES = (
    Rule(r"^(model\.)?mtp\."),
    *_stream_rules(r"^model\.hyper_connection_mixer", "output_hc"),
    *_stream_rules_of_layer("attn_hyper_connection", "hc_attn"),
    *_stream_rules_of_layer("mlp_hyper_connection", "hc_ffn"),
    Rule(
        rf"{_WHERE}self_attn\.indexer\.index_qk_proj\.weight$",
        (
            Part(r"blk.\1.indexer.q_proj.weight", rows=_FROM_START),
            Part(
                r"blk.\1.indexer.k_proj.weight", rows=lambda config, n: slice(_FROM_START(config, n).stop, n)
            ),
        ),
    ),
    Rule(
        rf"{_WHERE}self_attn\.indexer\.([qk])_layernorm\.weight$",
        (Part(r"blk.\1.indexer.\2_norm.weight", values=PLUS_ONE),),
    ),
    Rule(
        rf"{_WHERE}ple\.norm_(key|query|conv)\.weight$",
        (Part(r"blk.\1.ple_norm_\2.weight", values=PLUS_ONE),),
    ),
    Rule(rf"{_WHERE}ple\.(key|value)_proj\.weight$", (Part(r"blk.\1.ple_\2.weight"),)),
    Rule(rf"{_WHERE}ple\.conv1d\.weight$", (Part(r"blk.\1.ple_conv1d.weight", squeeze=True),)),
    Rule(rf"{_WHERE}ple\.ple_embedding\.(?:{'|'.join(_NUMBERS)})$"),  # settings, not tensors
    Rule(
        rf"{_WHERE}ple\.ple_embedding\.ngram_embedding\.shard_(?P<expert>\d+)\.weight$",
        (Part("per_layer_token_embd.weight"),),
        count="split_ngram_parts",
        joined=True,
    ),
    Rule(rf"{_WHERE}ple\.ple_embedding\.ngram_embedding\.weight$", (Part("per_layer_token_embd.weight"),)),
    *qwen3_5.RULES[1:],
    *rules.STACKED_EXPERTS,
)

FAMILY = Family(
    classes=("Qwen4ExpForConditionalGeneration", "Qwen4ExpForCausalLM"),
    arch="qwen4exp",
    model_type="qwen4_exp_text",
    tensors=(
        layout.Tensors({"token_embd.weight": "vocab_size hidden_size", **_streams("output_hc")}),
        *layout.HEAD,
        layout.Tensors(
            {
                **_streams("blk.hc_attn"),
                **_streams("blk.hc_ffn"),
                "blk.hc_attn_inject.weight": "hc_count hc_count*hidden_size",
                "blk.hc_ffn_inject.weight": "hc_count hc_count*hidden_size",
            }
        ),
        layout.Tensors(
            {
                **qwen3_5.FULL_ATTENTION,
                "blk.indexer.q_proj.weight": "indexer_n_heads*indexer_head_dim hidden_size",
                "blk.indexer.k_proj.weight": "indexer_head_dim hidden_size",
                "blk.indexer.q_norm.weight": "indexer_head_dim",
                "blk.indexer.k_norm.weight": "indexer_head_dim",
            },
            _attends,
        ),
        layout.Tensors(qwen3_5.DELTA_NET, qwen3_5.is_recurrent),
        layout.Tensors({"per_layer_token_embd.weight": "ple_rows ple_row_size"}, _has_table),
        layout.Tensors(
            {
                "blk.ple_key.weight": "hc_count*hidden_size ple_embed_dim",
                "blk.ple_value.weight": "hidden_size ple_embed_dim",
                **{
                    f"blk.ple_norm_{which}.weight": "hc_count*hidden_size"
                    for which in ("key", "query", "conv")
                },
                "blk.ple_conv1d.weight": "hc_count*hidden_size ple_conv_kernel_size",
            },
            _embeds_groups,
        ),
        layout.Tensors(qwen3_5_moe.EXPERTS),
    ),
    keys=(
        *qwen3_5_moe.FAMILY.keys,
        Key("hc_count", "hyper_connection.count"),
        Key("hc_lowrank", "hyper_connection.low_rank"),
        Key("indexer_n_heads", "attention.indexer.head_count", needed=True),
        Key("indexer_head_dim", "attention.indexer.key_length", needed=True),
        Key("indexer_budget", "attention.indexer.top_k", needed=True),
        keys.written("attention.compress_ratios", _ratios, ARRAY),
        keys.Rows(_write_groups),
    ),
    defaults={
        **qwen3_5_moe.FAMILY.defaults,
        "hc_count": 4,
        "hc_lowrank": 320,
        "heads_per_ngram": 8,
        "layer_types": _layer_types,
        "make_ngram_vocab_size_divisible_by": 128,
        "ngram_size": 3,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "ple_conv_kernel_size": 4,
        "ple_embed_dim": lambda config: config["hidden_size"],
        "ple_layer_ids": lambda config: [],
        "ple_row_size": _row_size,
        "ple_rows": _n_rows,
        "split_ngram_parts": 512,
    },
    rules=RULES,
    names=MODEL_ARCH.QWEN35MOE,
    numbers=_NUMBERS,
    check=_check,
    runs=False,
)
