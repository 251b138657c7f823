"""The lane language as Metal Shading Language: one lane a thread.

A value is a piece of text with a kind. Nothing is left to C++'s implicit conversions, and nothing to what is undefined
there: integers wrap by way of `uint`, halves are made and read in integer arithmetic. `/` and roots are the `precise`
ones, which the Metal specification says are correctly rounded; fusing is forbidden by the pragma in PRELUDE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantmill.qkernels.lanes.program import LaneError, Word

C_TYPES = {"float": "float", "scalar": "float", "int": "int", "index": "int", "bool": "bool"}


@dataclass(frozen=True)
class Value:
    """A number of this thread. Kinds: "float"; "int", which wraps at 32 bits; "bool"; "index", a small whole number
    that is the same for all lanes but for `j`; "scalar", a float that all lanes share, of which there is no arithmetic.

    `simple`: the text is a name or a number. `changes`: the name of a variable that is assigned more than once.
    """

    text: str
    kind: str
    simple: bool = False
    changes: bool = False


@dataclass(frozen=True)
class Array:
    """An array or a table: the pointer's name, the kind of elements ("float", "int", "uchar", or "half" and "brain",
    which are written only), and the text of the distance between elements, "" where they are neighbours."""

    name: str
    kind: str
    apart: str = ""


@dataclass
class Writer:
    """The lines of a kernel so far; names of its own; which arrays are written."""

    lines: list[Any] = field(default_factory=list)
    depth: int = 1
    count: int = 0
    stored: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def header(self) -> list[str]:
        """Lines that are filled in later, here."""
        lines: list[str] = []
        self.lines.append(lines)
        return lines

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem.strip('_') or 'unused'}_{self.count}"

    def kept(self, value: Value, stem: str) -> Value:
        """The value under a name."""
        name = self.name(stem)
        self.line(f"const {C_TYPES[value.kind]} {name} = {value.text};")
        return Value(name, value.kind, simple=True)

    def place(self, array: Array, i: Any) -> str:
        index = as_index(i)
        return f"{array.name}[{f'offset({index}, {array.apart})' if array.apart else index}]"

    def text(self) -> str:
        flat = (part if isinstance(part, list) else [part] for part in self.lines)
        return "\n".join(line for part in flat for line in part)


def literal(value: float, kind: str) -> str:
    """A number as C++ writes it, floats rounded to binary32 first."""
    if kind in ("float", "scalar"):
        rounded = np.float32(value)
        if not np.isfinite(rounded):
            raise LaneError(f"{value} is not a finite float")
        text = str(rounded)
        return text + ("f" if "." in text or "e" in text else ".0f")
    if int(value) != value or not -(2**31) < value < 2**31:
        raise LaneError(f"{value} is not an integer of 32 bits")
    return str(int(value)) if value >= 0 else f"({int(value)})"


def as_kind(value: Any, kind: str) -> str:
    """An operand as text of a kind; what would be converted silently in C++ is refused, or converted in words."""
    if not isinstance(value, Value):
        if isinstance(value, Array | bool):
            raise LaneError(f"{value} is no number")
        return literal(value, kind)
    if value.kind == kind or {value.kind, kind} in ({"int", "index"}, {"float", "scalar"}):
        return value.text
    if kind == "float" and value.kind == "index":
        return f"float({value.text})"
    raise LaneError(f"{value.text} is {value.kind} and should be {kind}")


def as_index(value: Any) -> str:
    if isinstance(value, Value) and value.kind != "index":
        raise LaneError(f"{value.text} is {value.kind}, and no index")
    return as_kind(value, "index")


def either(left: Any, right: Any) -> str:
    """The kind of two operands: that of the one which belongs to lanes; else integers if both are, else floats."""
    kinds = {v.kind for v in (left, right) if isinstance(v, Value)}
    for kind in ("float", "int", "bool"):
        if kind in kinds:
            return kind
    whole = all(isinstance(v, int) or (isinstance(v, Value) and v.kind == "index") for v in (left, right))
    return "int" if whole else "float"


def _ld(b: Writer, array: Array, i: Any) -> Value:
    if array.kind not in ("float", "int"):
        raise LaneError(f"{array.name} holds {array.kind}, which ld does not read")
    return b.kept(Value(b.place(array, i), array.kind), "v")


def _st(b: Writer, array: Array, i: Any, value: Any) -> None:
    b.stored.add(array.name)
    place = b.place(array, i)
    if array.kind in ("half", "brain"):
        b.line(f"{place} = ushort(float_to_{array.kind}({as_kind(value, 'float')}));")
    else:
        b.line(f"{place} = {as_kind(value, array.kind)};")


def _ldb(b: Writer, array: Array, i: Any) -> Value:
    return b.kept(Value(f"int({b.place(array, i)})", "int"), "byte")


def _stb(b: Writer, array: Array, i: Any, value: Any) -> None:
    b.stored.add(array.name)
    b.line(f"{b.place(array, i)} = uchar({as_kind(value, 'int')} & 255);")


def _cst(b: Writer, table: Array, i: Any) -> Value:
    kind = {"float": "scalar", "int": "index"}[table.kind]
    return b.kept(Value(b.place(table, i), kind), "c")


def _take(b: Writer, table: Array, index: Value) -> Value:
    return b.kept(Value(f"{table.name}[{as_kind(index, 'int')}]", table.kind), "entry")


def _pick(b: Writer, table: Array, first: Any, index: Value) -> Value:
    place = f"{as_index(first)} + ({as_kind(index, 'int')} & 31)"
    return b.kept(Value(f"{table.name}[{place}]", table.kind), "entry")


def _where(b: Writer, mask: Value, yes: Any, no: Any) -> Value:
    kind = either(yes, no)
    return Value(f"({as_kind(mask, 'bool')} ? {as_kind(yes, kind)} : {as_kind(no, kind)})", kind)


def _function(name: str, takes: str, gives: str) -> Callable[..., Value]:
    return lambda b, *values: Value(f"{name}({', '.join(as_kind(v, takes) for v in values)})", gives)


def _lev(b: Writer, value: Value, low: int, high: int) -> Value:
    limits = f"{literal(low, 'int')}, {literal(high, 'int')}"
    return Value(f"float(clamp(nearest_int({as_kind(value, 'float')}), {limits}))", "float")


def _rnear(b: Writer, value: Value) -> Value:
    return Value(f"(({as_kind(value, 'float')} + 12582912.0f) - 12582912.0f)", "float")


def _full(b: Writer, like: Value, value: Any) -> Value:
    return Value(as_kind(value, "float"), "float", simple=getattr(value, "simple", True))


def _number(b: Writer, like: Value, j: Any) -> Value:
    return Value(as_kind(j, "int"), "int", simple=getattr(j, "simple", True))


def _walk(b: Writer, template: str, u: Value, v: Array, w: Array, place: Any, *rest: str) -> Value:
    apart = [array.apart or "1ul" for array in (v, w)]
    operands = [as_kind(u, "int"), v.name, apart[0], w.name, apart[1], as_index(place), *rest]
    return b.kept(Value(f"walk<{template}>({', '.join(operands)})", "int"), "near")


def _nearest(
    b: Writer,
    u: Value,
    v: Array,
    root: Array,
    place: Any,
    scale: Any,
    lists: Array,
    near: Array,
    dim: int,
    bits: int,
) -> Value:
    return _walk(
        b,
        f"{dim}, {bits}, false",
        u,
        v,
        root,
        place,
        as_kind(scale, "float"),
        "0.0f",
        lists.name,
        near.name,
    )


def _nearest_shifted(
    b: Writer,
    u: Value,
    v: Array,
    weight: Array,
    place: Any,
    scale: Any,
    low: Any,
    lists: Array,
    near: Array,
    notes: Array,
) -> Value:
    numbers = as_kind(scale, "float"), as_kind(low, "float")
    return _walk(b, "8, 2, true", u, v, weight, place, *numbers, lists.name, near.name)


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "ld": _ld,
    "st": _st,
    "ldb": _ldb,
    "stb": _stb,
    "cst": _cst,
    "take": _take,
    "pick": _pick,
    "zeros": lambda b, like: Value("0.0f", "float", simple=True),
    "izeros": lambda b, like: Value("0", "int", simple=True),
    "full": _full,
    "number": _number,
    "where": _where,
    "div": _function("precise::divide", "float", "float"),
    "sqrt": _function("precise::sqrt", "float", "float"),
    "fabs": _function("fabs", "float", "float"),
    "neg": lambda b, v: Value(f"(-{as_kind(v, 'float')})", "float"),
    "nint": _function("nearest_int", "float", "int"),
    "nhalf": _function("nearest_half", "float", "int"),
    "lev": _lev,
    "rnear": _rnear,
    "trunc": _function("trunc_to_int", "float", "int"),
    "i2f": _function("float", "int", "float"),
    "f2h": _function("float_to_half", "float", "int"),
    "h2f": _function("half_to_float", "int", "float"),
    "bits": _function("as_type<int>", "float", "int"),
    "from_bits": _function("as_type<float>", "int", "float"),
    "imin": _function("min", "int", "int"),
    "imax": _function("max", "int", "int"),
    # a thread has one lane, so it may ask
    "any_": lambda b, mask: mask,
    # computing again is cheaper than a thread's own memory
    "put": lambda b, array, i, value: None,
    "get": lambda b, array, i, value: value,
    "nearest": _nearest,
    "nearest_shifted": _nearest_shifted,
}
WORDS: Mapping[str, Any] = {name: Word(build) for name, build in _BUILDERS.items()}
