"""Lane programs as syntax trees, and the walk through one: what the machines that write code of their own share.

A value is a Python number, known while compiling, or what the machine makes of one. Integer parameters that a caller
gives as constants are constants in the body too. Functions with a result are built where they are called.
"""

from __future__ import annotations

import ast
import builtins
import functools
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from quantmill.qkernels.lanes.syntax import tree_of

# A loop of so few rounds is written out, and its variable is a constant.
_WRITTEN_OUT = 2


# What operators make of two numbers that are known while compiling.
_FOLDED: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def folded(op: type[ast.AST], left: Any, right: Any) -> Any:
    """An operator's value of two Python numbers."""
    return _FOLDED[op](left, right)


class LaneError(Exception):
    """A lane program uses what the language does not have; a bug of ours."""


@dataclass(frozen=True)
class Word:
    """A word of the vocabulary: builds its value from the machine's builder and the operands."""

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
        # These live in memory or in variables; the others are what they were bound to.
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


class Body(ABC):
    """One call of a program: its statements, built one after another. A machine says how in the abstract methods."""

    def __init__(self, program: Program, arguments: Sequence[Any]) -> None:
        self.program = program
        self.names: dict[str, Any] = {}
        if len(arguments) != len(program.parameters):
            raise LaneError(f"{program} takes {len(program.parameters)} arguments, not {len(arguments)}")
        for name, value in zip(program.parameters, arguments, strict=True):
            self.bind(name, value)

    @abstractmethod
    def is_built(self, value: Any) -> bool:
        """Whether a value is the machine's, and not known while compiling."""

    @abstractmethod
    def bind(self, name: str, value: Any) -> None:
        """`name` is `value` from here on."""

    @abstractmethod
    def rebound(self, name: str) -> Any | None:
        """The present value of a name that is bound more than once, if it is one and has a value."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """A loop's variable of that name begins; what the name was before is over."""

    @abstractmethod
    def loop(self, name: str, begin: Any, end: Any, body: Sequence[ast.stmt]) -> None:
        """`body` with `name` from `begin` to `end` - 1."""

    @abstractmethod
    def branch(self, test: Any, body: Sequence[ast.stmt], otherwise: Sequence[ast.stmt]) -> None:
        """Either, by a truth value that is built."""

    @abstractmethod
    def binary(self, op: type[ast.operator], left: Any, right: Any) -> Any: ...

    @abstractmethod
    def compare(self, op: type[ast.cmpop], left: Any, right: Any) -> Any: ...

    @abstractmethod
    def unary(self, op: type[ast.unaryop], operand: Any) -> Any: ...

    @abstractmethod
    def call(self, called: Any, given: Sequence[Any]) -> Any:
        """The value of a Word or a Program."""

    def value(self) -> Any:
        *statements, last = self.program.body
        self.build(statements)
        if isinstance(last, ast.Return):
            return None if last.value is None else self.evaluate(last.value)
        self.build([last])
        return None

    def build(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.bind(name, self.evaluate(value))
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                    self.bind_all(targets, self.evaluate(value))
                case ast.Expr(value=value):
                    if not isinstance(value, ast.Constant):  # a docstring
                        self.evaluate(value)
                case ast.For(target=ast.Name(id=name), iter=ast.Call(args=bounds), body=body):
                    self._repeat(name, [self.evaluate(bound) for bound in bounds], body)
                case ast.If(test=test, body=body, orelse=otherwise):
                    self._choose(self.evaluate(test), body, otherwise)
                case _:
                    raise LaneError(f"{self.program}, line {statement.lineno}: not in the lane language")

    def bind_all(self, targets: Sequence[ast.expr], values: Sequence[Any]) -> None:
        for target, one in zip(targets, values, strict=True):
            assert isinstance(target, ast.Name)
            self.bind(target.id, one)

    def _repeat(self, name: str, bounds: list[Any], body: Sequence[ast.stmt]) -> None:
        begin, end = (0, *bounds) if len(bounds) == 1 else bounds
        self.forget(name)
        if isinstance(begin, int) and isinstance(end, int) and end - begin <= _WRITTEN_OUT:
            for i in range(begin, end):
                self.names[name] = i
                self.build(body)
            return
        self.loop(name, begin, end, body)

    def _choose(self, test: Any, body: Sequence[ast.stmt], otherwise: Sequence[ast.stmt]) -> None:
        if self.is_built(test):
            self.branch(test, body, otherwise)
        else:
            self.build(body if test else otherwise)

    def evaluate(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._look_up(name)
            case ast.Tuple(elts=elements):
                return tuple(self.evaluate(element) for element in elements)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(type(op), self.evaluate(left), self.evaluate(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self.compare(type(op), self.evaluate(left), self.evaluate(right))
            case ast.UnaryOp(op=op, operand=operand):
                return self.unary(type(op), self.evaluate(operand))
            case ast.IfExp(test=test, body=body, orelse=otherwise):
                chosen = self.evaluate(test)
                assert not self.is_built(chosen)
                return self.evaluate(body if chosen else otherwise)
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return self.call(self._look_up(name), [self.evaluate(argument) for argument in arguments])
        raise LaneError(f"{self.program}, line {node.lineno}: not in the lane language")

    def _look_up(self, name: str) -> Any:
        found = self.rebound(name)
        if found is not None:
            return found
        if name in self.names:
            return self.names[name]
        if name in self.program.globals:
            return self.program.globals[name]
        return getattr(builtins, name)
