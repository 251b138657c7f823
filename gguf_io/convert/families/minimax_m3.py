"""MiniMax M3, its text part: attention to blocks of tokens that an indexer chooses, experts beside a shared one behind
dense layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families.mixtral import EXPERTS
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key
from quantmill.gguf_io.convert.rules import PLUS_ONE, Config, Part, Rule, half
from quantmill.gguf_io.errors import GGUFError


def _sparse(key: str, usual: Any) -> Callable[[Config], Any]:
    """A setting of sparse attention, which checkpoints have in an object of its own."""

    def setting(config: Config) -> Any:
        found = config.get("sparse_attention_config") or {}
        if not isinstance(found, Mapping):
            raise GGUFError(f"config.json: sparse_attention_config must be an object, not {found!r}")
        return found.get(key, usual)

    return setting


def _mlp_layer_types(config: Config) -> list[str]:
    sparse = config.get("moe_layer_freq")
    if sparse is None:
        return ["sparse"] * config["num_hidden_layers"]
    if not isinstance(sparse, list) or len(sparse) < config["num_hidden_layers"]:
        raise GGUFError(f"config.json: moe_layer_freq must have a number for each layer, not {sparse!r}")
    kinds = ["sparse" if one else "dense" for one in sparse]
    if kinds != sorted(kinds):
        raise GGUFError(
            "config.json: moe_layer_freq has a dense layer behind one with experts; llama.cpp has none"
        )
    return kinds


def _shared_size(config: Config) -> int:
    """llama.cpp has shared experts of the size of the others."""
    return keys.need(config, "intermediate_size") * keys.need(config, "n_shared_experts")


def _read(facts: Facts) -> Settings:
    size, kinds = facts.need("expert_feed_forward_length"), keys.read_dense(facts)
    return {
        "intermediate_size": size,
        "shared_intermediate_size": size * facts.need("expert_shared_count"),
        "rotary_dim": facts.need("rope.dimension_count"),
        "layer_types": [
            "minimax_m3_sparse" if kind == "sparse" else "full_attention" for kind in kinds["mlp_layer_types"]
        ],
        **kinds,
    }


_WHERE = r"^model\.layers\.(\d+)\."
_MOE = rf"{_WHERE}(?:block_sparse_moe|mlp)\."
INDEXER = {
    "blk.indexer.q_proj.weight": "index_n_heads*index_head_dim hidden_size",
    "blk.indexer.k_proj.weight": "index_head_dim hidden_size",
    "blk.indexer.q_norm.weight": "index_head_dim",
    "blk.indexer.k_norm.weight": "index_head_dim",
}


def _of_indexers(config: Config) -> tuple[str, ...]:
    layers = range(config["num_hidden_layers"])
    return tuple(f"blk.{layer}.indexer.{which}_proj.weight" for layer in layers for which in "qk")


FAMILY = Family(
    # The last is transformers' name of the text part alone.
    classes=(
        "MiniMaxM3SparseForConditionalGeneration",
        "MiniMaxM3SparseForCausalLM",
        "MiniMaxM3VLForCausalLM",
    ),
    arch="minimax-m3",
    model_type="minimax_m3_vl_text",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.HEAD_NORMS,
        layout.Tensors(
            {
                name: shape.replace("intermediate_size", "dense_intermediate_size")
                for name, shape in layout.FEED_FORWARD.items()
            },
            layout.is_dense,
        ),
        layout.Tensors(
            {
                **layout.expert_tensors("num_local_experts", "intermediate_size"),
                **layout.shared_expert("shared_size"),
                "blk.exp_probs_b.bias": "num_local_experts",
                **INDEXER,
            },
            layout.is_sparse,
        ),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        Key("dense_intermediate_size", "feed_forward_length"),
        keys.HEADS,
        keys.KV_HEADS,
        rope.ROPE,
        keys.RMS_NORM,
        *keys.experts("num_local_experts"),
        keys.GATE,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.Rows(Key("intermediate_size", "expert_feed_forward_length").write),
        keys.Rows(Key("rotary_dim", "rope.dimension_count", needed=True).write),
        keys.Rows(Key("n_shared_experts", "expert_shared_count", needed=True).write),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        keys.written("expert_weights_norm", lambda config: True, BOOL),
        Key("index_n_heads", "attention.indexer.head_count"),
        Key("index_head_dim", "attention.indexer.key_length"),
        Key("index_topk_blocks", "attention.indexer.top_k"),
        Key("index_block_size", "attention.indexer.block_size"),
        Key("index_local_blocks", "attention.indexer.local_blocks"),
        keys.Rows(keys.LEADING_DENSE.write),
        keys.Rows(read=_read),
    ),
    defaults={
        "dense_intermediate_size": 12288,
        "head_dim": 128,
        "index_block_size": _sparse("sparse_block_size", 128),
        "index_head_dim": _sparse("sparse_index_dim", 128),
        "index_local_blocks": _sparse("sparse_local_block", 1),
        "index_n_heads": _sparse("sparse_num_index_heads", 4),
        "index_topk_blocks": _sparse("sparse_topk_blocks", 16),
        "max_position_embeddings": 524288,
        "mlp_layer_types": _mlp_layer_types,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
        "rotary_dim": 64,
        "routed_scaling_factor": 2.0,
        "scoring_func": "sigmoid",
        "shared_size": _shared_size,
        "tie_word_embeddings": False,
    },
    rules=(
        Rule(r"^(?:multi_modal_projector|patch_merge_mlp)\."),
        rules.MTP_LEFT_OUT,
        rules.LATER_LAYERS_LEFT_OUT,
        Rule(
            rf"{_WHERE}self_attn\.(?:index_|indexer\.)([qk])_proj\.weight$",
            (Part(r"blk.\1.indexer.\2_proj.weight"),),
        ),
        Rule(
            rf"{_WHERE}self_attn\.(?:index_|indexer\.)([qk])_norm\.weight$",
            (Part(r"blk.\1.indexer.\2_norm.weight", values=PLUS_ONE),),
        ),
        *rules.NORM_PLUS_ONE,
        Rule(rf"{_MOE}gate\.weight$", (Part(r"blk.\1.ffn_gate_inp.weight"),)),
        Rule(rf"{_MOE}(?:gate\.)?e_score_correction\.bias$", (Part(r"blk.\1.exp_probs_b.bias"),)),
        Rule(
            rf"{_MOE}shared_experts\.(gate|up|down)_proj\.weight$",
            (Part(r"blk.\1.ffn_\2_shexp.weight"),),
        ),
        # As transformers has them in memory, gate and up in one.
        Rule(
            rf"{_MOE}shared_experts\.gate_up_proj\.weight$",
            tuple(
                Part(rf"blk.\1.ffn_{which}_shexp.weight", rows=half(i))
                for i, which in enumerate(("gate", "up"))
            ),
        ),
        Rule(
            rf"{_WHERE}mlp\.gate_up_proj\.weight$",
            tuple(
                Part(rf"blk.\1.ffn_{which}.weight", rows=half(i)) for i, which in enumerate(("gate", "up"))
            ),
        ),
        *EXPERTS,
    ),
    names=MODEL_ARCH.EXAONE_MOE,
    in_f32=_of_indexers,
)
