"""Hunyuan 1 with experts (A13B): Hunyuan's attention, experts beside a shared one in every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import hunyuan_dense
from quantmill.gguf_io.convert.keys import need
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError


def _same(key: str) -> Any:
    """A number that config.json may hold once for each layer."""

    def value(config: Config) -> int:
        found = need(config, key)
        numbers = set(found if isinstance(found, list) else [found])
        if len(numbers) != 1:
            raise GGUFError(
                f"config.json: {key} differs between layers, which llama.cpp's model does not have"
            )
        return int(numbers.pop())

    return value


def _read(facts: Facts) -> Settings:
    return {"num_experts": facts.need("expert_count"), "moe_topk": facts.need("expert_used_count")}


_WHERE = r"^model\.layers\.(\d+)\.mlp\."

FAMILY = replace(
    hunyuan_dense.FAMILY,
    classes=("HunYuanMoEV1ForCausalLM",),
    arch=MODEL_ARCH.HUNYUAN_MOE,
    model_type="hunyuan_v1_moe",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.HEAD_NORMS,
        layout.Tensors(
            {
                **layout.expert_tensors("num_experts", "intermediate_size"),
                **layout.shared_expert("intermediate_size"),
            }
        ),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.Key("num_experts", "expert_count"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.Key("intermediate_size", "expert_shared_feed_forward_length"),
        keys.written("expert_feed_forward_length", _same("moe_intermediate_size")),
        keys.written("expert_used_count", _same("moe_topk")),
        keys.written("expert_shared_count", _same("num_shared_expert")),
        keys.Rows(hunyuan_dense.write_alpha(1000)),
        keys.Rows(read=_read),
    ),
    defaults={**hunyuan_dense.FAMILY.defaults, "moe_topk": 1, "num_experts": 1},
    rules=(
        *hunyuan_dense.FAMILY.rules,
        Rule(rf"{_WHERE}gate\.wg\.weight$", (Part(r"blk.\1.ffn_gate_inp.weight"),)),
        Rule(rf"{_WHERE}shared_mlp\.(gate|up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2_shexp.weight"),)),
        *rules.STACKED_EXPERTS,
    ),
    vocabulary=tokenizer.hunyuan_moe,
)
