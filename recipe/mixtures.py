"""The mixtures: which tensors a file type lifts above, or lowers below, its base type.

Source: src/llama-quant.cpp: llama_tensor_get_type_impl. What depends on the file type alone is a table; what
depends on the layer or the model is a method. All divisions are integer divisions, as there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from quantmill.qkernels.types import TYPES
from quantmill.recipe.errors import RecipeError
from quantmill.recipe.model import ModelFacts
from quantmill.recipe.names import V_LIKE, layer_of
from quantmill.recipe.presets import FILE_TYPES

# File types of two bits and fewer have rules of their own; two of them can afford IQ3_S where others take Q2_K.
_TINY = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
_TINY_BUT_RICH = frozenset({"IQ2_S", "IQ2_M"})

_EMBEDDING = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}
_VALUE = {"Q2_K": "Q3_K", "IQ3_M": "Q4_K", "Q3_K_L": "Q5_K"}
# Where four or more query heads share one value head, the value weights are small: lift them further.
_VALUE_SHARED = {
    **dict.fromkeys(("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "Q4_K"),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), "Q5_K"),
}
_KEY_OR_QUERY = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
_ATTENTION_OUTPUT = {
    **dict.fromkeys(("Q3_K_M", "IQ3_M"), "Q4_K"),
    "Q2_K": "Q3_K",
    "IQ3_XXS": "IQ3_S",
    "Q3_K_L": "Q5_K",
}
_ATTENTION_OUTPUT_8_EXPERTS = dict.fromkeys(
    (
        "Q2_K",
        "Q3_K_S",
        "Q3_K_M",
        "Q4_K_S",
        "Q4_K_M",
        "IQ3_XXS",
        "IQ3_XS",
        "IQ3_S",
        "IQ3_M",
        "IQ4_NL",
        "IQ4_XS",
    ),
    "Q5_K",
)
_DOWN = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
_DOWN_FALCON = {"Q2_K": "Q3_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q4_K"}
_DOWN_FIRST_EIGHTH = {"Q2_K_S": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_S": "Q5_K"}
_DOWN_FIRST_EIGHTH_PLAIN = {"IQ3_XXS": "Q4_K", "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}  # without importance
_DOWN_FIRST_EIGHTH_WEIGHTED = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}  # with importance


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth, and every third layer between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


class Mixture:
    """One pass over the tensors of a model in processing order. Each call of `type_for` moves the counters on."""

    def __init__(self, file_type: str, facts: ModelFacts, n_value: int, tied: bool, importance: bool) -> None:
        """`n_value`: attention-value-like tensors in the output; `tied`: it has no `output.weight`;
        `importance`: an importance matrix with at least one entry was given."""
        self._file_type = file_type
        self._base = FILE_TYPES[file_type].base
        self._facts = facts
        self._n_value = n_value
        self._tied = tied
        self._importance = importance
        self._seen: Counter[str] = Counter()

    def type_for(self, name: str, shape: Sequence[int], kind: str, output_type: str | None) -> str:
        """The type of one tensor; `kind` is its category. Raises RecipeError for a layer that cannot exist."""
        arch = self._facts.arch
        if arch == "glm5-next" and any(part in name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
            return "Q8_0"
        if kind == "OUTPUT" or (self._tied and kind == "TOKEN_EMBD"):
            return output_type or self._output(shape)
        if self._file_type == "MXFP4_MOE":
            is_expert = len(shape) > 2 and shape[2] > 1
            # bailingmoe3 has other matrices of three dimensions.
            if is_expert and (arch != "bailingmoe3" or kind in ("UP", "GATE", "DOWN")):
                return "MXFP4"
            return "Q8_0"
        if kind == "TOKEN_EMBD":
            return _EMBEDDING.get(self._file_type, self._base)
        if self._file_type in _TINY:
            return self._tiny(kind)
        if kind in V_LIKE:
            return self._value()
        if kind in ("K", "Q"):
            if kind == "K" and self._facts.n_expert == 8:
                return "Q8_0"
            return _KEY_OR_QUERY.get(self._file_type, self._base)
        if kind == "DOWN":
            return self._down(self._layer(kind, name))
        if kind == "ATTN_OUTPUT":
            return self._attention_output()
        if kind in ("GATE", "UP"):
            return self._gate_or_up(self._layer(kind, name))
        return self._base

    def _next(self, counter: str) -> int:
        self._seen[counter] += 1
        return self._seen[counter] - 1

    def _layer(self, kind: str, name: str) -> int:
        """Dense models count tensors; with experts the number in the name decides."""
        counted = self._next(kind)
        if self._facts.n_expert <= 1:
            return counted
        layer = layer_of(name)
        if layer is None or not 0 <= layer < self._facts.n_layer:
            raise RecipeError(
                f"{name}: the mixture needs its layer, from 0 to {self._facts.n_layer - 1}; name a type for it "
                "(--tensor-type) or use --pure"
            )
        return layer

    def _output(self, shape: Sequence[int]) -> str:
        if (
            self._file_type == "MXFP4_MOE"
            or self._facts.arch == "falcon"
            or shape[0] % TYPES[self._base].block
        ):
            return "Q8_0"
        if self._file_type in _TINY or self._file_type == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if self._base == "Q8_0" else "Q6_K"

    def _tiny(self, kind: str) -> str:
        rich = self._file_type in _TINY_BUT_RICH
        n_expert = self._facts.n_expert
        if kind in V_LIKE:
            self._next("V")
            if self._facts.gqa >= 4 or n_expert >= 4:
                return "Q4_K"
            return "IQ3_S" if rich else "Q2_K"
        if kind == "K" and n_expert == 8:
            return "Q4_K"
        if kind == "DOWN" and self._next("DOWN") < self._facts.n_layer // 8:  # counted, also with experts
            return "IQ3_S" if rich else "Q2_K"
        if kind == "ATTN_OUTPUT":
            if n_expert == 8:
                return "Q5_K"
            if self._file_type in ("IQ1_S", "IQ1_M"):
                return "IQ2_XXS"
            return "IQ3_S" if rich else self._base
        return self._base

    def _value(self) -> str:
        i, ftype = self._next("V"), self._file_type
        chosen = _VALUE.get(ftype, self._base)
        if self._facts.gqa >= 4 and ftype in _VALUE_SHARED:
            chosen = _VALUE_SHARED[ftype]
        elif ftype == "IQ3_XXS" and not self._importance:
            chosen = "IQ3_S"
        elif ftype == "Q3_K_M":
            chosen = "Q5_K" if i < 2 else "Q4_K"
        elif ftype in ("Q4_K_M", "Q5_K_M") and _more_bits(i, self._n_value):
            chosen = "Q6_K"
        elif ftype == "Q4_K_S" and i < 4:
            chosen = "Q5_K"
        if self._facts.n_expert == 8:
            return "Q8_0"
        if self._facts.is_70b and chosen in ("Q3_K", "Q4_K"):
            return "Q5_K"
        return chosen

    def _down(self, i: int) -> str:
        ftype, n = self._file_type, self._facts.n_layer
        falcon = self._facts.arch == "falcon"
        more = _more_bits(i, n)
        if ftype == "Q3_K_M" and i < n // 16:
            return "Q5_K"
        if falcon and ftype == "Q3_K_M":
            return "Q4_K" if more else "Q3_K"
        if falcon and ftype == "Q4_K_M":
            return "Q6_K" if i < n // 16 else "Q5_K" if more else "Q4_K"
        if ftype in ("Q4_K_M", "Q5_K_M") and more:
            return "Q6_K"
        if ftype == "IQ3_M" and self._facts.n_expert == 8 and more:
            return "Q4_K"
        if i < n // 8:
            by_importance = _DOWN_FIRST_EIGHTH_WEIGHTED if self._importance else _DOWN_FIRST_EIGHTH_PLAIN
            lifted: Mapping[str, str] = {**_DOWN_FIRST_EIGHTH, **by_importance}
            if ftype in lifted and not (falcon and ftype == "Q4_K_S"):
                return lifted[ftype]
        if ftype == "IQ3_XXS" and not self._importance:
            return "Q3_K"
        return (_DOWN_FALCON if falcon else _DOWN).get(ftype, self._base)

    def _attention_output(self) -> str:
        if self._facts.arch == "falcon":
            table = {"Q3_K_L": "Q4_K"}
        elif self._facts.n_expert == 8:
            table = _ATTENTION_OUTPUT_8_EXPERTS
        else:
            table = _ATTENTION_OUTPUT
        return table.get(self._file_type, self._base)

    def _gate_or_up(self, i: int) -> str:
        n = self._facts.n_layer
        return "IQ3_XXS" if self._file_type == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else self._base
