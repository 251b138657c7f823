"""The walk through a lane program that writes the lines of a Metal kernel."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from quantmill.qkernels.lanes.metal_words import C_TYPES, Array, Value, Writer, as_index, as_kind, either
from quantmill.qkernels.lanes.program import Body, LaneError, Program, Word, folded

_INFIX = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
}
_WRAPPING = {ast.Add: "iadd", ast.Sub: "isub", ast.Mult: "imul", ast.LShift: "ishl"}
_OF_TRUTH = {ast.BitAnd: "&&", ast.BitOr: "||", ast.BitXor: "!="}
_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


class MetalBody(Body):
    """Statements as lines of a kernel."""

    def __init__(self, b: Writer, program: Program, arguments: Sequence[Any]) -> None:
        self.b = b
        self.variables: dict[str, Value] = {}
        self._declared = b.header()
        self._depth = b.depth
        super().__init__(program, arguments)

    def is_built(self, value: Any) -> bool:
        return isinstance(value, Value | Array)

    def bind(self, name: str, value: Any) -> None:
        if name in self.program.rebound:
            self._assign(name, value)
        elif isinstance(value, Value) and (value.changes or not value.simple):
            self.names[name] = self.b.kept(value, name)
        else:
            self.names[name] = value

    def _assign(self, name: str, value: Any) -> None:
        if isinstance(value, float):
            value = Value(as_kind(value, "scalar"), "scalar")
        elif not isinstance(value, Value):
            value = Value(as_index(value), "index")
        variable = self.variables.get(name)
        if variable is None:
            variable = Value(self.b.name(name), value.kind, simple=True, changes=True)
            self.variables[name] = variable
            self._declared.append("    " * self._depth + f"{C_TYPES[value.kind]} {variable.text};")
        if variable.kind != value.kind:
            raise LaneError(f"{self.program}: {name} was {variable.kind} and becomes {value.kind}")
        if variable.text != value.text:
            self.b.line(f"{variable.text} = {value.text};")

    def bind_all(self, targets: Sequence[ast.expr], values: Sequence[Any]) -> None:
        """Each target may be among the others' values."""
        kept = [self.b.kept(v, "both") if isinstance(v, Value) and not _constant(v) else v for v in values]
        super().bind_all(targets, kept)

    def rebound(self, name: str) -> Any | None:
        return self.variables.get(name)

    def forget(self, name: str) -> None:
        self.variables.pop(name, None)

    def loop(self, name: str, begin: Any, end: Any, body: Sequence[ast.stmt]) -> None:
        i = self.b.name(name)
        self.b.line(f"for (int {i} = {as_index(begin)}; {i} < {as_index(end)}; ++{i}) {{")
        self.names[name] = Value(i, "index", simple=True)
        self._inside(body)
        self.b.line("}")

    def branch(self, test: Any, body: Sequence[ast.stmt], otherwise: Sequence[ast.stmt]) -> None:
        self.b.line(f"if ({as_kind(test, 'bool')}) {{")
        self._inside(body)
        if otherwise:
            self.b.line("} else {")
            self._inside(otherwise)
        self.b.line("}")

    def _inside(self, body: Sequence[ast.stmt]) -> None:
        self.b.depth += 1
        self.build(body)
        self.b.depth -= 1

    def binary(self, op: type[ast.operator], left: Any, right: Any) -> Any:
        if not self.is_built(left) and not self.is_built(right):
            return folded(op, left, right)
        kinds = {v.kind for v in (left, right) if isinstance(v, Value)}
        if "float" in kinds and op in (ast.Add, ast.Sub, ast.Mult):
            return self._infix(_INFIX[op], left, right, "float")
        if kinds == {"bool"} and op in _OF_TRUTH:
            return self._infix(_OF_TRUTH[op], left, right, "bool")
        if kinds == {"index"} and op in _INFIX:
            return self._infix(_INFIX[op], left, right, "index")
        if "int" in kinds and kinds <= {"int", "index"} and op in _INFIX:
            if op in _WRAPPING:
                return Value(f"{_WRAPPING[op]}({as_kind(left, 'int')}, {as_kind(right, 'int')})", "int")
            return self._infix(_INFIX[op], left, right, "int")
        raise LaneError(f"{self.program}: {op.__name__} of {left} and {right}")

    def _infix(self, sign: str, left: Any, right: Any, kind: str) -> Value:
        return Value(f"({as_kind(left, kind)} {sign} {as_kind(right, kind)})", kind)

    def compare(self, op: type[ast.cmpop], left: Any, right: Any) -> Any:
        if not self.is_built(left) and not self.is_built(right):
            return folded(op, left, right)
        kinds = {v.kind for v in (left, right) if isinstance(v, Value)}
        if kinds == {"scalar"}:
            raise LaneError(f"{self.program}: {op.__name__} of {left} and {right}")
        return Value(self._infix(_COMPARE[op], left, right, either(left, right)).text, "bool")

    def unary(self, op: type[ast.unaryop], operand: Any) -> Any:
        if op is ast.Invert:
            return Value(f"(!{as_kind(operand, 'bool')})", "bool") if self.is_built(operand) else ~operand
        if op is not ast.USub:
            raise LaneError(f"{self.program}: {op.__name__} is not in the lane language")
        if self.is_built(operand):
            raise LaneError(f"{self.program}: - of {operand.text}: write neg")
        return -operand

    def call(self, called: Any, given: Sequence[Any]) -> Any:
        if isinstance(called, Word):
            return called.build(self.b, *given)
        result = MetalBody(self.b, called, given).value()
        # what a program stores is stored before the rest of the expression that calls it is computed
        if isinstance(result, tuple):
            return tuple(self._kept(one) for one in result)
        return self._kept(result)

    def _kept(self, value: Any) -> Any:
        return self.b.kept(value, "r") if isinstance(value, Value) and not value.simple else value


def _constant(value: Value) -> bool:
    return value.simple and not value.changes
