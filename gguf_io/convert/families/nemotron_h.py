"""Nemotron-H and Nemotron Nano 2: each layer is Mamba 2, attention or a feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, mamba2, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, Item, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule, rope_pairs
from quantmill.gguf_io.errors import GGUFError

CLASSES = ("NemotronHForCausalLM",)
LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
OTHER_NAMES = {"mamba": "linear_attention", "attention": "full_attention"}


def has_experts(raw: Mapping[str, Any]) -> bool:
    """By the layers: the class fills in settings of experts for all its models."""
    given = raw.get("layers_block_type") or raw.get("hybrid_override_pattern") or ()
    return "moe" in given or "E" in given


def kinds(config: Config) -> list[str]:
    """What each layer is, as newer configurations name it."""
    given = config.get("layers_block_type") or config.get("hybrid_override_pattern")
    if isinstance(given, list):
        found = [OTHER_NAMES.get(str(kind), str(kind)) for kind in given]
    elif isinstance(given, str):
        found = [LETTERS.get(letter, letter) for letter in given]
    else:
        raise GGUFError("config.json: neither layers_block_type nor hybrid_override_pattern names the layers")
    unknown = [kind for kind in found if kind not in LETTERS.values()]
    if unknown:
        raise GGUFError(
            f"config.json: a layer is {unknown[0]!r}; known are {', '.join(LETTERS.values())} ({''.join(LETTERS)})"
        )
    return found


def is_kind(*names: str) -> Callable[[Config, int], bool]:
    return lambda config, layer: config["layer_types"][layer] in names


def _norm(config: Config) -> float:
    return next((config[key] for key in ("rms_norm_eps", "layer_norm_epsilon") if key in config), 1e-5)


def lengths(key: str, kind: str) -> Callable[[Config], Iterable[Item]]:
    """Of the feed-forward of each layer, 0 where it has none; those that predict further tokens have one."""

    def write(config: Config) -> Iterable[Item]:
        own = is_kind(kind)
        size = keys.need(config, key)
        layers = range(config["num_hidden_layers"])
        sizes = [size if own(config, layer) else 0 for layer in layers]
        yield "feed_forward_length", ARRAY, sizes + [size] * config.get("nextn", 0)

    return write


def read_kinds(kind: str) -> Callable[[Facts, list[int]], Settings]:
    """kind: of a layer with a feed-forward."""

    def read(facts: Facts, heads: list[int]) -> Settings:
        inner = mamba2.of_layers(facts, "feed_forward_length")
        scans = "linear_attention"
        found = ["full_attention" if n else kind if m else scans for n, m in zip(heads, inner, strict=True)]
        n_heads = facts.need("ssm.time_step_rank")
        return {
            "layers_block_type": found,
            "mamba_head_dim": facts.need("ssm.inner_size") // n_heads,
            "use_conv_bias": facts.has(*(f"blk.{layer}.ssm_conv1d.bias" for layer in range(facts.n_layers))),
            "layer_norm_epsilon": facts.need("attention.layer_norm_rms_epsilon"),
        }

    return read


MAMBA = mamba2.tensors(
    "inner_size", "mamba_num_heads", "n_groups", "ssm_state_size", "conv_kernel", "group_size"
)
MIXERS = (
    layout.EMBEDDING,
    *layout.HEAD,
    layout.Tensors({"blk.attn_norm.weight": "hidden_size"}),
    layout.Tensors(layout.ATTENTION.shapes, is_kind("full_attention")),
    layout.Tensors(layout.BIASES_OF_QKV.shapes, is_kind("full_attention")),
    *mamba2.parts(MAMBA, "use_conv_bias", is_kind("linear_attention")),
)
RULES = (
    *mamba2.rules("group_size"),
    Rule(r"^(?:model|backbone)\.embeddings\.weight$", (Part("token_embd.weight"),)),
    Rule(r"^(?:model|backbone)\.norm_f\.weight$", (Part("output_norm.weight"),)),
    Rule(r"^(?:model|backbone)\.layers\.(\d+)\.norm\.weight$", (Part(r"blk.\1.attn_norm.weight"),)),
    *(
        Rule(
            rf"^(?:model|backbone)\.layers\.(\d+)\.mixer\.{letter}_proj\.(weight|bias)$",
            (Part(rf"blk.\1.attn_{letter}.\2", rows=rows),),
        )
        for letter, rows in (
            ("q", rope_pairs("num_attention_heads")),
            ("k", rope_pairs("num_key_value_heads")),
            ("v", None),
        )
    ),
    Rule(
        r"^(?:model|backbone)\.layers\.(\d+)\.mixer\.o_proj\.weight$", (Part(r"blk.\1.attn_output.weight"),)
    ),
    Rule(
        r"^(?:model|backbone)\.layers\.(\d+)\.mixer\.(up|down)_proj\.weight$",
        (Part(r"blk.\1.ffn_\2.weight"),),
    ),
)
# The state of Mamba, behind the settings of the whole model
MAMBA_KEYS = (
    Key(("conv_kernel", "mamba_d_conv"), "ssm.conv_kernel", needed=True),
    Key("ssm_state_size", "ssm.state_size", needed=True),
    Key(("n_groups", "mamba_n_groups"), "ssm.group_count", needed=True),
    keys.written("ssm.inner_size", lambda config: config["inner_size"]),
    Key("mamba_num_heads", "ssm.time_step_rank", needed=True),
)
FIRST_KEYS = (
    keys.Rows(keys.BLOCKS.write),
    keys.CONTEXT,
    keys.WIDTH,
    keys.Rows(keys.INNER.write),
    keys.HEADS,
)
NORM = keys.written("attention.layer_norm_rms_epsilon", _norm, FLOAT32)
OTHER_NORM = Key(("layer_norm_epsilon", "layer_norm_eps"), "attention.layer_norm_epsilon", FLOAT32)
LAST_KEYS = (
    keys.FILE_TYPE,
    keys.VOCABULARY_SIZE,
    keys.written("rope.dimension_count", keys.head_dim),
    *MAMBA_KEYS,
)
BEHIND = (
    keys.written("rope.scaling.finetuned", lambda config: False, keys.BOOL),
    mamba2.LONG_CONTEXT,
    keys.HEAD_SIZES,
)
DEFAULTS = {
    "conv_kernel": 4,
    "head_dim": lambda config: config.get("attention_head_dim") or 128,
    "inner_size": mamba2.positive("mamba_num_heads", "mamba_head_dim"),
    "layer_types": kinds,
    "mamba_head_dim": 64,
    "mamba_num_heads": 128,
    "max_position_embeddings": 4096,
    "n_groups": 8,
    "num_hidden_layers": lambda config: len(kinds(config)),
    "num_key_value_heads": 8,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "group_size": mamba2.group_size("inner_size", "n_groups"),
}

FAMILY = Family(
    classes=CLASSES,
    arch=MODEL_ARCH.NEMOTRON_H,
    model_type="nemotron_h",
    tensors=(
        *MIXERS,
        layout.Tensors(
            {
                "blk.ffn_up.weight": "intermediate_size hidden_size",
                "blk.ffn_down.weight": "hidden_size intermediate_size",
            },
            is_kind("mlp"),
        ),
    ),
    keys=(
        *FIRST_KEYS,
        mamba2.kv_heads(is_kind("full_attention"), read_kinds("mlp")),
        NORM,
        OTHER_NORM,
        *LAST_KEYS,
        *BEHIND,
        keys.Rows(
            lengths("intermediate_size", "mlp"),
            lambda facts: {"intermediate_size": max(mamba2.of_layers(facts, "feed_forward_length"))},
        ),
    ),
    defaults=DEFAULTS,
    rules=RULES,
    vocabulary=tokenizer.bpe,
    takes=lambda raw: not has_experts(raw),
)
