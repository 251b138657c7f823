"""Types of tensors that no text comes to: those of layers that predict further tokens (NextN, MTP).

llama-imatrix does not run them, and `quantmill imatrix` does when told to (`--nextn`). Without importance
llama-quantize stops at the first whose type needs some. Here they take the nearest type that does not, and a warning
says so; `--no-fallback` refuses as llama-quantize does.
"""

from __future__ import annotations

import re
from collections.abc import Set

from quantmill.gguf_io.metadata import Metadata

# Types that need importance, or lose much without -> the nearest one that does not; all divide rows alike.
INSTEAD = {
    "IQ3_XXS": "Q3_K",
    **dict.fromkeys(("IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"), "Q2_K"),
}


class Unseen:
    """named: tensors that there is importance for; None: there is none at all, or no other type is allowed."""

    def __init__(self, metadata: Metadata, arch: str, file_type: str, named: Set[str] | None) -> None:
        n_nextn = metadata.number(f"{arch}.nextn_predict_layers")
        self._first = metadata.number(f"{arch}.block_count") - n_nextn
        self._named = named if n_nextn else None
        # llama-quantize wants importance for Q2_K in files of that name only
        self._instead = {**INSTEAD, "Q2_K": "Q3_K"} if file_type == "Q2_K_S" else INSTEAD
        self._replaced: list[str] = []

    def type(self, name: str, chosen: str) -> str:
        """The type of a tensor that was to be `chosen`."""
        layer = re.match(r"blk\.(\d+)\.", name)
        if self._named is None or layer is None or int(layer[1]) < self._first or name in self._named:
            return chosen
        if chosen in self._instead:
            self._replaced.append(name)
        return self._instead.get(chosen, chosen)

    def warnings(self) -> list[str]:
        if not self._replaced:
            return []
        more = f" and {len(self._replaced) - 1} like it" if len(self._replaced) > 1 else ""
        return [
            f"{self._replaced[0]}{more} predict further tokens and have no importance: a type that needs none is "
            "taken for them (quantmill imatrix --nextn collects it, --no-fallback refuses, --no-nextn leaves them out)"
        ]
