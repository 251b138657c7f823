"""MiMo V2.5, its text part: MiMo V2 with queries, keys and values in one matrix, which is published in FP8 and in
parts, one for each rank of those that trained it, with scales of its own.

transformers has no model of this class; so it is converted and quantized, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import numpy as np

from quantmill.gguf_io.convert import layout, nextn
from quantmill.gguf_io.convert.facts import Settings
from quantmill.gguf_io.convert.families import mimo_v2
from quantmill.gguf_io.convert.keys import head_dim, need
from quantmill.gguf_io.convert.rules import Config, Index, Part, Rule
from quantmill.gguf_io.safetensors import StoredTensor

_BLOCK = 128  # rows of a scale
_RANKS = (8, 4)  # of V2.5-Pro and V2.5
_NAME = ".self_attn.qkv_proj.weight"


def _ranks(stored: Mapping[str, StoredTensor]) -> Settings:
    """In how many parts the matrices lie: the scales of each part begin a block of their own."""
    pairs = [
        (stored[name].shape, stored[f"{name}_scale_inv"].shape)
        for name in stored
        if name.endswith(_NAME) and f"{name}_scale_inv" in stored
    ]
    fitting = [ranks for ranks in _RANKS if pairs and all(_fits(*pair, ranks) for pair in pairs)]
    return {"qkv_ranks": fitting[0] if fitting else 1}


def _fits(codes: tuple[int, ...], scales: tuple[int, ...], ranks: int) -> bool:
    if len(codes) != 2 or len(scales) != 2 or codes[0] % ranks:
        return False
    return scales[0] == ranks * -(-(codes[0] // ranks) // _BLOCK)


def unranked(config: Config, n_rows: int) -> Index | None:
    """Queries, keys and values of all ranks behind each other."""
    ranks, queries = config.get("qkv_ranks", 1), need(config, "num_attention_heads") * head_dim(config)
    if ranks == 1:
        return slice(0, n_rows)
    heads = (n_rows - queries) // (head_dim(config) + need(config, "v_head_dim"))
    sizes = (queries, heads * head_dim(config), heads * config["v_head_dim"])
    if sum(sizes) != n_rows or heads < 1 or any(size % ranks for size in sizes):
        return None
    ends = list(accumulate(size // ranks for size in sizes))
    parts = np.split(np.arange(n_rows).reshape(ranks, -1), ends[:-1], axis=1)
    return np.concatenate([part.ravel() for part in parts])


def _attention(kv_heads: str) -> dict[str, str]:
    return {
        "blk.attn_qkv.weight": f"num_attention_heads*head_dim+{kv_heads}*head_dim+{kv_heads}*v_head_dim hidden_size",
        "blk.attn_output.weight": "hidden_size num_attention_heads*v_head_dim",
    }


FAMILY = replace(
    mimo_v2.FAMILY,
    classes=("MiMoV2ForCausalLM",),
    model_type="mimo_v2",
    tensors=(
        *(group for group in mimo_v2.FAMILY.tensors if "blk.attn_q.weight" not in group.shapes),
        layout.Tensors(_attention("kv_heads")),
    ),
    rules=(
        Rule(r"^(?:speech_embeddings|audio_encoder)\."),
        Rule(
            r"^model\.layers\.(\d+)\.self_attn\.qkv_proj\.weight$",
            (Part(r"blk.\1.attn_qkv.weight", rows=unranked),),
        ),
        *mimo_v2.FAMILY.rules,
    ),
    of_stored=_ranks,
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {
            **layout.NORMS_BEFORE.shapes,
            **_attention("sliding_heads"),
            "blk.attn_sinks.weight?": "num_attention_heads",
            **layout.FEED_FORWARD,
        },
        final="layer_output_norm",
    ),
    runs=False,
)
