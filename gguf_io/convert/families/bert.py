"""BERT as an embedding model (bge, e5, MiniLM, …), without its pooling layer and the heads that guess words."""

from __future__ import annotations

from collections.abc import Mapping

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, pooling, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, Key
from quantmill.gguf_io.convert.rules import Part, Rule

# What llama.cpp computes, where config.json may say that a model is otherwise.
_ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
_LAYER = r"encoder\.layer\.(\d+)\."
NAMES = {
    r"embeddings\.word_embeddings": "token_embd",
    r"embeddings\.position_embeddings": "position_embd",
    r"embeddings\.token_type_embeddings": "token_types",
    r"embeddings\.LayerNorm": "token_embd_norm",
    rf"{_LAYER}attention\.self\.query": r"blk.\1.attn_q",
    rf"{_LAYER}attention\.self\.key": r"blk.\1.attn_k",
    rf"{_LAYER}attention\.self\.value": r"blk.\1.attn_v",
    rf"{_LAYER}attention\.output\.dense": r"blk.\1.attn_output",
    rf"{_LAYER}attention\.output\.LayerNorm": r"blk.\1.attn_output_norm",
    rf"{_LAYER}intermediate\.dense": r"blk.\1.ffn_up",
    rf"{_LAYER}output\.dense": r"blk.\1.ffn_down",
    rf"{_LAYER}output\.LayerNorm": r"blk.\1.layer_output_norm",
}
NOT_OF_EMBEDDINGS = Rule(r"^(?:(?:bert|roberta)\.)?(?:embeddings\.position_ids$|pooler\.|cls\.)")


def renamed(names: Mapping[str, str]) -> tuple[Rule, ...]:
    """names: of modules, without what is before and behind. Older checkpoints call a norm's numbers gamma and beta."""
    return tuple(
        Rule(rf"^(?:(?:bert|roberta)\.)?{module}\.(?:{kind})$", (Part(f"{name}.{ending}"),))
        for module, name in names.items()
        for kind, ending in (("weight|gamma", "weight"), ("bias|beta", "bias"))
    )


def with_biases(shapes: Mapping[str, str]) -> dict[str, str]:
    """Each matrix or norm and the bias of its rows."""
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape.split()[0]}
    return found


EMBEDDINGS = {
    "token_embd.weight": "vocab_size hidden_size",
    "token_types.weight": "type_vocab_size hidden_size",
    "token_embd_norm.weight": "hidden_size",
    "token_embd_norm.bias": "hidden_size",
}
NORMS = {"blk.attn_output_norm": "hidden_size", "blk.layer_output_norm": "hidden_size"}
KEYS = (
    *keys.SIZES[:-1],
    Key("layer_norm_eps", "attention.layer_norm_epsilon", FLOAT32),
    keys.FILE_TYPE,
    keys.written("attention.causal", lambda config: False, keys.BOOL),
    pooling.POOLING,
)

FAMILY = Family(
    classes=("BertModel",),
    arch=MODEL_ARCH.BERT,
    model_type="bert",
    tensors=(
        layout.Tensors({**EMBEDDINGS, "position_embd.weight": "max_position_embeddings hidden_size"}),
        layout.Tensors(
            with_biases(
                {
                    **{f"blk.attn_{which}": "hidden_size hidden_size" for which in ("q", "k", "v", "output")},
                    **NORMS,
                    "blk.ffn_up": "intermediate_size hidden_size",
                    "blk.ffn_down": "hidden_size intermediate_size",
                }
            )
        ),
    ),
    keys=KEYS,
    defaults={
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "type_vocab_size": 2,
    },
    rules=(NOT_OF_EMBEDDINGS, *renamed(NAMES)),
    vocabulary=tokenizer.wordpiece,
    check=lambda config: keys.only(config, _ONLY),
    runs=False,
)
