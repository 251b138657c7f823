"""gpt-oss: experts in MXFP4 as the checkpoint has them."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import Key
from quantmill.gguf_io.convert.rules import Part, Rule, every_second

EXPERTS = (
    Rule(r"sinks$", (Part("sinks.weight"),)),
    Rule(
        r"experts\.gate_up_proj_blocks$",
        (
            Part("experts.gate_proj.weight", rows=every_second(0)),
            Part("experts.up_proj.weight", rows=every_second(1)),
        ),
    ),
    Rule(r"experts\.down_proj_blocks$", (Part("experts.down_proj.weight"),)),
    Rule(
        r"experts\.gate_up_proj_bias$",
        (
            Part("experts.gate_proj.bias", columns=every_second(0)),
            Part("experts.up_proj.bias", columns=every_second(1)),
        ),
    ),
    Rule(r"experts\.down_proj_bias$", (Part("experts.down_proj.bias"),)),
    Rule(
        r"experts\.gate_up_proj$",
        (
            Part("experts.gate_proj.weight", columns=every_second(0), transpose=True),
            Part("experts.up_proj.weight", columns=every_second(1), transpose=True),
        ),
    ),
    Rule(r"experts\.down_proj$", (Part("experts.down_proj.weight", transpose=True),)),
)


def _inner(facts: Facts) -> Settings:
    length = facts.get("expert_feed_forward_length")
    return {} if length is None else {"intermediate_size": length}


FAMILY = Family(
    classes=("GptOssForCausalLM",),
    arch=MODEL_ARCH.GPT_OSS,
    model_type="gpt_oss",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.Tensors(
            {"blk.attn_norm.weight": "hidden_size", "blk.post_attention_norm.weight": "hidden_size"}
        ),
        layout.ATTENTION,
        layout.Tensors(
            {
                **layout.ATTENTION_BIASES,
                "blk.attn_output.bias": "hidden_size",
                "blk.attn_sinks.weight": "num_attention_heads",
            }
        ),
        layout.Tensors(
            {
                **layout.expert_tensors("num_local_experts", "intermediate_size"),
                "blk.ffn_gate_inp.bias": "num_local_experts",
                "blk.ffn_gate_exps.bias": "num_local_experts intermediate_size",
                "blk.ffn_up_exps.bias": "num_local_experts intermediate_size",
                "blk.ffn_down_exps.bias": "num_local_experts hidden_size",
            }
        ),
    ),
    keys=(
        *keys.SIZES,
        # The published models scale with unrounded YaRN limits, which GGUF has no key for.
        rope.rope_known(lambda facts: {"truncate": False}),
        keys.RMS_NORM,
        *keys.experts("num_local_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.WINDOW,
        keys.Rows(Key("intermediate_size", "expert_feed_forward_length").write, _inner),
        keys.layers_every(2),
    ),
    defaults={
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
        },
        "sliding_window": 128,
        "tie_word_embeddings": False,
    },
    rules=EXPERTS,
)
