"""Kimi-Linear: delta attention whose decay differs by channel (KDA), latent attention without RoPE in every fourth
layer, experts chosen by sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import deepseek2
from quantmill.gguf_io.convert.families.mixtral import EXPERTS
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, Item, Key, need
from quantmill.gguf_io.convert.mamba2 import DECAY, of_layers
from quantmill.gguf_io.convert.rules import Choice, Config, Index, Part, Rule
from quantmill.gguf_io.errors import GGUFError


def linear(config: Config) -> Mapping[str, Any]:
    """Settings of delta attention as checkpoints have them, in an object of their own."""
    found = config.get("linear_attn_config") or {}
    if not isinstance(found, Mapping):
        raise GGUFError(f"config.json: linear_attn_config must be an object, not {found!r}")
    return found


def of_linear(key: str, usual: int) -> Callable[[Config], int]:
    return lambda config: linear(config).get(key) or usual


def _layer_types(config: Config) -> list[str]:
    """Checkpoints list the layers of full attention, the first one being 1."""
    full = linear(config).get("full_attn_layers")
    if full is None:
        full = [layer + 1 for layer in range(1, config["num_hidden_layers"]) if layer % 4 == 0]
    if not isinstance(full, list):
        raise GGUFError(f"config.json: full_attn_layers must be a list of layers, not {full!r}")
    layers = range(1, config["num_hidden_layers"] + 1)
    return ["full_attention" if layer in full else "linear_attention" for layer in layers]


def _mlp_layer_types(config: Config) -> list[str]:
    first = config.get("first_k_dense_replace")
    return layout.dense_first(1 if first is None else first)(config)


def attends(config: Config, layer: int) -> bool:
    return config["layer_types"][layer] == "full_attention"


def is_linear(config: Config, layer: int) -> bool:
    return not attends(config, layer)


def third(which: int) -> Choice:
    """Rows of queries, keys or values (0 to 2) of the kernels that transformers holds as one tensor."""

    def choose(config: Config, n_rows: int) -> Index | None:
        return None if n_rows % 3 else slice(which * n_rows // 3, (which + 1) * n_rows // 3)

    return choose


def absorbed(config: Config) -> int:
    return need(config, "kv_lora_rank") + need(config, "qk_rope_head_dim")


def write_layers(config: Config) -> Iterable[Item]:
    """Absorbed latent attention has one head of keys and values; 0 says that a layer does not attend."""
    layers = range(config["num_hidden_layers"])
    later = [1] * config.get("nextn", 0)
    yield "attention.head_count_kv", ARRAY, [int(attends(config, layer)) for layer in layers] + later


def read_layers(facts: Facts) -> Settings:
    heads = of_layers(facts, "attention.head_count_kv")
    return {"layer_types": ["full_attention" if n else "linear_attention" for n in heads]}


def _read(facts: Facts) -> Settings:
    rotated = facts.need("rope.dimension_count")
    return {
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": facts.need("attention.key_length_mla") - rotated,
        "num_key_value_heads": facts.need("attention.head_count"),
        "linear_num_heads": facts.need("attention.head_count"),
        "q_lora_rank": facts.get("attention.q_lora_rank"),
        **keys.read_dense(facts),
    }


_WHERE = r"^model\.layers\.(\d+)\."
_HEADS = "linear_num_heads*linear_head_dim"
CONVOLUTIONS = {f"blk.ssm_conv1d_{which}.weight": f"{_HEADS} 1 linear_conv_kernel_dim" for which in "qkv"}
DELTA_ATTENTION = {
    "blk.attn_q.weight": f"{_HEADS} hidden_size",
    "blk.attn_k.weight": f"{_HEADS} hidden_size",
    "blk.attn_v.weight": f"{_HEADS} hidden_size",
    **CONVOLUTIONS,
    "blk.ssm_f_a.weight": "linear_head_dim hidden_size",
    "blk.ssm_f_b.weight": f"{_HEADS} linear_head_dim",
    "blk.ssm_beta.weight": "linear_num_heads hidden_size",
    "blk.ssm_a": "linear_num_heads 1",
    "blk.ssm_dt.bias": _HEADS,
    "blk.ssm_g_a.weight": "linear_head_dim hidden_size",
    "blk.ssm_g_b.weight": f"{_HEADS} linear_head_dim",
    "blk.ssm_norm.weight": "linear_head_dim",
    "blk.attn_output.weight": f"hidden_size {_HEADS}",
}
EXPERT_LAYERS = (
    layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
    layout.Tensors(
        {
            **layout.expert_tensors("num_experts", "moe_intermediate_size"),
            **layout.shared_expert("num_shared_experts*moe_intermediate_size"),
            "blk.exp_probs_b.bias": "num_experts",
        },
        layout.is_sparse,
    ),
)


def delta_rules(attention: str) -> tuple[Rule, ...]:
    """attention: what checkpoints call the module; transformers' own names of its parts are taken too."""
    where = rf"^model\.layers\.(\d+)\.(?:{attention}|self_attn)\."
    return (
        *(
            Rule(
                rf"{where}{which}_conv1d\.weight$",
                (Part(rf"blk.\1.ssm_conv1d_{which}.weight", squeeze=True, spread=True),),
            )
            for which in "qkv"
        ),
        Rule(
            rf"{where}conv1d\.weight$",
            tuple(
                Part(rf"blk.\1.ssm_conv1d_{which}.weight", rows=third(place), squeeze=True, spread=True)
                for place, which in enumerate("qkv")
            ),
        ),
        Rule(rf"{where}(?:forget_gate\.)?dt_bias$", (Part(r"blk.\1.ssm_dt.bias"),)),
    )


RULES = (
    rules.LATER_LAYERS_LEFT_OUT,
    *delta_rules("self_attn"),
    Rule(
        rf"{_WHERE}self_attn\.(?:forget_gate\.)?A_log$",
        (Part(r"blk.\1.ssm_a", values=DECAY, columns_of=1, squeeze=True),),
    ),
    Rule(rf"{_WHERE}self_attn\.forget_gate\.f_([ab])_proj\.weight$", (Part(r"blk.\1.ssm_f_\2.weight"),)),
    # As transformers has them in memory, where all experts' layers are called mlp.
    Rule(
        rf"{_WHERE}mlp\.(gate\.|shared_experts\.)",
        (Part(r"model.layers.\1.block_sparse_moe.\2"),),
    ),
    # As transformers saves them.
    Rule(rf"{_WHERE}block_sparse_moe\.(gate|up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2.weight"),)),
    deepseek2.LATENT_KEYS,
    *EXPERTS,
)

# Of layers with latent attention: from the states at once, or by way of fewer dimensions.
QUERY = {"blk.attn_q.weight": f"{deepseek2.HEADS} hidden_size"}
QUERIES = (
    layout.Tensors(QUERY, lambda config, layer: attends(config, layer) and not config.get("q_lora_rank")),
    layout.Tensors(
        deepseek2.QUERIES, lambda config, layer: attends(config, layer) and bool(config.get("q_lora_rank"))
    ),
)
FIRST_KEYS = (
    keys.BLOCKS,
    keys.CONTEXT,
    keys.WIDTH,
    keys.INNER,
    keys.HEADS,
    keys.Rows(write_layers, read_layers),
    keys.Rows(rope.write),
    keys.RMS_NORM,
    *keys.experts("num_experts"),
    *keys.EXPERT_GROUPS,
    keys.GATE,
    # The size of a key is that of the absorbed heads, which follows; of a value it stays what config.json says.
    keys.Rows(keys.HEAD_SIZES.write),
    keys.FILE_TYPE,
    keys.VOCABULARY_SIZE,
)

FAMILY = Family(
    classes=("KimiLinearForCausalLM",),
    arch=MODEL_ARCH.KIMI_LINEAR,
    model_type="kimi_linear",
    # The text part of Kimi K3 calls itself so, too.
    takes=lambda raw: raw.get("attn_res_block_size") is None,
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(DELTA_ATTENTION, is_linear),
        layout.Tensors(deepseek2.KEYS_AND_VALUES, attends),
        *QUERIES,
        *EXPERT_LAYERS,
    ),
    keys=(
        *FIRST_KEYS,
        Key("linear_conv_kernel_dim", "ssm.conv_kernel"),
        Key("linear_head_dim", "kda.head_dim"),
        Key("q_lora_rank", "attention.q_lora_rank"),
        deepseek2.RANK,
        keys.written("rope.dimension_count", lambda config: need(config, "qk_rope_head_dim")),
        keys.written("attention.key_length", absorbed),
        keys.written("attention.key_length_mla", deepseek2.long_keys),
        Key("v_head_dim", "attention.value_length_mla"),
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("num_shared_experts", "expert_shared_count", needed=True),
        keys.Rows(keys.LEADING_DENSE.write),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32, needed=True),
        keys.Rows(read=_read),
    ),
    defaults={
        "kv_lora_rank": 512,
        "layer_types": _layer_types,
        "linear_conv_kernel_dim": of_linear("short_conv_kernel_size", 4),
        "linear_head_dim": of_linear("head_dim", 128),
        "linear_num_heads": of_linear("num_heads", 32),
        "max_position_embeddings": lambda config: config.get("model_max_length") or 1048576,
        "mlp_layer_types": _mlp_layer_types,
        "moe_intermediate_size": 1024,
        "num_experts": 256,
        "num_experts_per_tok": lambda config: config.get("num_experts_per_token") or 8,
        "num_key_value_heads": 32,
        "num_shared_experts": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.446,
        "scoring_func": lambda config: config.get("moe_router_activation_func") or "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 128,
    },
    rules=RULES,
    vocabulary=tokenizer.kimi_linear,
)
