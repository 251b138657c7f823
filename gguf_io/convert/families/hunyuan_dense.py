"""Hunyuan 1, dense: Llama with norms of heads behind RoPE, whose base grows with the context."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gguf import MODEL_ARCH, RopeScalingType

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, STRING, UINT32, Item
from quantmill.gguf_io.convert.rules import Config, Part, Rule

LONG = 256 * 1024  # tokens for which alpha was chosen
SAID = (32 * 1024, LONG)


def write_alpha(usual: int) -> Callable[[Config], Iterable[Item]]:
    """A RoPE that is called dynamic, but has a base that alpha stretches once and for all. usual: alpha, where
    config.json has none."""

    def write(config: Config) -> Iterable[Item]:
        settings = rope.of_full_attention(config)
        if settings["rope_type"] not in ("dynamic", "xdrope"):
            return
        size = keys.head_dim(config)
        base = settings.get("rope_theta", 10000.0) * settings.get("alpha", usual) ** (size / (size - 2))
        yield "rope.freq_base", FLOAT32, base
        yield "rope.scaling.type", STRING, RopeScalingType.NONE.value
        yield "rope.scaling.factor", FLOAT32, 1
        # What config.json says of the context is wrong where it is one of these; llama.cpp's converter takes no other.
        if settings["rope_type"] == "dynamic" and config["max_position_embeddings"] in SAID:
            yield "rope.scaling.original_context_length", UINT32, LONG
            yield "context_length", UINT32, LONG

    return write


_WHERE = r"^model\.layers\.(\d+)\.self_attn\."

FAMILY = Family(
    classes=("HunYuanDenseV1ForCausalLM",),
    arch=MODEL_ARCH.HUNYUAN_DENSE,
    model_type="hunyuan_v1_dense",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.Rows(write_alpha(50)),
    ),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    rules=(
        *rules.tied_head_left_out(False),
        Rule(rf"{_WHERE}query_layernorm\.weight$", (Part(r"blk.\1.attn_q_norm.weight"),)),
        Rule(rf"{_WHERE}key_layernorm\.weight$", (Part(r"blk.\1.attn_k_norm.weight"),)),
    ),
    vocabulary=tokenizer.hunyuan,
)
