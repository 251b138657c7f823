"""What is known of the files of lane programs: their trees, made one at a time, what they import, their parameters."""

import ast
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes import syntax
from quantmill.qkernels.lanes.loader import program_path, sources
from quantmill.qkernels.lanes.parameters import parameters_of


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


def imported_programs(module: str) -> set[str]:
    """The modules of lane programs behind one, itself included, as their syntax trees say."""
    inside = {module}
    for node in ast.walk(ast.parse(program_path(module).read_text(encoding="utf-8"))):
        name = ((isinstance(node, ast.ImportFrom) and node.module) or "").removeprefix("quantmill.qkernels.")
        if name.startswith(("programs.", "decode.")):
            inside |= imported_programs(name)
    return inside


def test_sources_are_all_files_that_programs_are_made_of():
    for module in ("programs.grid", "programs.thorough_scale_min", "decode.super_blocks"):
        expected = {program_path(name) for name in imported_programs(module)}
        assert len(expected) > 1
        assert sources(module) == sorted(expected)


def test_parameters_are_what_inspect_says():
    for encoder in encoders().values():
        for phase in encoder.phases:
            assert parameters_of(phase.program) == tuple(inspect.signature(phase.program).parameters)
