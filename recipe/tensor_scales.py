"""Factors of whole matrices, which models in NVFP4 may hold beside them as `blk.N.NAME.scale`.

A block's scale in NVFP4 is an eight-bit float of four binary digits, and fewer below 2^-6: weights of a usual size,
some hundredths, leave it few of its values. llama.cpp multiplies a matrix's products with the factor where the graph
of the architecture asks for it; where it does not, the factor is read and forgotten, and the model is another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from quantmill.gguf_io import TensorSpec
from quantmill.recipe.plan import PlanEntry

TYPE = "NVFP4"
# Whose graphs multiply with every factor of attention and feed-forward (src/models/*.cpp).
_ARCHITECTURES = frozenset({"llama", "mistral3", "qwen3", "qwen3moe"})
_MATRIX = re.compile(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down)(_exps)?)\.weight")


def scale_name(name: str) -> str:
    """Of the factor beside a tensor of weights."""
    return f"{name.removesuffix('weight')}scale"


def scales_of(
    specs: Sequence[TensorSpec], arch: str, entries: Sequence[PlanEntry], written: Collection[str]
) -> list[TensorSpec]:
    """The factors, as tensors of the model, of the matrices among `written` (names in the source) that become NVFP4.

    Not of a feed-forward matrix with a bias beside it, which llama.cpp would multiply too.
    """
    if arch not in _ARCHITECTURES:
        return []
    there = {spec.name: spec for spec in specs}
    biased = {name.removesuffix("bias") for name in there if ".ffn_" in name and name.endswith(".bias")}
    return [
        replace(
            there[entry.source],
            name=scale_name(entry.source),
            shape=(entry.n_matrices,),
            type="F32",
            original=False,
        )
        for entry in entries
        if entry.type == TYPE
        and entry.source in written
        and _MATRIX.fullmatch(entry.source)
        and entry.source.removesuffix("weight") not in biased
        and scale_name(entry.source) not in there
    ]
