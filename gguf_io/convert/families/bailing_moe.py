"""Ling 1 (Lite, Plus): experts behind dense layers, one projection for queries, keys and values. transformers has no
model of this class, so it is converted and quantized, not run.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Item, Key
from quantmill.gguf_io.convert.rules import Choice, Config, Index, Part, Rule
from quantmill.gguf_io.errors import GGUFError


def _part(which: str) -> Choice:
    """Rows of queries, keys or values of a projection that holds them one after the other; of the first two in the
    pairs that ggml's RoPE reads."""

    def choose(config: Config, n_rows: int) -> Index | None:
        size, n_heads = keys.head_dim(config), config["num_attention_heads"]
        counts = {"q": n_heads, "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
        if n_rows != size * sum(counts.values()) or size % 2:
            return None
        begin = size * sum(n for name, n in counts.items() if "qkv".index(name) < "qkv".index(which))
        rows = begin + np.arange(counts[which] * size)
        return rows if which == "v" else rows.reshape(counts[which], 2, -1).swapaxes(1, 2).ravel()

    return choose


def _no_normed_head(config: Config) -> Iterable[Item]:
    if config.get("norm_head"):
        raise GGUFError(
            "config.json: norm_head is set; quantmill does not divide the output by its norms. Convert the model with "
            "llama.cpp's convert_hf_to_gguf.py and give quantmill the GGUF"
        )
    return ()


def _rotated(config: Config) -> int:
    return keys.head_dim(config)


_WHERE = r"^model\.layers\.(\d+)\.attention\."

FAMILY = Family(
    classes=("BailingMoeForCausalLM",),
    arch=MODEL_ARCH.BAILINGMOE,
    model_type="bailing_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.Tensors(layout.FEED_FORWARD, layout.before_experts),
        layout.Tensors(
            {
                **layout.expert_tensors("num_experts", "moe_intermediate_size"),
                **layout.shared_expert("num_shared_experts*moe_intermediate_size"),
            },
            layout.behind_dense,
        ),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.written("rope.dimension_count", _rotated),
        Key("first_k_dense_replace", "leading_dense_block_count", needed=True),
        keys.VOCABULARY_SIZE,
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        keys.written("expert_weights_scale", lambda config: 1.0, FLOAT32),
        Key("num_shared_experts", "expert_shared_count", needed=True),
        Key("norm_topk_prob", "expert_weights_norm", BOOL, needed=True),
        keys.Rows(_no_normed_head),
    ),
    defaults={"rope_theta": 10000.0, "tie_word_embeddings": False},
    rules=(
        Rule(
            rf"{_WHERE}query_key_value\.weight$",
            tuple(Part(rf"blk.\1.attn_{which}.weight", rows=_part(which)) for which in "qkv"),
        ),
        Rule(rf"{_WHERE}dense\.weight$", (Part(r"blk.\1.attn_output.weight"),)),
        *rules.ordered_experts("down", "gate", "up"),
    ),
    runs=False,
)
