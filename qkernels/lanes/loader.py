"""Execute the source of lane programs with the words of one engine."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"
_VOCABULARY = "quantmill.qkernels.lanes.vocabulary"
_PROGRAM = "quantmill.qkernels.programs."


def program_path(family: str) -> Path:
    return PROGRAMS / f"{family}.py"


def sources(family: str) -> list[Path]:
    """The files that a family's programs are made of: its own and those it imports from, sorted."""
    found: set[Path] = set()
    waiting = [family]
    while waiting:
        path = program_path(waiting.pop())
        if path in found:
            continue
        found.add(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PROGRAM):
                waiting.append(node.module[len(_PROGRAM) :])  # type: ignore[index]
    return sorted(found)


def load(family: str, words: Mapping[str, Any], wrap: Callable[[Any], Any]) -> dict[str, Any]:
    """The functions of `qkernels/programs/<family>.py` with the vocabulary replaced by `words`.

    `wrap` turns each plain function into the engine's own kind (a program of the CPU's compiler, a Triton function).
    Line numbers and the file name stay those of the program, so that tracebacks and `inspect.getsource` point to it.
    A program function that is among the words is left out: the engine has its own way to do the same.
    """
    return _load(family, words, wrap, {})


def _load(
    family: str, words: Mapping[str, Any], wrap: Callable[[Any], Any], loaded: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """`loaded`: what was loaded for the same family before; a file that several import from is compiled once."""
    if family in loaded:
        return loaded[family]
    path = program_path(family)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": f"{_PROGRAM}{family}", **words}
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PROGRAM):
            functions = _load(node.module[len(_PROGRAM) :], words, wrap, loaded)  # type: ignore[index]
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
    loaded[family] = namespace
    return namespace
