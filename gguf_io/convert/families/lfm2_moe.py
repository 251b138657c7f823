"""LFM2 with experts."""

from __future__ import annotations

from gguf import MODEL_ARCH, ExpertGatingFuncType

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.families import lfm2
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule, half


def _has_experts(config: Config, layer: int) -> bool:
    return layer >= config["num_dense_layers"]


EXPERTS = (
    Rule(r"feed_forward\.expert_bias$", (Part("feed_forward.expert_bias.bias"),)),
    Rule(
        r"^model\.(layers\.\d+)\.feed_forward\.experts\.(?P<expert>\d+)\.(w\d)\.weight$",
        (Part(r"\1.feed_forward.experts.\3.weight"),),
    ),
    Rule(
        r"^model\.(layers\.\d+)\.feed_forward\.experts\.gate_up_proj$",
        (
            Part(r"\1.feed_forward.experts.w1.weight", rows=half(0)),
            Part(r"\1.feed_forward.experts.w3.weight", rows=half(1)),
        ),
    ),
    Rule(
        r"^model\.(layers\.\d+)\.feed_forward\.experts\.down_proj$",
        (Part(r"\1.feed_forward.experts.w2.weight"),),
    ),
)

FAMILY = Family(
    classes=("Lfm2MoeForCausalLM",),
    arch=MODEL_ARCH.LFM2MOE,
    model_type="lfm2_moe",
    tensors=(
        *lfm2.MIXERS,
        layout.Tensors(layout.FEED_FORWARD, lambda config, layer: not _has_experts(config, layer)),
        layout.Tensors(
            {
                **layout.expert_tensors("num_experts", "moe_intermediate_size"),
                "blk.exp_probs_b.bias": "num_experts",
            },
            _has_experts,
        ),
    ),
    keys=(
        *keys.SIZES[:-1],
        lfm2.KV_HEADS,
        rope.ROPE,
        lfm2.NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("num_dense_layers", "leading_dense_block_count", needed=True),
        keys.written("expert_gating_func", lambda config: int(ExpertGatingFuncType.SIGMOID)),
        keys.VOCABULARY_SIZE,
        lfm2.CACHE,
    ),
    defaults={
        **lfm2.DEFAULTS,
        "layer_types": lfm2.all_attend,
        "moe_intermediate_size": 1792,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.0,
    },
    rules=(*lfm2.RULES, *EXPERTS),
)
