"""Nomic Embed, version 1: BERT with RoPE, gated feed-forward and no biases in its matrices."""

from __future__ import annotations

from collections.abc import Callable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.families import bert
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import need
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

# What llama.cpp computes, where config.json may say that a model is otherwise.
_ONLY = {
    "activation_function": "swiglu",
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}
_LAYER = r"encoder\.layers\.(\d+)\."
NAMES = {
    r"embeddings\.word_embeddings": "token_embd",
    r"embeddings\.token_type_embeddings": "token_types",
    "emb_ln": "token_embd_norm",
    rf"{_LAYER}attn\.Wqkv": r"blk.\1.attn_qkv",
    rf"{_LAYER}attn\.out_proj": r"blk.\1.attn_output",
    rf"{_LAYER}mlp\.fc11": r"blk.\1.ffn_up",
    rf"{_LAYER}mlp\.fc12": r"blk.\1.ffn_gate",
    rf"{_LAYER}mlp\.fc2": r"blk.\1.ffn_down",
    rf"{_LAYER}norm1": r"blk.\1.attn_output_norm",
    rf"{_LAYER}norm2": r"blk.\1.layer_output_norm",
}


def _named(key: str) -> Callable[[Config], int]:
    """Settings have GPT-2's names."""
    return lambda config: need(config, key)


def _context(config: Config) -> int:
    """Trained on 2048 tokens, whatever room for positions there is."""
    return min(need(config, "n_positions"), config.get("max_trained_positions", 2048))


def _check(config: Config) -> None:
    if config.get("moe_every_n_layers"):
        raise GGUFError("config.json: moe_every_n_layers: Nomic Embed with experts is not supported")
    keys.only(config, _ONLY)


FAMILY = Family(
    classes=("NomicBertModel",),
    arch=MODEL_ARCH.NOMIC_BERT,
    model_type="nomic_bert",
    tensors=(
        layout.Tensors(bert.EMBEDDINGS),
        layout.Tensors(
            {
                **bert.with_biases(bert.NORMS),
                "blk.attn_qkv.weight": "3*hidden_size hidden_size",
                "blk.attn_output.weight": "hidden_size hidden_size",
                "blk.ffn_up.weight": "intermediate_size hidden_size",
                "blk.ffn_gate.weight": "intermediate_size hidden_size",
                "blk.ffn_down.weight": "hidden_size intermediate_size",
            }
        ),
    ),
    keys=(
        *bert.KEYS[: len(keys.SIZES) - 1],
        keys.Rows(rope.write),
        *bert.KEYS[len(keys.SIZES) - 1 :],
    ),
    defaults={
        "hidden_size": _named("n_embd"),
        "intermediate_size": _named("n_inner"),
        "layer_norm_eps": lambda config: config.get("layer_norm_epsilon", 1e-12),
        "max_position_embeddings": _context,
        "num_attention_heads": _named("n_head"),
        "num_hidden_layers": _named("n_layer"),
        "rope_theta": 1000.0,
        "tie_word_embeddings": True,
        "type_vocab_size": 2,
    },
    rules=(bert.NOT_OF_EMBEDDINGS, *bert.renamed(NAMES)),
    vocabulary=tokenizer.wordpiece,
    check=_check,
    runs=False,
)
