"""Text to words by a pre-tokenizer's expressions, exactly as llama.cpp matches them.

llama.cpp matches expressions with categories on a copy of the text in which every character outside ASCII is
one byte that stands for its category, and the others on the text with odd white space replaced (unicode.cpp:
unicode_regex_split). Its hand-written loops for some expressions give the same pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np

_WHITESPACE = [0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
# unicode.cpp: unicode_cpt_is_han
_HAN = [
    *((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x2A6E0), (0x2A700, 0x2EBF0)),
    (0x2F800, 0x2FA20),
]
# One character stands for all of a class; those are in Latin-1 and mean nothing else in a collapsed text.
_STANDS_FOR = {"-": "\xd0", "N": "\xd1", "L": "\xd2", "P": "\xd3", "M": "\xd4", "S": "\xd5"}
_HAN_LETTER, _HAN_OTHER = "\xd6", "\xd7"
_ASCII = {
    "N": "0-9",
    "L": "A-Za-z",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
    "M": "",
    "S": r"$+<->\^`|~",
}
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_WIDE_SPACE = dict.fromkeys(_WHITESPACE, "\v")


@cache
def _collapsed_bytes() -> np.ndarray:
    """u8 [0x110000]: the Latin-1 character each code point becomes."""
    table = json.loads(files("quantmill.models").joinpath("unicode_classes.json").read_text(encoding="utf-8"))
    runs = table["runs"].split()
    kinds = np.frombuffer("".join(_STANDS_FOR[run[0]] for run in runs).encode("latin-1"), np.uint8)
    out = np.concatenate([np.arange(128, dtype=np.uint8), np.repeat(kinds, [int(run[1:]) for run in runs])])
    for start, end in _HAN:
        letters = out[start:end] == ord(_STANDS_FOR["L"])
        out[start:end] = np.where(letters, ord(_HAN_LETTER), ord(_HAN_OTHER))
    out[_WHITESPACE] = ord("\v")
    return out


def _collapsed(text: str) -> str:
    if text.isascii():
        return text
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    return _collapsed_bytes()[points].tobytes().decode("latin-1")


def _class(name: str) -> str:
    """The members of \\p{name} in a collapsed text, for use inside brackets."""
    if name == "Han":
        return _HAN_LETTER + _HAN_OTHER
    kind = name[0]  # Lu, Ll, … cannot be told apart there
    return _STANDS_FOR[kind] + (_HAN_LETTER if kind == "L" else "") + _ASCII[kind]


@cache
def _compiled(expression: str) -> tuple[re.Pattern[str], bool]:
    """The expression for the text it is matched on, and whether that is the collapsed one."""
    out, inside, i = [], False, 0
    while i < len(expression):
        char = expression[i]
        if expression.startswith("\\p{", i):
            end = expression.index("}", i)
            members = _class(expression[i + 3 : end])
            out.append(members if inside else f"[{members}]")
            i = end + 1
            continue
        if char == "\\":
            out.append(expression[i : i + 2])
            i += 2
            continue
        inside = char == "[" or (inside and char != "]")
        out.append(char)
        i += 1
    return re.compile("".join(out), re.ASCII), "\\p{" in expression


def split_words(text: str, expressions: Sequence[str]) -> list[str]:
    """The pieces of a text, in order; together they are the text. Surrogates become U+FFFD, as bad bytes do there."""
    text = _NOT_UTF8.sub("\ufffd", text)
    collapsed = wide = None
    spans = [(0, len(text))]
    for expression in expressions:
        pattern, by_category = _compiled(expression)
        if by_category:
            collapsed = collapsed or _collapsed(text)
            spans = _cut(pattern, collapsed, spans)
        else:
            wide = wide or text.translate(_WIDE_SPACE)
            spans = _cut(pattern, wide, spans)
    return [text[start:end] for start, end in spans]


def _cut(pattern: re.Pattern[str], text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Matches and what lies between them become pieces of their own."""
    out = []
    for start, end in spans:
        at = start
        for match in pattern.finditer(text, start, end):
            left, right = match.span()
            if left > at:
                out.append((at, left))
            if right > left:
                out.append((left, right))
            at = right
        if at < end:
            out.append((at, end))
    return out
