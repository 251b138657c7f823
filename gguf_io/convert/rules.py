"""The vocabulary in which a family says how its Hugging Face tensors become GGUF tensors.

A `Rule` matches tensor names; each of its `Part`s is one GGUF tensor cut out of the matched tensor. What no
rule matches is taken over whole. The same rules serve both directions (see names.py), so a part may only
choose, reorder, transpose and change values in a way that has an inverse. A family's own rules are in its file.

The facts are those of llama.cpp's converter (`conversion/*.py: modify_tensors`), stated once as data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Config = Mapping[str, Any]
Index = slice | np.ndarray
# (config, number of rows) -> which rows, in which order; None: they do not divide so
Choice = Callable[[Config, int], Index | None]
# (config, number of rows) -> factors of all rows or of each row; None: there are none
Factors = Callable[[Config, int], Sequence[float | np.ndarray] | None]


@dataclass(frozen=True)
class Values:
    """A change of every value of a vector (numpy or torch), and the way back."""

    there: Callable[[Any], Any]
    back: Callable[[Any], Any]


@dataclass(frozen=True)
class Part:
    """One GGUF tensor made of the tensor a rule matched.

    name: replaces the matched text, a template as for `re.Match.expand`; the result is looked up in gguf's
    TensorNameMap. rows, columns: chosen from every source matrix. matrices: config key that says into how
    many equal matrices the rows are divided (heads of a fused projection). transpose: after choosing. values: a
    change of each value, of vectors only. squeeze: dimensions of 1 are dropped first (a convolution's kernels).
    columns_of: makes a vector a matrix, of as many columns as this number or key of the configuration says. factors:
    what the rows of a matrix are multiplied with, one factor after the other; a model that runs has none. padded:
    where there are as many rows as the first key says, rows of zeros are put behind them up to the second's number.
    spread: each row is a matrix of its own in the GGUF (a convolution's kernels). indices: the key of how many things
    there are; the tensor holds numbers of such, whole, and stays so. product: another tensor has the same name, and the
    product of both vectors is wanted; a model that runs has none such.
    """

    name: str = r"\g<0>"
    rows: Choice | None = None
    columns: Choice | None = None
    matrices: str | None = None
    transpose: bool = False
    values: Values | None = None
    squeeze: bool = False
    columns_of: str | int | None = None
    factors: Factors | None = None
    padded: tuple[str, str] | None = None
    spread: bool = False
    indices: str | None = None
    product: bool = False


@dataclass(frozen=True)
class Rule:
    """pattern: searched in the Hugging Face name. No parts: the tensor is left out of the GGUF.

    A group named `expert` makes the match one matrix of a stacked tensor; `count`: the key of how many there are, if
    they are no experts. `when` narrows the rule by config and match.
    `zero` marks tensors that may be left out only because every value is zero. `order`: of the stacks of experts in
    one layer, where llama.cpp's converter has another order than that of their names. joined: the stack is one matrix
    of all rows.
    """

    pattern: str
    parts: tuple[Part, ...] = ()
    when: Callable[[Config, re.Match[str]], bool] | None = None
    zero: bool = False
    order: int = 0
    count: str | None = None
    joined: bool = False


def rope_pairs(heads: str) -> Choice:
    """Rows of a Q or K projection: from two halves per head to the pairs that ggml's normal RoPE reads."""

    def choose(config: Config, n_rows: int) -> Index | None:
        n_heads = config.get(heads) or config["num_attention_heads"]
        if n_rows % (2 * n_heads):
            return None
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


def ordered_experts(*projections: str) -> tuple[Rule, ...]:
    """As STACKED_EXPERTS, the stacks of a layer in this order."""
    one_by_one = (
        Rule(
            rf"mlp\.experts\.(?P<expert>\d+)\.{name}_proj\.weight$",
            (Part(f"mlp.experts.{name}_proj.weight"),),
            order=order,
        )
        for order, name in enumerate(projections)
    )
    return (*one_by_one, *STACKED_EXPERTS[1:])


PLUS_ONE = Values(lambda values: values + 1.0, lambda values: values - 1.0)
NORM_PLUS_ONE = (Rule(r"norm\.weight$", (Part(values=PLUS_ONE),)),)


# Layers behind the last one predict further tokens (NextN); config["nextn"] says how many are carried along.
LATER_LAYERS_LEFT_OUT = Rule(
    r"^model\.layers\.(\d+)\.",
    when=lambda config, match: int(match[1]) >= config["num_hidden_layers"] + config.get("nextn", 0),
)
MTP_LEFT_OUT = Rule(r"^(model\.)?mtp\.", when=lambda config, match: not config.get("nextn"))


def tied_head_left_out(by_default: bool) -> tuple[Rule, ...]:
    """lm_head stored although it is the embedding; `by_default`: tied when config.json does not say."""
    return (
        Rule(
            r"^(model\.)?lm_head\.weight$",
            when=lambda config, match: bool(config.get("tie_word_embeddings", by_default)),
        ),
    )
