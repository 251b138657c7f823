"""Rules of the Metal Shading Language specification that a C++ compiler does not know, held against a source's text.

Section numbers are those of version 3.2. The kernels use a small part of the language, so most rules are kept by
allowing that part alone: a word that is not listed here is a violation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Clang's and Metal's own words (1.5 and 4): none may be a name. Those of them that the kernels use stand in USED.
_WORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const const_cast
constexpr continue decltype default delete do double dynamic_cast else enum explicit export extern false
float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq
private protected public register reinterpret_cast return short signed sizeof static static_assert
static_cast struct switch template this thread_local throw true try typedef typeid typename union unsigned
using virtual void volatile wchar_t while xor xor_eq device constant thread threadgroup
threadgroup_imageblock ray_data object_data kernel vertex fragment visible intersection mesh object
stitchable half bfloat uchar ushort uint ulong size_t ptrdiff_t atomic_int atomic_uint sampler texture1d
texture2d texture3d array vec matrix metal simd quad coherent access patch
"""
RESERVED = frozenset(_WORDS.split())
_USED = """
bool const constant device else false float for if inline int kernel long metal namespace return template
true uchar uint ulong ushort using void
"""
USED = frozenset(_USED.split())
# Functions of metal_stdlib (6.2, 6.3, 6.5, 2.18) that stand in the text.
LIBRARY = frozenset({"as_type", "clamp", "fabs", "max", "min", "precise"})
PRECISE = frozenset({"divide", "sqrt"})
_SIGNS = """
( ) [ ] { } < > ; , ? : + - * / % & | ^ ! = << >> <= >= == != && || ++ :: [[ ]]
"""
PUNCTUATION = frozenset(_SIGNS.split())
MOST_BUFFERS = 31
_TOKEN = re.compile(
    r"\s*(?:(?P<word>[A-Za-z_]\w*)|(?P<number>(?:0x[0-9a-fA-F]+|\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+|\d+)\w*)"
    r"|(?P<sign>\[\[|\]\]|<<|>>|<=|>=|==|!=|&&|\|\||\+\+|::|\S))"
)
# Names are made of a program's names and a number, of an array's name, or stand in PRELUDE.
_MADE = re.compile(r"[A-Za-z]\w*_\d+|p_\w+|\w+_here|\w+_kernel(?:_\d+)?")
_FUNCTION = re.compile(r"^(?:inline|kernel) (\w+) (\w+)\(", re.MULTILINE)
_LITERAL = re.compile(r"0x[0-9a-f]+u?|\d+(?:u|ul)?|\d+\.\d*(?:e[+-]?\d+)?f|\d+e[+-]?\d+f")
_HEAD = "#include <metal_stdlib>\nusing namespace metal;\n#pragma METAL fp contract(off)\n"


def tokens(text: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(text):
        for kind in ("word", "number", "sign"):
            if match[kind]:
                yield kind, match[kind]


def violations(source: str) -> list[str]:
    """What of the rules a source breaks; empty for a good one."""
    if not source.isascii():
        return ["not ASCII, which torch hands to Metal"]
    if not source.startswith(_HEAD):
        return ["contraction is not forbidden (1.6.3) before the first function"]
    text = source[len(_HEAD) :]
    if "#" in text or "//" in text or "/*" in text:
        return ["a directive or a comment after the head"]
    found = list(tokens(text))
    prelude = {name for _, name in re.findall(r"^inline (\w+) (\w+)\(", text, re.MULTILINE)}
    own = prelude | set(re.findall(r"(?:int|uint|ulong|float|bool)\*? (\w+)\b", text.split("kernel void")[0]))
    return [
        *_words(found, own),
        *_literals(found),
        *_pointers(text),
        *_calls(text),
        *_kernels(text),
    ]


def _words(found: list[tuple[str, str]], own: set[str]) -> Iterator[str]:
    """Reserved words are no names (1.5); nothing but float, bool and integers of 8, 16, 32 and 64 bits (2.1)."""
    allowed = USED | LIBRARY | PRECISE | own
    allowed |= {"buffer", "thread_position_in_grid", "thread_number", "number", "sizes", "n", "j", "block"}
    allowed |= {"per_row", "n_cols", "DIM", "BITS", "SHIFTED"}
    for kind, token in found:
        if kind == "word" and (
            token in RESERVED - USED or (token not in allowed and not _MADE.fullmatch(token))
        ):
            yield f"the word {token}"
        if kind == "sign" and token not in PUNCTUATION:
            yield f"the sign {token}"
    for name in own:
        if name in RESERVED or name in LIBRARY:
            yield f"the name {name}"


def _literals(found: list[tuple[str, str]]) -> Iterator[str]:
    """A literal without f would be a double, which Metal has not (2.1); integers say how wide they are."""
    for kind, token in found:
        if kind == "number" and not _LITERAL.fullmatch(token):
            yield f"the literal {token}"


def _pointers(text: str) -> Iterator[str]:
    """Every pointer says its address space (4)."""
    for match in re.finditer(r"(\S+\s+\S+\s+)?\b(?:float|int|uchar|ushort|long|uint|bool|ulong)\*", text):
        if not re.search(r"\b(device|constant)\b", match[0]):
            yield f"a pointer without an address space: {match[0]}"
    if re.search(r"\(\s*\*|&\s*\w+\s*[,)]", re.sub(r" & ", " AND ", text)):
        yield "a pointer to a function, or an address (1.5.4)"


def _calls(text: str) -> Iterator[str]:
    """No recursion (1.5.4): a function calls only what stands before it. Kernels are not called (5.1)."""
    before: set[str] = set(LIBRARY) | PRECISE | {"if", "for", "return", "float", "int", "uint", "ulong"}
    before |= {"uchar", "ushort", "buffer"}
    starts = [(m.start(), m[1], m[2]) for m in _FUNCTION.finditer(text)]
    for (start, gives, name), (end, *_) in zip(starts, [*starts[1:], (len(text), "", "")], strict=True):
        for called in re.findall(r"\b(\w+)(?:<[^<>;()]*>)?\(", text[start:end].split("(", 1)[1]):
            if called not in before:
                yield f"{name} calls {called}"
        if name.endswith("_kernel") or "_kernel_" in name:
            if gives != "void":
                yield f"{name} gives {gives}"
        else:
            before.add(name)


def _kernels(text: str) -> Iterator[str]:
    """Buffers (5.2.1) are numbered from 0 on, at most 31; no memory of a group; one number of a thread (5.2.3.6)."""
    for name, listed in re.findall(r"kernel void (\w+)\(\n(.*?)\n\) \{", text, re.DOTALL):
        *buffers, last = listed.split("\n")
        numbers = [int(n) for n in re.findall(r"\[\[buffer\((\d+)\)\]\]", listed)]
        if numbers != list(range(len(buffers))) or len(numbers) > MOST_BUFFERS:
            yield f"{name} numbers its buffers {numbers}"
        if last != "    uint thread_number [[thread_position_in_grid]]":
            yield f"{name} ends its parameters with {last}"
        if not re.fullmatch(rf"    constant long\* sizes \[\[buffer\({len(buffers) - 1}\)\]\],", buffers[-1]):
            yield f"{name} has no sizes"
        for line in buffers[:-1]:
            if not re.fullmatch(
                r"    device (const )?(float|int|uchar|ushort)\* p_\w+ \[\[buffer\(\d+\)\]\],", line
            ):
                yield f"{name} takes {line}"
