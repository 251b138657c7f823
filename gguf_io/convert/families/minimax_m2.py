"""MiniMax M2."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.families.mixtral import EXPERTS
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule


def _rotated(config: Config) -> int:
    return config.get("rotary_dim") or int(
        config["head_dim"] * rope.of_full_attention(config).get("partial_rotary_factor", 1.0)
    )


FAMILY = Family(
    classes=("MiniMaxM2ForCausalLM",),
    arch=MODEL_ARCH.MINIMAXM2,
    model_type="minimax_m2",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors(
            {
                "blk.attn_q_norm.weight": "num_attention_heads*head_dim",
                "blk.attn_k_norm.weight": "num_key_value_heads*head_dim",
                **layout.expert_tensors("num_local_experts", "intermediate_size"),
                "blk.exp_probs_b.bias": "num_local_experts",
            }
        ),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_local_experts"),
        keys.GATE,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.Rows(Key("intermediate_size", "expert_feed_forward_length").write),
        keys.written("rope.dimension_count", _rotated),
    ),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_local_experts": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
    },
    rules=(
        # As transformers has them in memory, where all experts' layers are called mlp.
        Rule(r"\.mlp\.gate\.weight$", (Part(".block_sparse_moe.gate.weight"),)),
        Rule(r"\.mlp\.e_score_correction\.bias$", (Part(".block_sparse_moe.e_score_correction.bias"),)),
        *EXPERTS,
    ),
)
