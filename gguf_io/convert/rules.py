"""The vocabulary in which a family says how its Hugging Face tensors become GGUF tensors.

A `Rule` matches tensor names; each of its `Part`s is one GGUF tensor cut out of the matched tensor. What no
rule matches is taken over whole. The same rules serve both directions (see names.py), so a part may only
choose, reorder, transpose and add a constant: all of that can be undone.

The facts are those of llama.cpp's converter (`conversion/*.py: modify_tensors`), stated once as data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Config = Mapping[str, Any]
Index = slice | np.ndarray
Choice = Callable[[Config, int], Index]  # (config, number of rows) -> which rows, in which order


@dataclass(frozen=True)
class Part:
    """One GGUF tensor made of the tensor a rule matched.

    name: replaces the matched text, a template as for `re.Match.expand`; the result is looked up in gguf's
    TensorNameMap. rows, columns: chosen from every source matrix. matrices: config key that says into how
    many equal matrices the rows are divided (heads of a fused projection). transpose: after choosing.
    """

    name: str = r"\g<0>"
    rows: Choice | None = None
    columns: Choice | None = None
    matrices: str | None = None
    transpose: bool = False
    add: float = 0.0


@dataclass(frozen=True)
class Rule:
    """pattern: searched in the Hugging Face name. No parts: the tensor is left out of the GGUF.

    A group named `expert` makes the match one matrix of a stacked tensor. `scales` names (as a template) the
    tensor of block exponents that belongs to MXFP4 codes. `when` narrows the rule by config and match.
    `zero` marks tensors that may be left out only because every value is zero.
    """

    pattern: str
    parts: tuple[Part, ...] = ()
    scales: str | None = None
    when: Callable[[Config, re.Match[str]], bool] | None = None
    zero: bool = False


def rope_pairs(heads: str) -> Choice:
    """Rows of a Q or K projection: from two halves per head to the pairs that ggml's normal RoPE reads."""

    def choose(config: Config, n_rows: int) -> Index:
        n_heads = config.get(heads) or config["num_attention_heads"]
        return np.arange(n_rows).reshape(n_heads, 2, -1).swapaxes(1, 2).ravel()

    return choose


def half(which: int) -> Choice:
    """First (0) or second (1) half of the rows: gate and up of a fused `gate_up_proj`."""
    return lambda config, n: slice(which * (n // 2), (which + 1) * (n // 2))


def every_second(start: int) -> Choice:
    """Rows start, start + 2, …: gate and up of GPT-OSS, which interleaves them."""
    return lambda config, n: slice(start, n, 2)


def first(key: str) -> Choice:
    """The first config[key] rows; all of them when the config does not say."""
    return lambda config, n: slice(0, min(n, config.get(key) or n))


def head_part(begin: str | None, length: str) -> Choice:
    """config[length] rows of each head, from row config[begin] on."""

    def choose(config: Config, n_rows: int) -> Index:
        start = config[begin] if begin else 0
        return slice(start, start + config[length])

    return choose


# What every checkpoint may carry and llama.cpp has no use for: buffers, and the towers of multimodal models.
COMMON = (
    Rule(r"\.attention\.(masked_)?bias$|\.rotary_emb\.inv_freq$"),
    Rule(
        r"^(mlp|vit\.|vpm\.|merger\.|resampler\.)|visual\.|vision[._]|audio[._]|projector\.|image_newline|patch_embed"
    ),
)

INTERLEAVED_QK = (
    Rule(r"q_proj\.(weight|bias)$", (Part(rows=rope_pairs("num_attention_heads")),)),
    Rule(r"k_proj\.(weight|bias)$", (Part(rows=rope_pairs("num_key_value_heads")),)),
)

# Experts as they are stored one by one, and as newer checkpoints (and transformers 5 in memory) stack them.
STACKED_EXPERTS = (
    Rule(r"mlp\.experts\.(?P<expert>\d+)\.(\w+)_proj\.weight$", (Part(r"mlp.experts.\2_proj.weight"),)),
    Rule(r"mlp\.experts\.down_proj(\.weight)?$", (Part("mlp.experts.down_proj.weight"),)),
    Rule(
        r"mlp\.experts\.gate_up_proj(\.weight)?$",
        (
            Part("mlp.experts.gate_proj.weight", rows=half(0)),
            Part("mlp.experts.up_proj.weight", rows=half(1)),
        ),
    ),
)

MIXTRAL_EXPERTS = (
    Rule(
        r"^model\.(layers\.\d+)\.(?:block_sparse_moe|mlp)\.experts\.(?P<expert>\d+)\.(w\d)\.weight$",
        (Part(r"\1.feed_forward.experts.\3.weight"),),
    ),
    *STACKED_EXPERTS[1:],
)

NORM_PLUS_ONE = (Rule(r"norm\.weight$", (Part(add=1.0),)),)

# Rows behind the tokenizer's last token are padding of the embedding; llama.cpp expects none.
ONLY_KNOWN_TOKENS = (Rule(r"embed_tokens\.weight$", (Part(rows=first("tokenizer_size")),)),)


def tied_head_left_out(by_default: bool) -> tuple[Rule, ...]:
    """lm_head stored although it is the embedding; `by_default`: tied when config.json does not say."""
    return (
        Rule(
            r"^(model\.)?lm_head\.weight$",
            when=lambda config, match: bool(config.get("tie_word_embeddings", by_default)),
        ),
    )


# Dense layers of the shared-MLP variant use the same names for an ordinary feed-forward.
GRANITE_EXPERTS = (
    Rule(
        r"^model\.layers\.(\d+)\.block_sparse_moe\.(input_linear\.weight|experts\.gate_up_proj)$",
        (
            Part(r"blk.\1.ffn_gate_exps.weight", rows=half(0)),
            Part(r"blk.\1.ffn_up_exps.weight", rows=half(1)),
        ),
    ),
    Rule(
        r"^model\.layers\.(\d+)\.block_sparse_moe\.experts\.down_proj$",
        (Part(r"blk.\1.ffn_down_exps.weight"),),
    ),
    Rule(r"block_sparse_moe\.router\.weight$", (Part("block_sparse_moe.router.layer.weight"),)),
    Rule(
        r"^model\.layers\.(\d+)\.shared_mlp\.input_linear\.weight$",
        (
            Part(r"blk.\1.ffn_gate_shexp.weight", rows=half(0)),
            Part(r"blk.\1.ffn_up_shexp.weight", rows=half(1)),
        ),
        when=lambda config, match: bool(config.get("num_local_experts")),
    ),
    Rule(
        r"^model\.layers\.(\d+)\.shared_mlp\.input_linear\.weight$",
        (Part(r"blk.\1.ffn_gate.weight", rows=half(0)), Part(r"blk.\1.ffn_up.weight", rows=half(1))),
    ),
    Rule(
        r"^model\.layers\.(\d+)\.shared_mlp\.output_linear\.weight$",
        (Part(r"blk.\1.ffn_down.weight"),),
        when=lambda config, match: not config.get("num_local_experts"),
    ),
)

GPT_OSS = (
    Rule(r"sinks$", (Part("sinks.weight"),)),
    Rule(r"_scales$"),
    Rule(
        r"experts\.gate_up_proj_blocks$",
        (
            Part("experts.gate_proj.weight", rows=every_second(0)),
            Part("experts.up_proj.weight", rows=every_second(1)),
        ),
        scales="experts.gate_up_proj_scales",
    ),
    Rule(
        r"experts\.down_proj_blocks$",
        (Part("experts.down_proj.weight"),),
        scales="experts.down_proj_scales",
    ),
    Rule(
        r"experts\.gate_up_proj_bias$",
        (
            Part("experts.gate_proj.bias", columns=every_second(0)),
            Part("experts.up_proj.bias", columns=every_second(1)),
        ),
    ),
    Rule(r"experts\.down_proj_bias$", (Part("experts.down_proj.bias"),)),
    Rule(
        r"experts\.gate_up_proj$",
        (
            Part("experts.gate_proj.weight", columns=every_second(0), transpose=True),
            Part("experts.up_proj.weight", columns=every_second(1), transpose=True),
        ),
    ),
    Rule(r"experts\.down_proj$", (Part("experts.down_proj.weight", transpose=True),)),
)

DEEPSEEK = (
    *tied_head_left_out(by_default=False),
    # Layers behind the last one predict further tokens; llama.cpp does not run them.
    Rule(
        r"^model\.layers\.(\d+)\.",
        when=lambda config, match: int(match[1]) >= config["num_hidden_layers"],
    ),
    # Multi-head latent attention, absorbed: K and V parts of every head become matrices of their own.
    Rule(
        r"kv_b_proj\.weight$",
        (
            Part(
                "k_b_proj.weight",
                rows=head_part(None, "qk_nope_head_dim"),
                matrices="num_key_value_heads",
                transpose=True,
            ),
            Part(
                "v_b_proj.weight",
                rows=head_part("qk_nope_head_dim", "v_head_dim"),
                matrices="num_key_value_heads",
            ),
        ),
    ),
    *STACKED_EXPERTS,
)

# Cohere's runtime knows no biases.
ZERO_BIAS_LEFT_OUT = (Rule(r"\.bias$", zero=True),)
