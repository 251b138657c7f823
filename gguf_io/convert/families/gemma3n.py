"""Gemma 3n, its text part: four streams of states of which a layer computes one (AltUp), a low-rank path beside
attention (LAuReL), an embedding for each layer, layers that share keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families.gemma3 import FINAL_CAP
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, UINT32, Item, need
from quantmill.gguf_io.convert.mamba2 import of_layers
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

_N_STREAMS = 4  # llama.cpp knows no other number


def _deviations(share: float) -> float:
    """How many standard deviations above the mean a gate must lie for such a share of all to stay below; rounded to
    float32 as llama.cpp's converter does it in torch (Normal.icdf)."""
    if not 0 < share < 1:
        return math.inf if share >= 1 else -math.inf
    inner = float(np.float32(2) * np.float32(share) - np.float32(1))
    inverse = np.float32(NormalDist().inv_cdf((inner + 1) / 2) / math.sqrt(2))  # of the error function
    return float(inverse * np.float32(math.sqrt(2)))


def _shares(config: Config, layer: int) -> bool:
    return layer >= config["num_hidden_layers"] - config["num_kv_shared_layers"]


def _owns(config: Config, layer: int) -> bool:
    return not _shares(config, layer)


def _layer_types(config: Config) -> list[str]:
    """What the class fills in: every fifth layer attends to everything."""
    return keys.alternating(5)(config)


def _sparsity(config: Config) -> list[float]:
    """Likewise: of more than ten layers the first ten are sparse."""
    n_layers = config["num_hidden_layers"]
    return [0.95 if n_layers > 10 and layer < 10 else 0.0 for layer in range(n_layers)]


def _write(config: Config) -> Iterable[Item]:
    if config["altup_num_inputs"] != _N_STREAMS:
        raise GGUFError(
            f"config.json: altup_num_inputs is {config['altup_num_inputs']}; llama.cpp computes {_N_STREAMS} streams"
        )
    yield "altup.active_idx", UINT32, config["altup_active_idx"]
    yield "altup.num_inputs", UINT32, config["altup_num_inputs"]
    yield "embedding_length_per_layer_input", UINT32, config["hidden_size_per_layer_input"]
    yield "attention.shared_kv_layers", UINT32, config["num_kv_shared_layers"]
    yield (
        "activation_sparsity_scale",
        ARRAY,
        [_deviations(share) for share in need(config, "activation_sparsity_pattern")],
    )
    yield from keys.write_pattern(config)


def _read(facts: Facts) -> Settings:
    scales = list(facts.need("activation_sparsity_scale"))[: facts.n_layers]
    slides = [bool(one) for one in facts.need("attention.sliding_window_pattern")][: facts.n_layers]
    return {
        "altup_active_idx": facts.need("altup.active_idx"),
        "altup_num_inputs": facts.need("altup.num_inputs"),
        "hidden_size_per_layer_input": facts.need("embedding_length_per_layer_input"),
        "num_kv_shared_layers": facts.need("attention.shared_kv_layers"),
        "intermediate_size": of_layers(facts, "feed_forward_length"),
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
        "laurel_rank": facts.shapes["blk.0.laurel_l.weight"][1],
        "vocab_size_per_layer_input": facts.shapes["per_layer_token_embd.weight"][1],
        "activation_sparsity_pattern": [
            round(NormalDist().cdf(scale), 6) if math.isfinite(scale) else float(scale > 0)
            for scale in scales
        ],
    }


_WHERE = r"^model\.layers\.(\d+)\."
KEYS_AND_VALUES = {
    "blk.attn_k.weight": "num_key_value_heads*head_dim hidden_size",
    "blk.attn_v.weight": "num_key_value_heads*head_dim hidden_size",
    "blk.attn_k_norm.weight": "head_dim",
}

FAMILY = Family(
    classes=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    arch=MODEL_ARCH.GEMMA3N,
    model_type="gemma3n_text",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.NORMS_AFTER,
        layout.Tensors(
            {
                "altup_proj.weight": "n_others hidden_size hidden_size",
                "altup_unembd_proj.weight": "n_others hidden_size hidden_size",
                "per_layer_token_embd.weight": "vocab_size num_hidden_layers*hidden_size_per_layer_input",
                "per_layer_model_proj.weight": "num_hidden_layers*hidden_size_per_layer_input hidden_size",
                "per_layer_proj_norm.weight": "hidden_size_per_layer_input",
                "blk.attn_q.weight": "num_attention_heads*head_dim hidden_size",
                "blk.attn_q_norm.weight": "head_dim",
                "blk.attn_output.weight": "hidden_size num_attention_heads*head_dim",
                **layout.FEED_FORWARD,
                "blk.altup_correct_coef.weight": "altup_num_inputs altup_num_inputs",
                "blk.altup_correct_scale.weight": "hidden_size",
                "blk.altup_predict_coef.weight": "altup_num_inputs*altup_num_inputs altup_num_inputs",
                "blk.altup_router.weight": "altup_num_inputs hidden_size",
                "blk.altup_router_norm.weight": "hidden_size",
                "blk.laurel_l.weight": "laurel_rank hidden_size",
                "blk.laurel_r.weight": "hidden_size laurel_rank",
                "blk.laurel_post_norm.weight": "hidden_size",
                "blk.inp_gate.weight": "hidden_size_per_layer_input hidden_size",
                "blk.proj.weight": "hidden_size hidden_size_per_layer_input",
                "blk.post_norm.weight": "hidden_size",
            }
        ),
        layout.Tensors(KEYS_AND_VALUES, _owns),
        # Checkpoints hold what layers that share do not use, and llama.cpp wants it.
        layout.Tensors(layout.optional(KEYS_AND_VALUES), _shares),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        keys.written(
            "feed_forward_length",
            lambda config: [config["intermediate_size"]] * config["num_hidden_layers"],
            ARRAY,
        ),
        keys.HEADS,
        keys.KV_HEADS,
        rope.rope_by_kind(local_theta=10000.0),
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        FINAL_CAP,
        keys.WINDOW,
        keys.Rows(_write, _read),
    ),
    defaults={
        "activation_sparsity_pattern": _sparsity,
        "altup_active_idx": 0,
        "altup_num_inputs": 4,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_size_per_layer_input": 256,
        "laurel_rank": 64,
        "layer_types": _layer_types,
        "max_position_embeddings": 32768,
        "n_others": lambda config: config["altup_num_inputs"] - 1,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 15,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1e6,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
    },
    rules=(
        # Tokens of pictures and sounds have no rows of their own in the checkpoint.
        Rule(
            r"^model\.embed_tokens(_per_layer)?\.weight$",
            (Part(padded=("vocab_size_per_layer_input", "vocab_size")),),
        ),
        *(
            Rule(
                rf"^model\.altup_{theirs}projections\.(?P<expert>\d+)\.weight$",
                (Part(f"altup_{ours}proj.weight"),),
                count="n_others",
                order=order,
            )
            for order, (theirs, ours) in enumerate({"": "", "unembed_": "unembd_"}.items())
        ),
        Rule(rf"{_WHERE}altup\.correct_output_scale$", (Part(r"blk.\1.altup_correct_scale.weight"),)),
    ),
    vocabulary=tokenizer.gemma3,
)
