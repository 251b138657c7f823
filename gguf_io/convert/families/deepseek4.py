"""DeepSeek V4: several streams of states that layers mix (hyper-connections), attention to a window and to compressed
tokens of which an indexer chooses, outputs projected group by group; the first layers choose experts by a table of the
vocabulary's tokens, the others by the square root of softplus.

Checkpoints have names of their own, experts in MXFP4 and the other matrices in FP8; transformers renames all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.deepseek4_names import RULES
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import glm5_next, glm_moe_dsa
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, BOOL, FLOAT32, UINT32, Item, Key, need
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

# How many tokens become one -> transformers' name of a layer that attends to such
KINDS = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
_SQRT_SOFTPLUS = 4  # expert_gating_func


def _compresses(ratio: int) -> layout.Where:
    return lambda config, layer: config["compress_ratios"][layer] == ratio


def _is_hashed(config: Config, layer: int) -> bool:
    return layer < config["num_hash_layers"]


def _ratios(config: Config) -> list[int]:
    kinds, n_layers = config.get("layer_types"), config["num_hidden_layers"]
    if kinds is None:
        return [128 if layer < 2 or layer % 2 == 0 else 4 for layer in range(n_layers)]
    ratios = {kind: ratio for ratio, kind in KINDS.items()}
    unknown = sorted({*kinds} - {*ratios})
    if unknown:
        raise GGUFError(f"config.json: layer_types has {unknown[0]!r}; known are {', '.join(ratios)}")
    return [ratios[kind] for kind in kinds]


def _n_hashed(config: Config) -> int:
    kinds = config.get("mlp_layer_types")
    return min(3, config["num_hidden_layers"]) if kinds is None else list(kinds).count("hash_moe")


def _n_rotated(config: Config) -> int:
    factor = config.get("partial_rotary_factor")
    return 64 if factor is None else int(config["head_dim"] * factor)


def _compressed_theta(config: Config) -> float:
    return (config.get("rope_parameters") or {}).get("compress", {}).get("rope_theta", 160000.0)


def _group_size(config: Config) -> int:
    """How many numbers of the heads' output each group of the projection takes."""
    width, groups = config["num_attention_heads"] * config["head_dim"], config["o_groups"]
    if type(groups) is not int or groups < 1 or width % groups:
        raise GGUFError(f"config.json: o_groups {groups!r} does not divide the heads' output, {width}")
    return width // groups


def _check(config: Config) -> None:
    ratios, n_layers = config["compress_ratios"], config["num_hidden_layers"]
    if not isinstance(ratios, list) or len(ratios) < n_layers or any(ratio not in KINDS for ratio in ratios):
        raise GGUFError(
            f"config.json: compress_ratios must be a list of {n_layers} layers, each 0, 4 or 128, not {ratios!r}"
        )
    keys.only(config, {"hc_mult": 4, "scoring_func": "sqrtsoftplus"})


def _write_rope(config: Config) -> Iterable[Item]:
    """Of the layers that compress, whose base is another key; transformers writes the two kinds apart."""
    given = config["rope_parameters"]
    if "compress" in given:
        scaling = {key: value for key, value in given["compress"].items() if key != "attention_factor"}
        given = {**scaling, "rope_theta": given.get("main", {}).get("rope_theta", config["rope_theta"])}
    return rope.write({**config, "rope_parameters": given})


def _read_rope(facts: Facts) -> Settings:
    """YaRN where a layer compresses, but without its factor of attention."""
    scaling = rope.read_scaling(facts)
    part = {"partial_rotary_factor": facts.need("rope.dimension_count") / facts.head_size}
    main = {"rope_type": "default", "rope_theta": facts.get("rope.freq_base", 10000.0)}
    compress = {"rope_type": "default", "rope_theta": facts.need("attention.compress_rope_freq_base")}
    factor = {"attention_factor": 1.0} if scaling else {}
    return {"rope_parameters": {"main": main | part, "compress": compress | scaling | factor | part}, **part}


def _read(facts: Facts) -> Settings:
    ratios = [int(ratio) for ratio in facts.need("attention.compress_ratios")][: facts.n_layers]
    if any(ratio not in KINDS for ratio in ratios):
        raise GGUFError(f"{facts.architecture}.attention.compress_ratios must be 0, 4 or 128, not {ratios}")
    n_hashed = facts.need("hash_layer_count")
    limits = facts.get("swiglu_clamp_exp")
    return {
        "layer_types": [KINDS[ratio] for ratio in ratios],
        "mlp_layer_types": ["hash_moe" if i < n_hashed else "moe" for i in range(facts.n_layers)],
        **({} if limits is None else {"swiglu_limit": float(limits[0])}),
    }


def _limits(config: Config) -> list[float]:
    return [float(config["swiglu_limit"])] * config["num_hidden_layers"]


def _compressor(which: str, ratio: int, size: str) -> dict[str, str]:
    """What makes one entry of so many tokens; of four, each entry takes from two such pieces of text."""
    width = f"2*{size}" if ratio == 4 else size
    return {
        f"blk.{which}_compressor_kv.weight": f"{width} hidden_size",
        f"blk.{which}_compressor_gate.weight": f"{width} hidden_size",
        f"blk.{which}_compressor_ape.weight": f"{ratio} {width}",
        f"blk.{which}_compressor_norm.weight": size,
    }


ATTENTION = {
    "blk.attn_sinks.weight": "num_attention_heads",
    "blk.attn_q_a.weight": "q_lora_rank hidden_size",
    "blk.attn_q_a_norm.weight": "q_lora_rank",
    "blk.attn_q_b.weight": "num_attention_heads*head_dim q_lora_rank",
    "blk.attn_kv.weight": "head_dim hidden_size",
    "blk.attn_kv_a_norm.weight": "head_dim",
    "blk.attn_output_a.weight": "o_groups*o_lora_rank o_group_size",
    "blk.attn_output_b.weight": "hidden_size o_groups*o_lora_rank",
}
INDEXER = {
    "blk.indexer.proj.weight": "index_n_heads hidden_size",
    "blk.indexer.attn_q_b.weight": "index_n_heads*index_head_dim q_lora_rank",
    **_compressor("indexer", 4, "index_head_dim"),
}
STREAMS_PUT_TOGETHER = {
    "output_hc_fn.weight": "hc_mult hc_mult*hidden_size",
    "output_hc_base.weight": "hc_mult",
    "output_hc_scale.weight": "1",
}

FAMILY = Family(
    classes=("DeepseekV4ForCausalLM",),
    arch="deepseek4",
    model_type="deepseek_v4",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(STREAMS_PUT_TOGETHER),
        layout.Tensors({**glm5_next.of_streams("attn"), **glm5_next.of_streams("ffn")}),
        layout.Tensors(ATTENTION),
        layout.Tensors({**_compressor("attn", 4, "head_dim"), **INDEXER}, _compresses(4)),
        layout.Tensors(_compressor("attn", 128, "head_dim"), _compresses(128)),
        layout.Tensors(
            {
                **layout.expert_tensors("n_routed_experts", "moe_intermediate_size"),
                **layout.shared_expert("n_shared_experts*moe_intermediate_size"),
                "blk.exp_probs_b_vl.bias?": "n_routed_experts",
            }
        ),
        layout.Tensors({"blk.ffn_gate_tid2eid.weight": "vocab_size num_experts_per_tok"}, _is_hashed),
        layout.Tensors(
            {"blk.exp_probs_b.bias": "n_routed_experts"}, lambda config, layer: not _is_hashed(config, layer)
        ),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        keys.INNER,
        keys.HEADS,
        keys.KV_HEADS,
        keys.Rows(_write_rope, _read_rope),
        keys.RMS_NORM,
        *keys.experts("n_routed_experts"),
        keys.written("expert_gating_func", lambda config: _SQRT_SOFTPLUS),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.written("rope.dimension_count", lambda config: config["qk_rope_head_dim"]),
        Key("q_lora_rank", "attention.q_lora_rank", needed=True),
        keys.WINDOW,
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("n_shared_experts", "expert_shared_count", needed=True),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        Key("norm_topk_prob", "expert_weights_norm", BOOL, needed=True),
        keys.written("swiglu_clamp_exp", _limits, ARRAY),
        keys.written("swiglu_clamp_shexp", _limits, ARRAY),
        *glm_moe_dsa.INDEXER_KEYS,
        Key("o_groups", "attention.output_group_count", needed=True),
        Key("o_lora_rank", "attention.output_lora_rank", needed=True),
        keys.written("attention.compress_ratios", lambda config: config["compress_ratios"], ARRAY),
        keys.written(
            "attention.compress_rope_freq_base", lambda config: config["compress_rope_theta"], FLOAT32
        ),
        Key("hc_mult", "hyper_connection.count", needed=True),
        Key("hc_sinkhorn_iters", "hyper_connection.sinkhorn_iterations", needed=True),
        Key("hc_eps", "hyper_connection.epsilon", FLOAT32, needed=True),
        keys.written("hash_layer_count", lambda config: config["num_hash_layers"], UINT32),
        keys.written("embedding_length_out", lambda config: config["hidden_size"] * need(config, "hc_mult")),
        keys.Rows(read=_read),
    ),
    defaults={
        "compress_ratios": _ratios,
        "compress_rope_theta": _compressed_theta,
        "hc_eps": 1e-6,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "head_dim": 512,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 512,
        "intermediate_size": None,
        "max_position_embeddings": 1048576,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 6,
        "num_hash_layers": _n_hashed,
        "num_key_value_heads": 1,
        "o_group_size": _group_size,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": _n_rotated,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": 128,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
    },
    rules=RULES,
    vocabulary=tokenizer.deepseek4,
    names=MODEL_ARCH.DEEPSEEK2,
    check=_check,
    as_stored=True,
)
