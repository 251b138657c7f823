"""Llama 4, the text part: experts in every so many layers, attention in chunks."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import UINT32, Item, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule, half

_WHERE = r"^model\.layers\.(\d+)\.feed_forward\."
RULES = (
    Rule(rf"{_WHERE}router\.weight$", (Part(r"blk.\1.ffn_gate_inp.weight"),)),
    Rule(
        rf"{_WHERE}experts\.gate_up_proj$",
        (
            Part(r"blk.\1.ffn_gate_exps.weight", columns=half(0), transpose=True),
            Part(r"blk.\1.ffn_up_exps.weight", columns=half(1), transpose=True),
        ),
    ),
    Rule(rf"{_WHERE}experts\.down_proj$", (Part(r"blk.\1.ffn_down_exps.weight", transpose=True),)),
    Rule(rf"{_WHERE}shared_expert\.(gate|up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2_shexp.weight"),)),
    Rule(rf"{_WHERE}(gate|up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2.weight"),)),
)
FEED_FORWARD = {
    name: shape.replace("intermediate_size", "intermediate_size_mlp")
    for name, shape in layout.FEED_FORWARD.items()
}


def _is_sparse(config: Config, layer: int) -> bool:
    step = config["interleave_moe_layer_step"]
    return step > 0 and (layer + 1) % step == 0


def _write_window(config: Config) -> Iterable[Item]:
    """0: no layer attends in chunks."""
    kinds = config.get("layer_types")
    if kinds and all(kind == "full_attention" for kind in kinds):
        yield "attention.sliding_window", UINT32, 0


FAMILY = Family(
    classes=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
    arch=MODEL_ARCH.LLAMA4,
    model_type="llama4_text",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(FEED_FORWARD, lambda config, layer: not _is_sparse(config, layer)),
        layout.Tensors(
            {
                **layout.expert_tensors("num_local_experts", "intermediate_size"),
                **layout.shared_expert("intermediate_size"),
            },
            _is_sparse,
        ),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        Key("intermediate_size_mlp", "feed_forward_length"),
        keys.HEADS,
        keys.KV_HEADS,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_local_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        rope.ROTATED,
        Key("interleave_moe_layer_step", "interleave_moe_layer_step"),
        Key("intermediate_size", "expert_feed_forward_length"),
        keys.Rows(_write_window),
    ),
    defaults={
        "head_dim": 128,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    rules=RULES,
    vocabulary=tokenizer.bpe,
    tables=rope.llama3,
    runs=False,
)
