"""Files of lane programs are parsed by one thread at a time."""

import ast
import threading
from concurrent.futures import ThreadPoolExecutor

from quantmill.qkernels.lanes import syntax
from quantmill.qkernels.lanes.loader import program_path


def test_trees_are_made_one_at_a_time(monkeypatch):
    inside, most = 0, 0
    parse, switch = ast.parse, threading.Event()

    def counted(text):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        switch.wait(0.01)  # lets another thread in, if any may
        inside -= 1
        return parse(text)

    monkeypatch.setattr(syntax.ast, "parse", counted)
    path = program_path("programs.scale")
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(syntax.tree_of, [path] * 8))
    assert most == 1
    assert {ast.dump(tree) for tree in trees} == {ast.dump(parse(path.read_text(encoding="utf-8")))}
