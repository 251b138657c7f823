"""Granite 3 with experts, also with a shared one; without experts the shared one is an ordinary feed-forward."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.families import granite
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.rules import Part, Rule, half

# Dense layers of the shared-MLP variant use the same names for an ordinary feed-forward.
EXPERTS = (
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
FEED_FORWARD = (
    layout.Tensors(
        layout.expert_tensors("num_local_experts", "intermediate_size"),
        layout.experts_where("num_local_experts"),
    ),
    layout.Tensors(
        layout.shared_expert("shared_intermediate_size"),
        lambda config, layer: bool(
            config.get("num_local_experts") and config.get("shared_intermediate_size")
        ),
    ),
    layout.Tensors(
        {
            name: shape.replace("intermediate_size", "shared_intermediate_size")
            for name, shape in layout.FEED_FORWARD.items()
        },
        layout.no_experts_where("num_local_experts"),
    ),
)

FAMILY = Family(
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    arch=MODEL_ARCH.GRANITE_MOE,
    model_type="granitemoeshared",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        *FEED_FORWARD,
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_local_experts"),
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        granite.ROTATED,
        *granite.MULTIPLIERS,
        Key("shared_intermediate_size", "expert_shared_feed_forward_length", nonzero=True),
    ),
    defaults={**granite.DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2},
    rules=rules.INTERLEAVED_QK + EXPERTS,
    vocabulary=tokenizer.llama,
    tables=rope.llama3,
)
