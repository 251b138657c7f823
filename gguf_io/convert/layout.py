"""Which tensors a model has and of what shape, as its configuration says: checked before a byte is converted.

A family names its GGUF tensors with their dimensions in Hugging Face order, rows before columns, each dimension in keys
of the configuration: products and sums of them and of numbers; a key may hold a list, a number for each layer. A "?"
behind a name: the tensor may be absent, but from all layers alike, and is where a key of its dimensions is null. The
facts are those of llama.cpp (`src/models/*.cpp: load_arch_tensors`), which refuses what differs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantmill.gguf_io.convert.keys import head_dim, need
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.view import Shape
from quantmill.gguf_io.errors import GGUFError

# (config, layer) -> whether a group of tensors is there
Where = Callable[[Config, int], bool]


@dataclass(frozen=True)
class Tensors:
    """shapes: GGUF name -> dimensions, a layer's with "blk." and no number. where: in which configurations and layers
    (0 for tensors of no layer)."""

    shapes: Mapping[str, str]
    where: Where | None = None


@dataclass(frozen=True)
class Expected:
    """keys: the dimensions as the family writes them. kind: the name without layer number, and the family's group."""

    shape: Shape
    keys: str
    optional: bool
    kind: tuple[str, int]

    def __str__(self) -> str:
        return f"{list(self.shape)} ({self.keys})"


def expected_tensors(tensors: Sequence[Tensors], config: Config) -> dict[str, Expected]:
    """GGUF name -> what is expected of it. Raises GGUFError when a key that a shape needs is missing."""
    found: dict[str, Expected] = {}
    for place, group in enumerate(tensors):
        found |= of_layers(group, config, place, range(config["num_hidden_layers"]))
    return found


def of_layers(group: Tensors, config: Config, place: int, layers: Sequence[int]) -> dict[str, Expected]:
    """The tensors of one group, in these layers and in none. place: the group's number."""
    found: dict[str, Expected] = {}
    for entry, dimensions in group.shapes.items():
        name, optional = entry.removesuffix("?"), entry.endswith("?")
        of_layer = name.startswith("blk.")
        for i in layers if of_layer else (0,):
            there = group.where is None or group.where(config, i)
            if there and not (optional and _has_none(config, dimensions)):
                one = _expected(config, dimensions, optional, (name, place), i)
                found[f"blk.{i}.{name[4:]}" if of_layer else name] = one
    return found


def check(
    expected: Mapping[str, Expected],
    found: Mapping[str, tuple[str, Shape]],
    layers: range,
    usual_name: Callable[[str], str | None],
) -> None:
    """Raises GGUFError for a tensor that is missing, too many or of another shape. For messages: found: GGUF name ->
    what it is made of, and its shape; usual_name: what Hugging Face models mostly call a GGUF tensor."""
    for name, (source, shape) in found.items():
        if name not in expected:
            raise GGUFError(f"{source}: llama.cpp's model of this architecture has no tensor {name}")
        if shape != expected[name].shape:
            raise GGUFError(f"{source}: has shape {list(shape)}, config.json asks for {expected[name]}")
    there = {expected[name].kind for name in found}
    missing = [
        name
        for name, tensor in expected.items()
        if name not in found and not (tensor.optional and tensor.kind not in there)
    ]
    if not missing:
        return
    for layer in layers:
        if not any(name.startswith(f"blk.{layer}.") for name in found):
            raise GGUFError(
                f"there are no tensors of layer {layer} (blk.{layer}.), config.json's num_hidden_layers is "
                f"{layers.stop}: "
                "the checkpoint is incomplete"
            )
    first = missing[0]
    others = f" ({len(missing) - 1} more are)" if len(missing) > 1 else ""
    origin = _as_in_other_layer(first, expected, found) or usual_name(first)
    raise GGUFError(
        f"{f'{origin} ({first})' if origin else first} is missing{others}, "
        f"config.json asks for {expected[first]}: the checkpoint is incomplete"
    )


def _as_in_other_layer(
    name: str, expected: Mapping[str, Expected], found: Mapping[str, tuple[str, Shape]]
) -> str | None:
    """What the checkpoint would call a missing tensor."""
    for other, (source, _) in found.items():
        if name.startswith("blk.") and expected[other].kind == expected[name].kind:
            return source.replace(f".{other.split('.')[1]}.", f".{name.split('.')[1]}.", 1)
    return None


def _expected(config: Config, dimensions: str, optional: bool, kind: tuple[str, int], layer: int) -> Expected:
    shape = tuple(size(config, dimension, layer) for dimension in dimensions.split())
    keys = ", ".join(dimensions.split()).replace("*", " × ").replace("+", " + ")
    return Expected(shape, keys, optional, kind)


def _has_none(config: Config, dimensions: str) -> bool:
    """Whether a key of the dimensions says that a model has no such thing."""
    return any(key in config and config[key] is None for key in re.split(r"[ *+]", dimensions))


def size(config: Config, dimension: str, layer: int = 0) -> int:
    """What one dimension comes to in a layer. Raises GGUFError when a key that it needs is missing."""
    total = 0
    for product in dimension.split("+"):
        factors = product.split("*")
        total += math.prod(
            int(factor) if factor.isdecimal() else _number(config, factor, layer) for factor in factors
        )
    return total


def _number(config: Config, key: str, layer: int) -> int:
    found = head_dim(config) if key == "head_dim" else need(config, key)
    return found[layer] if isinstance(found, list) else found


def experts_where(key: str) -> Callable[[Config, int], bool]:
    """All layers of a model with experts, of which config[key] is the number."""
    return lambda config, layer: bool(config.get(key))


def no_experts_where(key: str) -> Callable[[Config, int], bool]:
    return lambda config, layer: not config.get(key)


EMBEDDING = Tensors({"token_embd.weight": "vocab_size hidden_size", "output_norm.weight": "hidden_size"})
# The embedding under a second name may be stored, and llama.cpp takes it.
HEAD = (
    Tensors({"output.weight": "vocab_size hidden_size"}, lambda config, _: not config["tie_word_embeddings"]),
    Tensors({"output.weight?": "vocab_size hidden_size"}, lambda config, _: config["tie_word_embeddings"]),
)
ATTENTION = Tensors(
    {
        "blk.attn_q.weight": "num_attention_heads*head_dim hidden_size",
        "blk.attn_k.weight": "num_key_value_heads*head_dim hidden_size",
        "blk.attn_v.weight": "num_key_value_heads*head_dim hidden_size",
        "blk.attn_output.weight": "hidden_size num_attention_heads*head_dim",
    }
)
ATTENTION_BIASES = {
    "blk.attn_q.bias": "num_attention_heads*head_dim",
    "blk.attn_k.bias": "num_key_value_heads*head_dim",
    "blk.attn_v.bias": "num_key_value_heads*head_dim",
}
# llama.cpp takes them where they are (create_tensor_qkv).
BIASES_OF_QKV = Tensors({f"{name}?": shape for name, shape in ATTENTION_BIASES.items()})
HEAD_NORMS = Tensors({"blk.attn_q_norm.weight": "head_dim", "blk.attn_k_norm.weight": "head_dim"})
NORMS_BEFORE = Tensors({"blk.attn_norm.weight": "hidden_size", "blk.ffn_norm.weight": "hidden_size"})
NORMS_AFTER = Tensors(
    {"blk.post_attention_norm.weight": "hidden_size", "blk.post_ffw_norm.weight": "hidden_size"}
)
FEED_FORWARD = {
    "blk.ffn_gate.weight": "intermediate_size hidden_size",
    "blk.ffn_up.weight": "intermediate_size hidden_size",
    "blk.ffn_down.weight": "hidden_size intermediate_size",
}


def optional(shapes: dict[str, str]) -> dict[str, str]:
    """Tensors that may be missing."""
    return {f"{name}?": shape for name, shape in shapes.items()}


def expert_tensors(count: str, inner: str) -> dict[str, str]:
    """Router and stacks of experts. count, inner: keys of their number and of their inner size."""
    return {
        "blk.ffn_gate_inp.weight": f"{count} hidden_size",
        "blk.ffn_gate_exps.weight": f"{count} {inner} hidden_size",
        "blk.ffn_up_exps.weight": f"{count} {inner} hidden_size",
        "blk.ffn_down_exps.weight": f"{count} hidden_size {inner}",
    }


def shared_expert(inner: str) -> dict[str, str]:
    return {
        "blk.ffn_gate_shexp.weight": f"{inner} hidden_size",
        "blk.ffn_up_shexp.weight": f"{inner} hidden_size",
        "blk.ffn_down_shexp.weight": f"hidden_size {inner}",
    }


def behind_dense(config: Config, layer: int) -> bool:
    """Whether a layer has experts, where the first so many have none."""
    return layer >= (config["first_k_dense_replace"] or 0)


def before_experts(config: Config, layer: int) -> bool:
    return not behind_dense(config, layer)


def is_sparse(config: Config, layer: int) -> bool:
    """Whether a layer has experts, where mlp_layer_types says so of each."""
    return config["mlp_layer_types"][layer] != "dense"


def is_dense(config: Config, layer: int) -> bool:
    return not is_sparse(config, layer)


def dense_first(n_dense: int | str) -> Callable[[Config], list[str]]:
    """mlp_layer_types as classes fill it in: the first so many layers are dense. n_dense: a number or its key."""

    def kinds(config: Config) -> list[str]:
        first = config.get(n_dense) or 0 if isinstance(n_dense, str) else n_dense
        return ["dense" if layer < first else "sparse" for layer in range(config["num_hidden_layers"])]

    return kinds


def dense_then_experts(count: str, shared: str) -> tuple[Tensors, Tensors]:
    """Feed-forward parts of the first layers, then experts with shared ones and a bias of the choice.

    count, shared: keys of how many there are.
    """
    return (
        Tensors(FEED_FORWARD, lambda config, layer: not behind_dense(config, layer)),
        Tensors(
            {
                **expert_tensors(count, "moe_intermediate_size"),
                **shared_expert(f"{shared}*moe_intermediate_size"),
                "blk.exp_probs_b.bias": count,
            },
            behind_dense,
        ),
    )
