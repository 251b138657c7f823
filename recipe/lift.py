"""The other way round: from the types that tensors have to patterns that give them these types."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from quantmill.gguf_io import TensorSpec
from quantmill.gguf_io.metadata import Metadata
from quantmill.recipe.model import model_facts
from quantmill.recipe.names import may_be_quantized, processing_order
from quantmill.recipe.patterns import TypeRule, type_rule
from quantmill.recipe.presets import ALIASES, FILE_TYPES
from quantmill.recipe.recipe_file import RecipeFile, Value

_LAYER = re.compile(r"blk\.(\d+)\.(.+)", re.DOTALL)
_UNLIKE = re.compile("[A-Z\ud800-\udfff]")  # upper case, and bytes that are no UTF-8
_FLOATS = ("F32", "F16", "BF16")


def recipe_of(specs: Sequence[TensorSpec], metadata: Metadata, name: str) -> RecipeFile:
    """The recipe of a model called `name`: on its source it gives every tensor the type that it has here.

    Only tensors that can be quantized are named: the others keep their type whatever a recipe says. Raises
    RecipeError for a model that does not say what it is.
    """
    arch = model_facts(metadata, {}).arch
    chosen = [spec for spec in specs if may_be_quantized(spec.name, spec.shape, arch)]
    types = {spec.name: spec.type for spec in chosen}
    n_weights = sum(spec.n_rows * spec.n_cols for spec in specs)
    n_bytes = sum(spec.n_bytes for spec in specs)
    made: dict[str, Value] = {"model": name, "bpw": round(8 * n_bytes / n_weights, 4)}
    number = metadata.value("general.file_type")
    written = next((row.name for row in FILE_TYPES.values() if row.id == number), None)
    if written in _FLOATS and set(types.values()) == {written}:
        return RecipeFile(written, (), made)
    if written is None or written in _FLOATS:
        written = file_type_of([(spec.type, spec.n_rows * spec.n_cols) for spec in chosen])
    return RecipeFile(written, rules_for(types), made)


def file_type_of(tensors: Iterable[tuple[str, int]]) -> str:
    """The file type whose base is the type that most weights have; tensors: (type, number of weights).

    Where no file type has that base (NVFP4) it is Q8_0: beside a pattern for every tensor it is but a label.
    """
    weights: Counter[str] = Counter()
    for type, n_weights in tensors:
        weights[type] += n_weights
    most = max(weights, key=lambda type: weights[type], default="Q8_0")
    bases = {row.base: row.name for row in reversed(list(FILE_TYPES.values()))} | dict(ALIASES)
    return bases.get(most, "Q8_0")


def rules_for(types: Mapping[str, str]) -> tuple[TypeRule, ...]:
    """Patterns that give each of these tensors its type, as few and as readable as can be had.

    types: tensor name → type. Tensors of one kind are told apart by their layers: the type that most of them have
    comes last, for any layer, and what differs comes before. A pattern matches whole names.
    """
    kinds: dict[str, dict[int, str]] = defaultdict(dict)
    rules = []
    for name in sorted(types, key=processing_order):
        match = _LAYER.fullmatch(name)
        if match is None or name != f"blk.{int(match[1])}.{match[2]}":
            rules.append(_whole(_literal(name), types[name]))
        else:
            kinds[match[2]][int(match[1])] = types[name]
    for kind, layers in kinds.items():
        rules += _of_one_kind(_literal(kind), layers)
    return tuple(rules)


def _of_one_kind(kind: str, layers: Mapping[int, str]) -> Iterable[TypeRule]:
    counts = Counter(layers.values())
    usual = max(counts, key=lambda type: counts[type])
    for type in sorted(counts, key=lambda type: -counts[type]):
        if type != usual:
            numbers = [str(layer) for layer, other in sorted(layers.items()) if other == type]
            which = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
            yield _whole(rf"blk\.{which}\.{kind}", type)
    yield _whole(rf"blk\.\d+\.{kind}", usual)


def _literal(name: str) -> str:
    """A pattern for these characters, lower case and UTF-8 as patterns are: any other character is any at all."""
    return "".join(
        "." if _UNLIKE.match(char) else char if char.isalnum() or char in "_-" else f"\\{char}"
        for char in name
    )


def _whole(pattern: str, type: str) -> TypeRule:
    return type_rule(f"^{pattern}$", type)
