"""The lane language on the CPU: from a program's syntax tree straight to LLVM IR.

A value is a Python number, known while compiling, or an LLVM value: lanes (f32, i32, truth), one number for all lanes
(i64, f32, f64, i1) or an array. Arrays of lanes are pointers to vectors; tables, and arrays in which all lanes read the
same, are pointers to numbers. Integer parameters that a caller gives as constants are constants in the body too.

Functions with a result are built where they are called; the others become functions of the module, one for each
combination of constants and kinds of arguments.
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_values import LaneError, as_index, binary, compare, unary
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import F64, I64, LaneBuilder, local, loop
from quantmill.qkernels.lanes.syntax import tree_of

# A loop of so few rounds is written out, and its variable is a constant.
_WRITTEN_OUT = 2


@dataclass(frozen=True)
class Word:
    """A word of the vocabulary: builds its value from the builder and the operands."""

    build: Callable[..., Any]


def word(build: Callable[..., Any]) -> Any:
    """A Word that lane programs of this package can name."""
    return Word(build)


def program(function: Callable[..., Any]) -> Any:
    """A Program that other lane programs can name."""
    return Program(function)


class Program:
    """A function written in the lane language."""

    def __init__(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        self.name = function.__name__
        self.globals = function.__globals__
        self._place = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
        tree = _functions(function.__code__.co_filename)[self.name]
        self.parameters = [argument.arg for argument in tree.args.args]
        self.body = tree.body
        assigned = Counter(self.parameters)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assigned[node.id] += 1
        # These live in memory until LLVM makes them values; the others are what they were bound to.
        self.rebound = {name for name, times in assigned.items() if times > 1}

    @property
    def has_result(self) -> bool:
        return isinstance(self.body[-1], ast.Return)

    def __str__(self) -> str:
        return f"{self.name} ({self._place})"


@functools.cache
def _functions(path: str) -> Mapping[str, ast.FunctionDef]:
    tree = tree_of(Path(path))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


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


class _Body:
    """One call of a program: its statements, built where the builder stands."""

    def __init__(self, unit: Unit, b: LaneBuilder, program: Program, arguments: Sequence[Any]) -> None:
        self.unit, self.b, self.program = unit, b, program
        self.names: dict[str, Any] = {}
        self.places: dict[str, ir.Value] = {}
        if len(arguments) != len(program.parameters):
            raise LaneError(f"{program} takes {len(program.parameters)} arguments, not {len(arguments)}")
        for name, value in zip(program.parameters, arguments, strict=True):
            self.bind(name, value)

    def value(self) -> Any:
        *statements, last = self.program.body
        self.build(statements)
        if isinstance(last, ast.Return):
            return None if last.value is None else self.evaluate(last.value)
        self.build([last])
        return None

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

    def build(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.bind(name, self.evaluate(value))
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                    for target, one in zip(targets, self.evaluate(value), strict=True):
                        assert isinstance(target, ast.Name)
                        self.bind(target.id, one)
                case ast.Expr(value=value):
                    if not isinstance(value, ast.Constant):  # a docstring
                        self.evaluate(value)
                case ast.For(target=ast.Name(id=name), iter=ast.Call(args=bounds), body=body):
                    self.repeat(name, [self.evaluate(bound) for bound in bounds], body)
                case ast.If(test=test, body=body, orelse=otherwise):
                    self.choose(self.evaluate(test), body, otherwise)
                case _:
                    raise LaneError(f"{self.program}, line {statement.lineno}: not in the lane language")

    def repeat(self, name: str, bounds: list[Any], body: Sequence[ast.stmt]) -> None:
        begin, end = (0, *bounds) if len(bounds) == 1 else bounds
        self.places.pop(name, None)  # what the name was before the loop
        if isinstance(begin, int) and isinstance(end, int) and end - begin <= _WRITTEN_OUT:
            for i in range(begin, end):
                self.names[name] = i
                self.build(body)
            return
        with loop(self.b, as_index(self.b, begin), as_index(self.b, end)) as i:
            self.names[name] = i
            self.build(body)

    def choose(self, test: Any, body: Sequence[ast.stmt], otherwise: Sequence[ast.stmt]) -> None:
        if not isinstance(test, ir.Value):
            self.build(body if test else otherwise)
        elif otherwise:
            with self.b.if_else(test) as (yes, no):
                with yes:
                    self.build(body)
                with no:
                    self.build(otherwise)
        else:
            with self.b.if_then(test):
                self.build(body)

    def evaluate(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.look_up(name)
            case ast.Tuple(elts=elements):
                return tuple(self.evaluate(element) for element in elements)
            case ast.BinOp(left=left, op=op, right=right):
                return binary(self.b, type(op), self.evaluate(left), self.evaluate(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return compare(self.b, type(op), self.evaluate(left), self.evaluate(right))
            case ast.UnaryOp(op=op, operand=operand):
                return unary(self.b, type(op), self.evaluate(operand))
            case ast.IfExp(test=test, body=body, orelse=otherwise):
                chosen = self.evaluate(test)
                assert not isinstance(chosen, ir.Value)
                return self.evaluate(body if chosen else otherwise)
            case ast.Call(func=ast.Name(id=name), args=arguments):
                called, given = self.look_up(name), [self.evaluate(argument) for argument in arguments]
                if isinstance(called, Word):
                    return called.build(self.b, *given)
                return self.unit.call(self.b, called, given)
        raise LaneError(f"{self.program}, line {node.lineno}: not in the lane language")

    def look_up(self, name: str) -> Any:
        if name in self.places:
            return self.b.load(self.places[name])
        if name in self.names:
            return self.names[name]
        if name in self.program.globals:
            return self.program.globals[name]
        return getattr(builtins, name)
