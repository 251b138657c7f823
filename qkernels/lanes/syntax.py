"""Syntax trees of the files of lane programs."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

_ONE_AT_A_TIME = threading.Lock()


def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a Python file.

    Two threads that compile a type's searches side by side must not meet here: before Python 3.12 the parser counts the
    depth of all its trees in one place, and what it counts of another thread's ends in a SystemError.
    """
    text = path.read_text(encoding="utf-8")
    with _ONE_AT_A_TIME:
        return ast.parse(text)
