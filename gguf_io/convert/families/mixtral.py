"""Mixtral: Llama with experts."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.rules import Part, Rule

EXPERTS = (
    Rule(
        r"^model\.(layers\.\d+)\.(?:block_sparse_moe|mlp)\.experts\.(?P<expert>\d+)\.(w\d)\.weight$",
        (Part(r"\1.feed_forward.experts.\3.weight"),),
    ),
    *rules.STACKED_EXPERTS[1:],
)

FAMILY = Family(
    classes=("MixtralForCausalLM",),
    arch=MODEL_ARCH.LLAMA,
    model_type="mixtral",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.Tensors(layout.expert_tensors("num_local_experts", "intermediate_size")),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_local_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        rope.ROTATED,
    ),
    defaults={
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
    rules=rules.INTERLEAVED_QK + EXPERTS,
    vocabulary=tokenizer.llama,
    tables=rope.llama3,
    is_this=lambda facts: bool(facts.get("expert_count", 0)),
)
