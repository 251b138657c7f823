"""ModernBERT as an embedding model, without the head that guesses masked words."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH, PoolingType, RopeScalingType

from quantmill.gguf_io.convert import keys, layout, pooling, rope, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, STRING, UINT32, Item, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

_WHERE = r"^(?:model\.)?layers\.(\d+)\."
NAMES = {
    rf"{_WHERE}attn_norm": r"blk.\1.attn_norm",
    rf"{_WHERE}attn\.Wqkv": r"blk.\1.attn_qkv",
    rf"{_WHERE}attn\.Wo": r"blk.\1.attn_output",
    rf"{_WHERE}mlp_norm": r"blk.\1.ffn_norm",
    rf"{_WHERE}mlp\.Wi": r"blk.\1.ffn_up",
    rf"{_WHERE}mlp\.Wo": r"blk.\1.ffn_down",
    r"^(?:model\.)?embeddings\.tok_embeddings": "token_embd",
    r"^(?:model\.)?embeddings\.norm": "token_embd_norm",
    r"^(?:model\.)?final_norm": "output_norm",
}
POOLED = {"cls": PoolingType.CLS, "mean": PoolingType.MEAN}


def _write_pooled(config: Config) -> Iterable[Item]:
    way = config["classifier_pooling"]
    if way not in POOLED:
        raise GGUFError(f"config.json: classifier_pooling {way!r}; llama.cpp knows {', '.join(POOLED)}")
    yield "classifier.pooling_type", UINT32, int(POOLED[way])


FAMILY = Family(
    classes=("ModernBertModel",),
    arch=MODEL_ARCH.MODERN_BERT,
    model_type="modernbert",
    tensors=(
        layout.EMBEDDING,
        layout.Tensors({"token_embd_norm.weight": "hidden_size"}),
        layout.Tensors({"blk.attn_norm.weight": "hidden_size"}, lambda config, layer: layer > 0),
        layout.Tensors(
            {
                "blk.attn_qkv.weight": "3*hidden_size hidden_size",
                "blk.attn_output.weight": "hidden_size hidden_size",
                "blk.ffn_norm.weight": "hidden_size",
                # gate and up in one
                "blk.ffn_up.weight": "2*intermediate_size hidden_size",
                "blk.ffn_down.weight": "hidden_size intermediate_size",
            }
        ),
    ),
    keys=(
        *keys.SIZES[:-1],
        rope.rope_by_kind(),
        keys.RMS_NORM,
        Key("layer_norm_eps", "attention.layer_norm_epsilon", FLOAT32),
        keys.FILE_TYPE,
        keys.written("attention.causal", lambda config: False, keys.BOOL),
        pooling.POOLING,
        keys.Rows(_write_pooled),
        Key("local_attention", "attention.sliding_window"),
        Key("global_attn_every_n_layers", "attention.sliding_window_pattern"),
        keys.written("rope.scaling.type", lambda config: RopeScalingType.NONE.value, STRING),
        keys.VOCABULARY_SIZE,
        keys.written("hidden_activation", lambda config: config["hidden_activation"], STRING),
    ),
    defaults={
        "classifier_pooling": "cls",
        "hidden_activation": "gelu",
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "rope_theta": 160000.0,
        "tie_word_embeddings": True,
    },
    rules=tuple(
        Rule(rf"{pattern}\.(?P<kind>weight)$", (Part(rf"{name}.\g<kind>"),))
        for pattern, name in NAMES.items()
    ),
    vocabulary=tokenizer.modern_bert,
    runs=False,
)
