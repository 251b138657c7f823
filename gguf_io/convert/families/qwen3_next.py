"""Qwen3-Next: the gated delta net with its projections fused head by head, and experts."""

from __future__ import annotations

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.families import qwen3_5, qwen3_5_moe
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.mamba2 import DECAY
from quantmill.gguf_io.convert.rules import PLUS_ONE, Choice, Config, Index, Part, Rule


def _of_heads(*parts: int) -> Choice:
    """Rows of in_proj_qkvz, which holds query, key, values and gates (0 to 3) of one key head after the other: the
    parts in this order, each of all heads."""

    def choose(config: Config, n_rows: int) -> Index | None:
        n_heads, of_key = config["linear_num_key_heads"], config["linear_key_head_dim"]
        of_value = config["linear_num_value_heads"] // n_heads * config["linear_value_head_dim"]
        ends = np.cumsum([0, of_key, of_key, of_value, of_value])
        if n_rows != n_heads * ends[-1]:
            return None
        heads = np.arange(n_rows).reshape(n_heads, -1)
        return np.concatenate([heads[:, ends[part] : ends[part + 1]].ravel() for part in parts])

    return choose


RULES = (
    rules.MTP_LEFT_OUT,
    Rule(
        r"linear_attn\.in_proj_qkvz\.weight$",
        (
            Part("linear_attn.in_proj_qkv.weight", rows=_of_heads(0, 1, 2)),
            Part("linear_attn.in_proj_z.weight", rows=_of_heads(3)),
        ),
    ),
    Rule(r"linear_attn\.conv1d\.weight$", (Part(squeeze=True),)),
    Rule(r"linear_attn\.A_log$", (Part(values=DECAY),)),
    Rule(r"linear_attn\.dt_bias$", (Part("linear_attn.dt_proj.bias"),)),
    Rule(r"^(?!.*linear_attn\.norm).*norm\.weight$", (Part(values=PLUS_ONE),)),
    *rules.STACKED_EXPERTS,
)
DELTA_NET = {
    name: shape
    for name, shape in qwen3_5.DELTA_NET.items()
    if name not in ("blk.ssm_beta.weight", "blk.ssm_alpha.weight")
}

FAMILY = Family(
    classes=("Qwen3NextForCausalLM",),
    arch=MODEL_ARCH.QWEN3NEXT,
    model_type="qwen3_next",
    tensors=(
        *qwen3_5.ATTENTION,
        layout.Tensors(
            {**DELTA_NET, "blk.ssm_ba.weight": "2*linear_num_value_heads hidden_size"}, qwen3_5.is_recurrent
        ),
        layout.Tensors(qwen3_5_moe.EXPERTS),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        *qwen3_5.MIXER_KEYS,
    ),
    defaults={
        **qwen3_5.DEFAULTS,
        "moe_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
    },
    rules=RULES,
    fixed={"norm_topk_prob": True},
    nextn=qwen3_5.later(qwen3_5_moe.EXPERTS),
)
