"""Which type each tensor gets: llama-quantize's precedence over options, patterns, mixture and shape.

For a tensor that may be quantized (names.py), the first that applies:
1. `--token-embedding-type`, for token embeddings; a pattern that names per_layer_token_embd.weight comes first.
2. `--output-tensor-type`, for output.weight.
3. a file type of F32, F16 or BF16: that type; patterns have no effect then.
4. the first `--tensor-type` pattern, in the order given.
5. `--pure`: the base type.
6. the mixture (mixtures.py), whose counters move on only here.
For 4 to 6 a row length that the type cannot hold leads to the type's substitute, and from there to F16.

Source: src/llama-quant.cpp: llama_tensor_get_type, tensor_type_fallback. Better than there: patterns that never
decide anything are reported, substitutes can be refused, and a type of 1 or 2 that does not fit the shape is an
error while planning, where llama-quantize stops in the middle of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantmill.qkernels.types import TYPES
from quantmill.recipe.errors import RecipeError
from quantmill.recipe.mixtures import Mixture
from quantmill.recipe.names import OUTPUT, category, may_be_quantized
from quantmill.recipe.patterns import TypeRule

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class TypeOptions:
    """The options that decide types; `base` None copies every tensor (COPY)."""

    base: str | None
    rules: Sequence[TypeRule] = ()
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    fallback: bool = True


@dataclass(frozen=True)
class Choice:
    """`substitute_for`: the type that the row length does not allow, when `type` stands in for it."""

    type: str
    substitute_for: str | None = None


class TypeChooser:
    """One pass in processing order; afterwards `unused_rules` tells what never decided and why."""

    def __init__(self, options: TypeOptions, arch: str, mixture: Mixture | None) -> None:
        """`mixture` None when nothing is mixed: COPY, float file types."""
        self._options = options
        self._arch = arch
        self._mixture = mixture
        self._matched: dict[TypeRule, str] = {}  # a name it matched, for the report
        self._decided: set[TypeRule] = set()

    def choose(self, name: str, shape: Sequence[int], source_type: str) -> Choice:
        """Raises RecipeError when no type fits the shape, or only a substitute and these are refused."""
        options = self._options
        matching = [rule for rule in options.rules if rule.matches(name)]
        for rule in matching:
            self._matched.setdefault(rule, name)
        if options.base is None or not may_be_quantized(name, shape, self._arch):
            return Choice(source_type)
        if name == OUTPUT and options.leave_output_tensor:
            return Choice(source_type)
        kind = category(name)
        named_apart = name == "per_layer_token_embd.weight" and matching
        if options.token_embedding_type and kind == "TOKEN_EMBD" and not named_apart:
            return _fitting(name, shape, options.token_embedding_type, "--token-embedding-type")
        if options.output_tensor_type and kind == "OUTPUT":
            return _fitting(name, shape, options.output_tensor_type, "--output-tensor-type")
        if options.base in _FLOATS:
            return Choice(options.base)
        if matching:
            self._decided.add(matching[0])
            wanted = matching[0].type
        elif options.pure or self._mixture is None:
            wanted = options.base
        else:
            wanted = self._mixture.type_for(name, shape, kind, options.output_tensor_type)
        return self._substituted(name, shape[0], wanted)

    def unused_rules(self) -> list[str]:
        """One warning for each pattern that matched nothing or decided nothing."""
        warnings = []
        for rule in self._options.rules:
            if rule in self._decided:
                continue
            matched = self._matched.get(rule)
            if matched is None:
                warnings.append(f"--tensor-type {rule}: matches no tensor")
            else:
                warnings.append(
                    f"--tensor-type {rule}: decides nothing; {matched} {self._reason(rule, matched)}"
                )
        return warnings

    def _reason(self, rule: TypeRule, name: str) -> str:
        options = self._options
        if options.base is None or options.base in _FLOATS:
            return "follows the file type, which is not a quantized one"
        earlier = next(other for other in options.rules if other.matches(name))
        if earlier is not rule and earlier in self._decided:
            return f"matches the earlier {earlier} too"
        return "keeps its type or follows another option"

    def _substituted(self, name: str, n_cols: int, wanted: str) -> Choice:
        chosen = wanted
        while n_cols % TYPES[chosen].block:
            substitute = TYPES[chosen].fallback
            if substitute is None:
                raise RecipeError(
                    f"{name}: {n_cols} columns, {chosen} needs a multiple of {TYPES[chosen].block} and has no "
                    "substitute; choose another type for it with --tensor-type"
                )
            chosen = substitute
        if chosen == wanted:
            return Choice(wanted)
        if not self._options.fallback:
            raise RecipeError(
                f"{name}: {n_cols} columns, {wanted} needs a multiple of {TYPES[wanted].block}; choose another "
                f"type for it with --tensor-type, or allow {chosen} instead (no --no-fallback)"
            )
        return Choice(chosen, wanted)


def _fitting(name: str, shape: Sequence[int], wanted: str, option: str) -> Choice:
    block = TYPES[wanted].block
    if shape[0] % block:
        raise RecipeError(
            f"{name}: {shape[0]} columns, {wanted} needs a multiple of {block}; choose another {option}"
        )
    return Choice(wanted)
