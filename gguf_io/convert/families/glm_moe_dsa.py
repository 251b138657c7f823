"""GLM-5: latent attention over the tokens that an indexer chooses."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, nextn, rope, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import deepseek2
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, Item, Key, need
from quantmill.gguf_io.convert.rules import Config, Part, Rule

INDEXER = {
    "blk.indexer.k_norm.weight": "index_head_dim",
    "blk.indexer.k_norm.bias": "index_head_dim",
    "blk.indexer.proj.weight": "index_n_heads hidden_size",
    "blk.indexer.attn_k.weight": "index_head_dim hidden_size",
    "blk.indexer.attn_q_b.weight": "index_n_heads*index_head_dim q_lora_rank",
}
_WHERE = r"^model\.layers\.(\d+)\.self_attn\.indexer\."
INDEXER_RULES = (
    Rule(rf"{_WHERE}k_norm\.(weight|bias)$", (Part(r"blk.\1.indexer.k_norm.\2"),)),
    Rule(rf"{_WHERE}weights_proj\.weight$", (Part(r"blk.\1.indexer.proj.weight"),)),
    Rule(rf"{_WHERE}wk\.weight$", (Part(r"blk.\1.indexer.attn_k.weight"),)),
    Rule(rf"{_WHERE}wq_b\.weight$", (Part(r"blk.\1.indexer.attn_q_b.weight"),)),
)
RULES = (*deepseek2.RULES, *INDEXER_RULES)
INDEXER_KEYS = (
    Key("index_n_heads", "attention.indexer.head_count"),
    Key("index_head_dim", "attention.indexer.key_length"),
    Key("index_topk", "attention.indexer.top_k"),
)
BIAS = layout.Tensors({"blk.exp_probs_b.bias": "n_routed_experts"}, layout.behind_dense)

NEXTN = nextn.Nextn(
    "num_nextn_predict_layers",
    {
        **deepseek2.LATENT,
        **layout.NORMS_BEFORE.shapes,
        **layout.dense_then_experts("n_routed_experts", "n_shared_experts")[1].shapes,
        **{f"{name}?": shape for name, shape in INDEXER.items()},
    },
)


def chooses(config: Config, layer: int) -> bool:
    """Whether a layer has an indexer of its own."""
    kinds = config.get("indexer_types")
    return not kinds or kinds[layer] == "full"


def _rotated(config: Config) -> int:
    factor = rope.of_full_attention(config).get("partial_rotary_factor", 1.0)
    return int(need(config, "qk_rope_head_dim") * factor)


def types(config: Config) -> list[str]:
    """What the class fills in: a pattern of letters, or every so many layers from the offset on."""
    n_layers, pattern = config["num_hidden_layers"], config.get("index_topk_pattern")
    if isinstance(pattern, str):
        return ["full" if letter == "F" else "shared" for letter in pattern]
    if pattern is not None:
        return list(pattern)
    every, offset = max(config.get("index_topk_freq", 1), 1), config.get("index_skip_topk_offset", 2)
    return ["shared" if max(layer - offset + 1, 0) % every else "full" for layer in range(n_layers)]


def _write_types(config: Config) -> Iterable[Item]:
    if config.get("indexer_types") is not None:
        yield "attention.indexer.types", ARRAY, [kind == "full" for kind in config["indexer_types"]]


def _read_types(facts: Facts) -> Settings:
    types = facts.get("attention.indexer.types")
    n_layers = facts.n_layers
    if types is None:
        return {"indexer_types": ["full"] * n_layers}
    return {"indexer_types": ["full" if own else "shared" for own in list(types)[:n_layers]]}


TYPES = keys.Rows(_write_types, _read_types)

FAMILY = Family(
    classes=("GlmMoeDsaForCausalLM",),
    arch=MODEL_ARCH.GLM_DSA,
    model_type="glm_moe_dsa",
    tensors=(*deepseek2.TENSORS, BIAS, layout.Tensors(INDEXER, chooses)),
    keys=(
        *deepseek2.KEYS,
        keys.written("rope.dimension_count", _rotated),
        nextn.LAYERS,
        *INDEXER_KEYS,
        TYPES,
    ),
    defaults={
        "first_k_dense_replace": 3,
        "head_dim": lambda config: config["qk_rope_head_dim"],
        "index_head_dim": 128,
        "index_n_heads": 32,
        "index_topk": 2048,
        "indexer_types": types,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 64,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 256,
    },
    rules=RULES,
    vocabulary=tokenizer.glm,
    nextn=NEXTN,
)
