"""`--override-kv KEY=TYPE:VALUE`, as llama-quantize writes it.

Source: common/common.cpp: string_parse_kv_override; src/llama-quant.cpp (what becomes of the values).
Better than there: a number that is none is refused, where atol() reads 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from quantmill.gguf_io.sensible import most, sensible
from quantmill.recipe.errors import RecipeError

_MAX_KEY, _MAX_STRING = 127, 127  # bytes; the fields of llama_model_kv_override
_KINDS = {
    GGUFValueType.STRING: "a str",
    GGUFValueType.BOOL: "a bool",
    GGUFValueType.FLOAT32: "a float",
    GGUFValueType.FLOAT64: "a float",
}
_MAX_FLOAT = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True)
class Override:
    """`value` is what the file gets; `given` what was asked for (they differ for negative numbers)."""

    key: str
    value: MetaValue
    given: str


def parse_override(text: str) -> Override:
    """Raises RecipeError for anything but KEY=int|float|bool|str:VALUE."""
    key, separator, typed = text.partition("=")
    type_name, colon, value = typed.partition(":")
    if not (key and separator and colon):
        raise RecipeError(
            f"--override-kv {text!r}: expected KEY=TYPE:VALUE, for example llama.expert_count=int:8"
        )
    if len(key.encode(errors="surrogateescape")) > _MAX_KEY:
        raise RecipeError(f"--override-kv {key[:40]}…: the key is longer than {_MAX_KEY} bytes")
    return Override(key, _parse_value(text, type_name, value), value)


def require_readable(override: Override, held: MetaValue | None, arch: str) -> None:
    """held: what the file would have under the key. Raises RecipeError for a value that programs would not take from
    it: one of another kind, or no number of things where `arch` has one."""
    key = override.key
    if held is not None and (kind := _kind(key, held)) != (given := _kind(key, override.value)):
        raise RecipeError(
            f"--override-kv {key}: the model holds {kind} there, and {given} is given ({override.given}); programs "
            "that read the file would refuse it"
        )
    if key.startswith(f"{arch}."):
        try:
            sensible(key, override.value.value)
        except GGUFError:
            raise not_whole(key, override.value.value) from None


def not_whole(key: str, value: object) -> RecipeError:
    return RecipeError(
        f"--override-kv {key}: {value!r} is no whole number from 0 to {most(key)}, which this key holds"
    )


def _kind(key: str, value: MetaValue) -> str:
    """Where layers have a value each, one for all of them is of the same kind."""
    if value.element_type is not None and key.startswith("tokenizer."):
        return "a list"
    type = value.type if value.element_type is None else value.element_type
    return _KINDS.get(type, "an int")


def _parse_value(text: str, type_name: str, value: str) -> MetaValue:
    if type_name == "str":
        if len(value.encode(errors="surrogateescape")) > _MAX_STRING:
            raise RecipeError(f"--override-kv {text!r}: the value is longer than {_MAX_STRING} bytes")
        return MetaValue(GGUFValueType.STRING, value)
    if type_name == "bool":
        if value not in ("true", "false"):
            raise RecipeError(f"--override-kv {text!r}: a bool is true or false")
        return MetaValue(GGUFValueType.BOOL, value == "true")
    if type_name not in ("int", "float"):
        raise RecipeError(f"--override-kv {text!r}: unknown type {type_name!r}; known: int, float, bool, str")
    try:
        if type_name == "float":
            return MetaValue(GGUFValueType.FLOAT32, _held(text, float(value)))
        number = abs(int(value))  # stored as u32 since llama.cpp #14182
    except ValueError:
        raise RecipeError(f"--override-kv {text!r}: {value!r} is no {type_name}") from None
    if number >= 2**32:
        raise RecipeError(f"--override-kv {text!r}: the file holds it as a 32-bit number without sign")
    return MetaValue(GGUFValueType.UINT32, number)


def _held(text: str, number: float) -> float:
    if not abs(number) <= _MAX_FLOAT:  # nor is NaN
        raise RecipeError(f"--override-kv {text!r}: the file holds it as a finite 32-bit number")
    return number
