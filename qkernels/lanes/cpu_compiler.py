"""The lane language on the CPU: from a program's syntax tree straight to LLVM IR.

A value is a Python number, known while compiling, or an LLVM value: lanes (f32, i32, truth), one number for all lanes
(i64, f32, f64, i1) or an array. Arrays of lanes are pointers to vectors; tables, and arrays in which all lanes read the
same, are pointers to numbers.

Functions with a result are built where they are called; the others become functions of the module, one for each
combination of constants and kinds of arguments.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_values import as_index, binary, compare, unary
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.program import Body, LaneError, Program, Word
from quantmill.qkernels.lanes.simd import F64, I64, LaneBuilder, local, loop


@dataclass
class Unit:
    """The functions of one module, by program, constants and kinds of arguments."""

    module: ir.Module
    functions: dict[tuple[Any, ...], ir.Function] = field(default_factory=dict)

    def call(self, b: LaneBuilder, program: Program, arguments: Sequence[Any]) -> Any:
        if program.has_result:
            return _Body(self, b, program, arguments).value()
        given = [a for a in arguments if isinstance(a, ir.Value)]
        kinds = tuple(str(a.type) if isinstance(a, ir.Value) else a for a in arguments)
        function = self.functions.get((program, kinds))
        if function is None:
            function = self._function(program, arguments, [a.type for a in given], b.processor)
            self.functions[program, kinds] = function
        b.call(function, given)
        return None

    def _function(
        self, program: Program, arguments: Sequence[Any], types: list[ir.Type], processor: Processor
    ) -> ir.Function:
        name = self.module.get_unique_name(program.name)
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
        function.linkage = "internal"
        parameters = iter(function.args)
        own = [next(parameters) if isinstance(a, ir.Value) else a for a in arguments]
        inside = LaneBuilder(function.append_basic_block("entry"), processor)
        _Body(self, inside, program, own).value()
        inside.ret_void()
        return function


class _Body(Body):
    """Statements as instructions, where the builder stands."""

    def __init__(self, unit: Unit, b: LaneBuilder, program: Program, arguments: Sequence[Any]) -> None:
        self.unit, self.b = unit, b
        self.places: dict[str, ir.Value] = {}  # of rebound names, in memory until LLVM makes them values
        super().__init__(program, arguments)

    def is_built(self, value: Any) -> bool:
        return isinstance(value, ir.Value)

    def bind(self, name: str, value: Any) -> None:
        if name not in self.program.rebound:
            self.names[name] = value
            return
        if not isinstance(value, ir.Value):
            value = F64(value) if isinstance(value, float) else I64(value)
        if name not in self.places:
            self.places[name] = local(self.b, value.type)
        place = self.places[name]
        if place.type.pointee != value.type:
            raise LaneError(f"{self.program}: {name} was {place.type.pointee} and becomes {value.type}")
        self.b.store(value, place)

    def rebound(self, name: str) -> Any | None:
        return self.b.load(self.places[name]) if name in self.places else None

    def forget(self, name: str) -> None:
        self.places.pop(name, None)

    def loop(self, name: str, begin: Any, end: Any, body: Sequence[ast.stmt]) -> None:
        with loop(self.b, as_index(self.b, begin), as_index(self.b, end)) as i:
            self.names[name] = i
            self.build(body)

    def branch(self, test: Any, body: Sequence[ast.stmt], otherwise: Sequence[ast.stmt]) -> None:
        if not otherwise:
            with self.b.if_then(test):
                self.build(body)
            return
        with self.b.if_else(test) as (yes, no):
            with yes:
                self.build(body)
            with no:
                self.build(otherwise)

    def binary(self, op: type[ast.operator], left: Any, right: Any) -> Any:
        return binary(self.b, op, left, right)

    def compare(self, op: type[ast.cmpop], left: Any, right: Any) -> Any:
        return compare(self.b, op, left, right)

    def unary(self, op: type[ast.unaryop], operand: Any) -> Any:
        return unary(self.b, op, operand)

    def call(self, called: Any, given: Sequence[Any]) -> Any:
        if isinstance(called, Word):
            return called.build(self.b, *given)
        return self.unit.call(self.b, called, given)
