"""Recipe files: a TOML file that says what each tensor becomes, to replay, read, edit and share.

file_type = "Q4_K_M"
[types]                                  # the first pattern that matches decides; what none matches follows
'^blk\\.(0|29)\\.attn_v\\.weight$' = "Q6_K"  # the mixture of file_type
[made]                                   # where it comes from and what it promises; all of it may be missing
model = "model-f16.gguf"
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from quantmill.recipe.errors import RecipeError
from quantmill.recipe.patterns import TypeRule, type_rule
from quantmill.recipe.presets import get_file_type

_KEYS = {"file_type", "types", "made"}
# What [made] may hold, each with its TOML type.
MADE: Mapping[str, type | tuple[type, ...]] = {
    "by": str,
    "model": str,
    "model_sha256": str,
    "imatrix": str,
    "imatrix_sha256": str,
    "text": str,
    "text_sha256": str,
    "file_bytes": int,
    "bpw": (float, int),
    "predicted_loss": (float, int),
    "measured_loss": (float, int),
    "loss": str,
}

Value = str | int | float


@dataclass(frozen=True)
class RecipeFile:
    """`file_type` as in Recipe; `rules` in their order; `made`: keys of MADE, in any number."""

    file_type: str
    rules: tuple[TypeRule, ...]
    made: Mapping[str, Value] = field(default_factory=dict)


def parse_recipe(text: str, name: str) -> RecipeFile:
    """The recipe in the text of a file called `name`. Raises RecipeError naming the file and what is wrong in it."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name}: is no recipe, it is not TOML: {error}") from None
    _refuse_others(name, "", found, _KEYS)
    types, made = found.get("types", {}), found.get("made", {})
    if not isinstance(types, dict) or not isinstance(made, dict):
        raise RecipeError(f"{name}: types and made are tables, headed [types] and [made]")
    if not isinstance(found.get("file_type"), str):
        raise RecipeError(f'{name}: says no file_type, for example file_type = "Q4_K_M"')
    _refuse_others(name, "made.", made, set(MADE))
    for key, value in made.items():
        if not isinstance(value, MADE[key]) or isinstance(value, bool):
            raise RecipeError(f"{name}: made.{key} is {value!r}, which is no {_kind(MADE[key])}")
    try:
        rules = tuple(_rule(pattern, type) for pattern, type in types.items())
        return RecipeFile(get_file_type(found["file_type"]), rules, made)
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from None


def recipe_text(recipe: RecipeFile, remarks: Sequence[str] = ()) -> str:
    """The file. remarks: a comment behind each rule, in their order, or none at all."""
    lines = [f"file_type = {_string(recipe.file_type)}"]
    if recipe.rules:
        lines += ["", "# The first pattern that matches a tensor's name decides its type."]
    lines.append("[types]")
    for i, rule in enumerate(recipe.rules):
        remark = f"  # {remarks[i]}" if remarks else ""
        lines.append(f'{_key(rule.pattern)} = "{rule.type}"{remark}')
    if recipe.made:
        lines += ["", "[made]"]
        lines += [f"{key} = {_value(value)}" for key, value in recipe.made.items()]
    return "\n".join(lines) + "\n"


def _refuse_others(name: str, prefix: str, found: Mapping[str, Any], known: set[str]) -> None:
    other = sorted(set(found) - known)
    if other:
        raise RecipeError(f"{name}: unknown key {prefix}{other[0]}; known: {', '.join(sorted(known))}")


def _rule(pattern: str, type: Any) -> TypeRule:
    if not isinstance(type, str):
        raise RecipeError(f"the type of {pattern!r} is {type!r}; quote patterns and types")
    return type_rule(pattern, type)


def _kind(wanted: type | tuple[type, ...]) -> str:
    return "string" if wanted is str else "whole number" if wanted is int else "number"


def _key(pattern: str) -> str:
    """A literal key where TOML allows one, so that no backslash is doubled."""
    plain = pattern.isprintable() and "'" not in pattern
    return f"'{pattern}'" if plain else _string(pattern)


def _value(value: Value) -> str:
    return _string(value) if isinstance(value, str) else repr(value)


def _string(text: str) -> str:
    """JSON's strings are TOML's, but for the one control character that JSON leaves alone."""
    shown = text.encode(errors="surrogateescape").decode(errors="replace")  # TOML is UTF-8
    return json.dumps(shown, ensure_ascii=False).replace("\x7f", "\\u007f")
