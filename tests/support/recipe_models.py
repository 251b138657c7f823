"""Models for the tests of recipe: tensors without data and metadata, as a reader gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantmill.gguf_io import TensorSpec
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.recipe import ImportanceIndex

U32 = GGUFValueType.UINT32


def value(given: Any) -> MetaValue:
    """A MetaValue of the type that converters choose."""
    if isinstance(given, str):
        return MetaValue(GGUFValueType.STRING, given)
    if isinstance(given, bool):
        return MetaValue(GGUFValueType.BOOL, given)
    if isinstance(given, float):
        return MetaValue(GGUFValueType.FLOAT32, given)
    if isinstance(given, int):
        return MetaValue(U32, given)
    return MetaValue(GGUFValueType.ARRAY, list(given), value(given[0]).type)


def metadata(
    arch: str = "llama", n_layer: int = 16, heads: tuple[int, int] = (8, 8), **keys: Any
) -> Metadata:
    """`keys` stand under the architecture, with `__` for the dot."""
    pairs = {"general.architecture": arch, f"{arch}.block_count": n_layer}
    pairs |= {f"{arch}.attention.head_count": heads[0], f"{arch}.attention.head_count_kv": heads[1]}
    pairs |= {f"{arch}.{key.replace('__', '.')}": given for key, given in keys.items()}
    return Metadata({key: value(given) for key, given in pairs.items()})


def specs(
    shapes: Mapping[str, Sequence[int]], types: Mapping[str, str] | None = None
) -> tuple[TensorSpec, ...]:
    """Matrices F16, vectors F32, unless `types` says otherwise."""
    found = types or {}
    return tuple(
        TensorSpec(name, tuple(shape), found.get(name, "F32" if len(shape) == 1 else "F16"), 0, 32 * i)
        for i, (name, shape) in enumerate(shapes.items())
    )


def dense(n_layer: int = 16, n_cols: int = 512, output: bool = True) -> dict[str, Sequence[int]]:
    """Names and shapes of a llama."""
    shapes: dict[str, Sequence[int]] = {"token_embd.weight": (n_cols, 1000), "output_norm.weight": (n_cols,)}
    if output:
        shapes["output.weight"] = (n_cols, 1000)
    for layer in range(n_layer):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            shapes[f"blk.{layer}.{part}.weight"] = (n_cols, n_cols)
        shapes[f"blk.{layer}.attn_norm.weight"] = (n_cols,)
    return shapes


def experts(n_layer: int, n_expert: int, n_cols: int = 512) -> dict[str, Sequence[int]]:
    """The same with stacks of experts and their routers."""
    shapes = dense(n_layer, n_cols)
    for layer in range(n_layer):
        for part in ("ffn_gate", "ffn_up", "ffn_down"):
            del shapes[f"blk.{layer}.{part}.weight"]
            shapes[f"blk.{layer}.{part}_exps.weight"] = (n_cols, n_cols, n_expert)
        shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (n_cols, n_expert)
    return shapes


def importance(tensors: Sequence[TensorSpec], skip: Sequence[str] = ()) -> ImportanceIndex:
    """An entry of the right size for every matrix but `skip`."""
    sizes = {
        spec.name: spec.shape[0] * (spec.shape[2] if len(spec.shape) > 2 else 1)
        for spec in tensors
        if len(spec.shape) > 1 and spec.name not in skip
    }
    return ImportanceIndex("imatrix.gguf", sizes, ("calibration.txt",), 20)
