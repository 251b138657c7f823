"""XLM-R as an embedding model (bge-m3, multilingual e5, Arctic Embed 2): BERT with a vocabulary of Unigram and
positions that begin behind the padding's.
"""

from __future__ import annotations

from dataclasses import replace

from quantmill.gguf_io.convert import keys, layout, pooling, unigram
from quantmill.gguf_io.convert.families import bert
from quantmill.gguf_io.convert.keys import FLOAT32, Key, need
from quantmill.gguf_io.convert.rules import Config, Index, Part, Rule
from quantmill.gguf_io.errors import GGUFError


def _check(config: Config) -> None:
    if config.get("lora_adaptations") or config["position_embedding_type"] == "rotary":
        raise GGUFError(
            "config.json: XLM-R with adapters and RoPE (Jina Embeddings 3) is not supported; convert it with "
            "llama.cpp's convert_hf_to_gguf.py and give quantmill the GGUF"
        )
    bert.FAMILY.check(config)


def _positions(config: Config) -> int:
    return need(config, "max_position_embeddings") - config["first_position"]


def _from_the_first(config: Config, n_rows: int) -> Index:
    return slice(min(config["first_position"], n_rows), n_rows)


_PLACES = "position_embd.weight"
FAMILY = replace(
    bert.FAMILY,
    classes=("XLMRobertaModel",),
    model_type="xlm-roberta",
    tensors=tuple(
        layout.Tensors({**group.shapes, _PLACES: "positions hidden_size"})
        if _PLACES in group.shapes
        else group
        for group in bert.FAMILY.tensors
    ),
    keys=(
        keys.BLOCKS,
        keys.written("context_length", _positions),
        keys.WIDTH,
        keys.INNER,
        keys.HEADS,
        Key("layer_norm_eps", "attention.layer_norm_epsilon", FLOAT32),
        keys.FILE_TYPE,
        keys.written("attention.causal", lambda config: False, keys.BOOL),
        pooling.POOLING,
    ),
    defaults={
        **bert.FAMILY.defaults,
        "first_position": lambda config: 1 + config["pad_token_id"],
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "positions": _positions,
        "type_vocab_size": 1,
    },
    rules=(
        Rule(
            r"^(?:roberta\.)?embeddings\.position_embeddings\.weight$",
            (Part(_PLACES, rows=_from_the_first),),
        ),
        *bert.FAMILY.rules,
    ),
    vocabulary=unigram.write,
    check=_check,
)
