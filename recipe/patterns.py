"""`--tensor-type PATTERN=TYPE`: std::regex patterns of llama-quantize, searched with Python's `re`.

llama-quantize compiles the lower-cased pattern as an ECMAScript `std::regex` and searches it in the tensor's name.
The two languages agree on almost everything such patterns use; `translate` writes the rest in Python's words and
refuses what has no equal there (look-behind, named groups, back-references, inline flags, possessive
quantifiers), which std::regex refuses too or reads differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from quantmill.errors import choices
from quantmill.qkernels.types import TYPES
from quantmill.recipe.errors import RecipeError

_POSIX_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "xdigit": "0-9A-Fa-f",
    "space": r"\s",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "graph": "!-~",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "d": r"\d",
    "s": r"\s",
    "w": r"\w",
}
_ESCAPED_CONTROL = {"f": r"\f", "n": r"\n", "r": r"\r", "t": r"\t", "v": r"\v", "0": r"\x00"}
_QUANTIFIER = re.compile(r"\{\d+(?:,\d*)?\}|[*+?]")


@dataclass(frozen=True)
class TypeRule:
    """One `--tensor-type`: tensors whose name contains `pattern` (already lower-cased) become `type`."""

    pattern: str
    type: str
    regex: re.Pattern[str]
    inverted: tuple[str, ...] = ()  # negated classes (\\D, \\S, \\W, \\B) that lower-casing made positive

    def matches(self, name: str) -> bool:
        return self.regex.search(name) is not None

    def __str__(self) -> str:
        return f"{self.pattern}={self.type}"


def parse_type(text: str) -> str:
    """The ggml spelling of a type given in any case. Raises RecipeError with the known names."""
    for name in TYPES:
        if name.lower() == text.lower():
            return name
    raise RecipeError(f"unknown tensor type {text!r}; {choices(text, TYPES)}")


def type_rule(pattern: str, type_name: str) -> TypeRule:
    """The rule of a pattern, which is lower-cased as llama-quantize does, and a type in any case.

    Raises RecipeError.
    """
    lowered = pattern.lower()
    inverted = tuple(re.findall(r"\\[DSWB]", pattern.replace(r"\\", "")))
    return TypeRule(lowered, parse_type(type_name), compile_pattern(lowered), inverted)


def parse_rule(text: str) -> TypeRule:
    """`PATTERN=TYPE`, split at the first `=` and lower-cased, as llama-quantize does. Raises RecipeError."""
    pattern, separator, type_name = text.partition("=")
    if not (separator and pattern and type_name):
        raise RecipeError(f"--tensor-type {text!r}: expected PATTERN=TYPE, for example attn_v=q8_0")
    try:
        chosen = parse_type(type_name)
    except RecipeError as error:
        # The usual cause: a look-ahead, whose own `=` comes first.
        raise RecipeError(f"--tensor-type {text!r}: {error} (the pattern ends at the first '=')") from None
    return type_rule(pattern, chosen)


def parse_rules(text: str, file: str) -> tuple[TypeRule, ...]:
    """The contents of a `--tensor-type-file`: PATTERN=TYPE words separated by ASCII's white space, as llama-quantize
    cuts them; `#` begins a comment that ends with the line. Raises RecipeError naming the file and the line."""
    rules = []
    for number, line in enumerate(text.split("\n"), 1):
        for word in re.findall(r"\S+", re.sub(r"(?<!\S)#.*", "", line, flags=re.ASCII), re.ASCII):
            try:
                rules.append(parse_rule(word))
            except RecipeError as error:
                raise RecipeError(f"{file}, line {number}: {error}") from None
    return tuple(rules)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """An ECMAScript pattern as a Python one. Raises RecipeError with what is wrong or unsupported."""
    try:
        return re.compile("".join(_translate(pattern)), re.ASCII)
    except re.error as error:
        raise RecipeError(f"pattern {pattern!r}: {error.msg} at position {error.pos}") from None


def _translate(pattern: str) -> Iterator[str]:
    i = 0
    quantified = False  # whether the last piece was a quantifier, which only a lazy mark may follow
    while i < len(pattern):
        char = pattern[i]
        quantifier = _QUANTIFIER.match(pattern, i)
        if quantifier is not None:
            if quantified and char != "?":
                raise _unsupported(pattern, i, "a quantifier after a quantifier")
            yield quantifier.group()
            i = quantifier.end()
            quantified = not quantified
            continue
        quantified = False
        if char == "\\":
            piece, i = _escape(pattern, i + 1)
        elif char == "[":
            piece, i = _bracket(pattern, i + 1)
        elif char == "{":
            raise _unsupported(pattern, i, "a brace that is no quantifier; write \\{")
        elif pattern.startswith("(?", i) and pattern[i + 2 : i + 3] not in (":", "=", "!"):
            raise _unsupported(pattern, i, "a group other than (…), (?:…), (?=…), (?!…)")
        elif char == "$":  # Python's `$` also matches before a final newline
            piece, i = r"\Z", i + 1
        else:
            piece, i = char, i + 1
        yield piece


def _unsupported(pattern: str, position: int, what: str) -> RecipeError:
    return RecipeError(f"pattern {pattern!r}: {what} is not supported (position {position})")


def _escape(pattern: str, i: int) -> tuple[str, int]:
    """The escape whose letter is at `i`, outside brackets: its translation and where it ends."""
    if i == len(pattern):
        raise RecipeError(f"pattern {pattern!r}: nothing follows the last \\")
    char = pattern[i]
    if char in "dswb":
        return "\\" + char, i + 1
    if char in _ESCAPED_CONTROL:
        return _ESCAPED_CONTROL[char], i + 1
    if char.isdigit():
        raise _unsupported(pattern, i, "a back-reference")
    if char in "xu":
        digits = pattern[i + 1 : i + (3 if char == "x" else 5)]
        if not re.fullmatch(r"[0-9a-f]{2}|[0-9a-f]{4}", digits) or len(digits) != (2 if char == "x" else 4):
            raise _unsupported(pattern, i, f"\\{char} without its hexadecimal digits")
        return re.escape(chr(int(digits, 16))), i + 1 + len(digits)
    if char == "c":
        raise _unsupported(pattern, i, "a control escape")
    return re.escape(char), i + 1  # any other character stands for itself, letters too


def _bracket(pattern: str, i: int) -> tuple[str, int]:
    """The class whose first character is at `i`: its translation and where it ends."""
    start = i
    out = "["
    if pattern.startswith("^", i):
        out, i = "[^", i + 1
    while i < len(pattern) and pattern[i] != "]":
        if pattern.startswith("[:", i):
            end = pattern.find(":]", i + 2)
            name = pattern[i + 2 : end]
            if end < 0 or name not in _POSIX_CLASSES:
                raise _unsupported(pattern, i, "this character class name")
            out, i = out + _POSIX_CLASSES[name], end + 2
        elif pattern.startswith(("[.", "[="), i):
            raise _unsupported(pattern, i, "a collating element")
        elif pattern[i] == "\\":
            piece, i = (r"\x08", i + 2) if pattern.startswith("b", i + 1) else _escape(pattern, i + 1)
            out += piece
        elif pattern[i] == "-":
            out, i = out + ("-" if _is_range(pattern, start, i) else r"\-"), i + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    if i == len(pattern):
        raise RecipeError(f"pattern {pattern!r}: the [ at position {start - 1} is never closed")
    if out in ("[", "[^"):
        raise _unsupported(pattern, start, "an empty class")
    return out + "]", i + 1


def _is_range(pattern: str, start: int, i: int) -> bool:
    """Whether the `-` at `i` joins two characters, rather than standing first or last for itself."""
    return start < i and pattern[start:i] != "^" and not pattern.startswith("-]", i)
