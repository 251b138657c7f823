"""What llama-quantize reads from a tensor's name: its category, its layer, whether it may be quantized at all.

Source: src/llama-quant.cpp: tensor_get_category, tensor_allows_quantization; llama-model-loader.h:
weight_name_comparer. The tests are substring tests on the whole name, as there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OUTPUT = "output.weight"
TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

# In this order: the first hit decides, so `attn_qkv` is never taken for `attn_v`, `ffn_gate_up` is GATE.
_CATEGORIES = (
    ("attn_qkv.weight", "QKV"),
    ("attn_kv_b.weight", "KV_B"),
    ("attn_v.weight", "V"),
    ("attn_k.weight", "K"),
    ("attn_q.weight", "Q"),
    ("attn_output.weight", "ATTN_OUTPUT"),
    ("ffn_up", "UP"),
    ("ffn_gate", "GATE"),
    ("ffn_down", "DOWN"),
)
V_LIKE = frozenset({"V", "QKV", "KV_B"})

_RWKV_SMALL = "first w0 w1 w2 v0 v1 v2 a0 a1 a2 g1 g2 decay_w1 decay_w2 lerp_fused"
_NEVER = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(f"time_mix_{part}.weight" for part in _RWKV_SMALL.split()),
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_NEVER_WHOLE = ("position_embd.weight", "token_types.weight")
_NEVER_GLM5_NEXT = (
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    *(f"ssm_{part}.weight" for part in ("f_a", "f_b", "g_a", "g_b", "beta")),
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
)

_LAYER = re.compile(r"blk\.\s*([+-]?\d+)")  # what sscanf("blk.%d.") accepts


def category(name: str) -> str:
    """The kind of weight that the mixtures distinguish."""
    if name == OUTPUT:
        return "OUTPUT"
    if name in TOKEN_EMBEDDINGS:
        return "TOKEN_EMBD"
    return next((kind for part, kind in _CATEGORIES if part in name), "OTHER")


def layer_of(name: str) -> int | None:
    """The layer number at the start of the name; None for tensors outside the layers."""
    match = _LAYER.match(name)
    return int(match.group(1)) if match else None


def processing_order(name: str) -> tuple[int, bytes]:
    """Sort key: tensors outside the layers first, then layer by layer, by bytes of the name within.

    The counters of the mixtures and the order of tensors in the file follow it.
    """
    layer = layer_of(name)
    return (-1 if layer is None else layer, name.encode(errors="surrogateescape"))


def may_be_quantized(name: str, shape: Sequence[int], arch: str) -> bool:
    """Whether any option can change this tensor's type. `shape` in ggml order, trailing ones dropped.

    Norms, routers, position embeddings, small recurrent and vision tensors keep their type in every file.
    """
    if len(shape) < 2 or name in _NEVER_WHOLE:
        return False
    # The comparison there is `rfind("weight") == size - 6`, which a name of five characters without the
    # word also passes (npos == 5 - 6).
    if not name.endswith("weight") and len(name) != 5:
        return False
    never = _NEVER + _NEVER_GLM5_NEXT if arch == "glm5-next" else _NEVER
    return not any(part in name for part in never)
