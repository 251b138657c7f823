"""Execute the source of lane programs with the words of one engine."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantmill.qkernels.lanes.syntax import tree_of

_PACKAGE = Path(__file__).resolve().parent.parent
_PREFIX = "quantmill.qkernels."
# Folders whose files hold lane programs.
_FOLDERS = ("programs", "decode")
_IMPORT = re.compile(rf"^from {re.escape(_PREFIX)}((?:{'|'.join(_FOLDERS)})\.\w+) import ", re.MULTILINE)


def program_path(module: str) -> Path:
    """The file of a module of lane programs, "programs.scale" or "decode.grid"."""
    return _PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def _imported(node: ast.stmt) -> str | None:
    """The module of lane programs that a statement imports from, if it does."""
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(_PREFIX):
        return None
    name = (node.module or "").removeprefix(_PREFIX)
    return name if name.partition(".")[0] in _FOLDERS else None


def sources(module: str) -> list[Path]:
    """The files that a module's programs are made of: its own and those it imports from, sorted.

    Found without a syntax tree of each: every process that uses compiled code asks.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = program_path(waiting.pop())
        if path in found:
            continue
        found.add(path)
        waiting += _IMPORT.findall(path.read_text(encoding="utf-8"))
    return sorted(found)


def load(module: str, words: Mapping[str, Any], wrap: Callable[[Any], Any]) -> dict[str, Any]:
    """The functions of a module of lane programs with the vocabulary replaced by `words`.

    `wrap` turns each plain function into the engine's own kind (a program of the CPU's compiler, a Triton function).
    Line numbers and the file name stay those of the program, so that tracebacks and `inspect.getsource` point to it.
    A program function that is among the words is left out: the engine has its own way to do the same.
    """
    return _load(module, words, wrap, {})


def _load(
    module: str, words: Mapping[str, Any], wrap: Callable[[Any], Any], loaded: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """`loaded`: what was loaded for the same module before; a file that several import from is compiled once."""
    if module in loaded:
        return loaded[module]
    path = program_path(module)
    tree = tree_of(path)
    namespace: dict[str, Any] = {"__name__": _PREFIX + module, **words}
    body: list[ast.stmt] = []
    for node in tree.body:
        if (name := _imported(node)) is not None:
            assert isinstance(node, ast.ImportFrom)
            functions = _load(name, words, wrap, loaded)
            namespace.update(
                {a.asname or a.name: functions[a.name] for a in node.names if a.name in functions}
            )
        elif isinstance(node, ast.FunctionDef) and node.name not in words:
            body.append(node)
    tree.body = body
    exec(compile(tree, str(path), "exec"), namespace)
    for node in body:
        assert isinstance(node, ast.FunctionDef)
        namespace[node.name] = wrap(namespace[node.name])
    loaded[module] = namespace
    return namespace
