"""Hunyuan 4: several streams of states that layers read and write by weights of their own (hyper-connections), gated
latent attention with sinks over the tokens that an indexer chooses, experts chosen by sigmoid.

RoPE turns pairs of neighbours in llama.cpp and halves in transformers, on the same weights; so it is converted and
quantized, not run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gguf import MODEL_ARCH, ExpertGatingFuncType

from quantmill.gguf_io.convert import keys, layout, rules
from quantmill.gguf_io.convert.families import deepseek2, glm_moe_dsa
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, Item, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

_SPARSE = ("sparse_attention", "deepseek_sparse_attention")


def _indexer_types(config: Config) -> list[str] | None:
    """None: no layer has an indexer. Older checkpoints say it by layer_types, and each such layer has its own."""
    kinds = config.get("layer_types") or []
    if not any(kind in _SPARSE for kind in kinds):
        return None
    return ["full" if kind in _SPARSE else "shared" for kind in kinds[: config["num_hidden_layers"]]]


def _check(config: Config) -> None:
    kinds, n_layers = config.get("indexer_types"), config["num_hidden_layers"]
    if kinds is not None and (len(kinds) < n_layers or {*kinds[:n_layers]} - {"full", "shared"}):
        raise GGUFError(
            f"config.json: indexer_types must be full or shared for each of {n_layers} layers, not {kinds}"
        )
    if kinds and kinds[0] != "full" and "full" in kinds:
        raise GGUFError("config.json: indexer_types: the first layer shares, but none is before it")
    mlp = config["mlp_layer_types"][:n_layers]
    if mlp != sorted(mlp):
        raise GGUFError(
            "config.json: mlp_layer_types has a dense layer behind one with experts; llama.cpp has none"
        )


def _groups(config: Config) -> Iterable[Item]:
    if (config.get("n_group"), config.get("topk_group")) != (1, 1):
        for row in keys.EXPERT_GROUPS:
            yield from row.write(config)


def _has_indexer(config: Config, layer: int) -> bool:
    kinds = config.get("indexer_types") or ()
    return layer < len(kinds) and kinds[layer] == "full"


def _limits(config: Config) -> list[float] | None:
    limit = float(config.get("swiglu_limit") or 0)
    return [limit] * config["num_hidden_layers"] if limit > 0 else None


def _output(config: Config) -> tuple[str, ...]:
    return ("output.weight",) if config.get("enable_lm_head_fp32") else ()


def _write_indexer(config: Config) -> Iterable[Item]:
    if config.get("indexer_types") is not None:
        for row in glm_moe_dsa.INDEXER_KEYS:
            yield from row.write(config)
        n_layers = config["num_hidden_layers"]
        yield (
            "attention.indexer.types",
            ARRAY,
            [kind == "full" for kind in config["indexer_types"][:n_layers]],
        )


def _of_streams(where: str, n: str) -> dict[str, str]:
    """The weights by which streams are read and written. n: how many."""
    return {
        f"{where}_fn.weight": f"{n} hc_mult*hidden_size",
        f"{where}_base.weight": n,
    }


_WHERE = r"^model\.layers\.(\d+)\."
STREAMS = {
    **_of_streams("blk.hc_attn", "2*hc_mult"),
    "blk.hc_attn_scale.weight": "2",
    **_of_streams("blk.hc_ffn", "2*hc_mult"),
    "blk.hc_ffn_scale.weight": "2",
    **_of_streams("output_hc", "hc_mult"),
    "output_hc_scale.weight": "1",
}
RULES = (
    Rule(r"^model\.mtp_layers\."),
    *rules.tied_head_left_out(by_default=False),
    rules.LATER_LAYERS_LEFT_OUT,
    replace(
        deepseek2.LATENT_KEYS,
        parts=tuple(replace(part, matrices="num_attention_heads") for part in deepseek2.LATENT_KEYS.parts),
    ),
    *glm_moe_dsa.INDEXER_RULES,
    Rule(rf"{_WHERE}self_attn\.(?:learnable_sink_param|sinks)$", (Part(r"blk.\1.attn_sinks.weight"),)),
    Rule(rf"{_WHERE}self_attn\.(?:linear_gate|gate_proj)\.weight$", (Part(r"blk.\1.attn_gate.weight"),)),
    Rule(
        rf"{_WHERE}(?:hc_attn_layer\.hc_pre\.hc_|hc_pre\.hc_attn_layer\.hc_|attn_hc\.)(fn|base|scale)$",
        (Part(r"blk.\1.hc_attn_\2.weight"),),
    ),
    Rule(
        rf"{_WHERE}(?:hc_mlp_layer\.hc_pre\.hc_|hc_pre\.hc_mlp_layer\.hc_|ffn_hc\.)(fn|base|scale)$",
        (Part(r"blk.\1.hc_ffn_\2.weight"),),
    ),
    # As transformers saves them.
    Rule(rf"{_WHERE}mlp\.linear_gate\.weight$", (Part(r"blk.\1.ffn_gate.weight"),)),
    Rule(rf"{_WHERE}mlp\.shared_experts\.linear_gate\.weight$", (Part(r"blk.\1.ffn_gate_shexp.weight"),)),
    Rule(r"^model\.(?:hc_pre\.)?hc_head\.hc_(?:head_)?(fn|base|scale)$", (Part(r"output_hc_\1.weight"),)),
    *rules.STACKED_EXPERTS,
)

FAMILY = Family(
    classes=("HYV4ForCausalLM",),
    arch="hy_v4",
    model_type="hy_v4",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(
            {
                **deepseek2.LATENT,
                "blk.attn_gate.weight": "num_attention_heads*v_head_dim hidden_size",
                "blk.attn_sinks.weight": "num_attention_heads",
                **STREAMS,
            }
        ),
        layout.Tensors(glm_moe_dsa.INDEXER, _has_indexer),
        layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
        layout.Tensors(
            {
                **layout.expert_tensors("n_routed_experts", "moe_intermediate_size"),
                **layout.shared_expert("n_shared_experts*moe_intermediate_size"),
                "blk.exp_probs_b.bias?": "n_routed_experts",
            },
            layout.is_sparse,
        ),
    ),
    keys=(
        *deepseek2.KEYS[: deepseek2.KEYS.index(keys.EXPERT_GROUPS[0])],
        keys.Rows(_groups),
        *deepseek2.KEYS[deepseek2.KEYS.index(keys.EXPERT_GROUPS[1]) + 1 :],
        keys.written("expert_gating_func", lambda config: int(ExpertGatingFuncType.SIGMOID)),
        keys.written("swiglu_clamp_exp", _limits, ARRAY),
        Key("hc_mult", "hyper_connection.count"),
        Key("hc_eps", "hyper_connection.epsilon", FLOAT32),
        Key("hc_magnitude", "hyper_connection.magnitude", FLOAT32),
        keys.Rows(_write_indexer),
    ),
    defaults={
        "first_k_dense_replace": lambda config: (config.get("mlp_layer_types") or ["dense"]).count("dense"),
        "hc_eps": 1e-6,
        "hc_magnitude": 2.0,
        "hc_mult": 4,
        "head_dim": lambda config: config["qk_rope_head_dim"],
        "index_head_dim": 128,
        "index_n_heads": 16,
        "index_topk": 2048,
        "indexer_types": _indexer_types,
        "kv_lora_rank": 512,
        "max_position_embeddings": 262144,
        "mlp_layer_types": layout.dense_first("first_k_dense_replace"),
        "moe_intermediate_size": 768,
        "n_group": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.827,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 256,
    },
    rules=RULES,
    names=MODEL_ARCH.DEEPSEEK2,
    in_f32=_output,
    check=_check,
    runs=False,
)
