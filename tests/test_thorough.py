"""`search="thorough"`: no block worse than llama.cpp's under Σ importance·(row - decoded)², on every engine alike."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import quantmill
from quantmill import cli, qkernels
from quantmill.gguf_io import open_source
from quantmill.imatrix.store import load
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.engines import choose_engines
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.types import TYPES, QuantizeError, TooLargeError
from tests.support import data_kinds, oracle
from tests.support.in_triton import case_id, interpret
from tests.support.measure_models import EXAMPLE, tiny

CASES = sorted(encoders("thorough"))
_COLUMNS = 768


def errors(rows: np.ndarray, blocks: np.ndarray, type: str, importance: np.ndarray | None) -> np.ndarray:
    """Σ importance·(row - decoded)² of each block, decoded by llama.cpp, in float64."""
    weights = 1.0 if importance is None else importance.astype(np.float64)
    lost = weights * (oracle.dequantize(blocks, type).astype(np.float64) - rows) ** 2
    return lost.reshape(-1, TYPES[type].block).sum(1)


def test_the_rows_of_types_say_which_searches_there_are():
    for name, row in TYPES.items():
        for weighted in (False, True):
            assert row.is_searched_thoroughly(weighted) == ((name, weighted) in CASES), (name, weighted)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_block_is_worse(case):
    """All kinds of rows, each with two kinds of importance in turn; what float32 cannot tell apart is allowed."""
    type, weighted = case
    kinds = list(data_kinds.IMPORTANCE) if weighted else [None]
    for i, rows_kind in enumerate(data_kinds.ROWS):
        rows = data_kinds.rows(rows_kind, 20, _COLUMNS, seed=i)
        for kind in {kinds[i % len(kinds)], kinds[(i + 3) % len(kinds)]}:
            importance = None if kind is None else data_kinds.importance(kind, _COLUMNS, seed=i)
            try:
                start = qkernels.quantize(rows, type, importance)
            except TooLargeError:
                continue
            plain = errors(rows, start, type, importance)
            found = errors(
                rows, qkernels.quantize(rows, type, importance, search="thorough"), type, importance
            )
            worse = found > plain * (1 + 1e-5)
            assert not worse.any(), (rows_kind, kind, plain[worse], found[worse])


def quick(cases: set[str]) -> list[object]:
    """All cases; those that are not of these types, or without importance, in long runs only."""
    return [
        pytest.param(case, id=case_id(case), marks=[] if case[1] and case[0] in cases else pytest.mark.slow)
        for case in CASES
    ]


def few_hard_rows() -> np.ndarray:
    return np.concatenate([data_kinds.rows(kind, 1, 512) for kind in data_kinds.HARD_ROWS])


def few_found(type: str, weighted: bool, engine: str) -> np.ndarray:
    importance = data_kinds.importance("zeros", 512) if weighted else None
    return qkernels.quantize(few_hard_rows(), type, importance, engine=engine, search="thorough")


# One for each program, the cheapest.
@pytest.mark.parametrize(
    "case",
    quick(
        {
            "Q4_0",
            "Q8_0",
            "Q1_0",
            "Q2_0",
            "TQ2_0",
            "Q3_K",
            "Q6_K",
            "Q5_1",
            "Q2_K",
            "MXFP4",
            "NVFP4",
            "IQ2_XXS",
        }
    ),
)
def test_torch_gives_the_same_bytes(case):
    type, weighted = case
    difference = oracle.first_difference(
        few_found(type, weighted, "torch"), few_found(type, weighted, "cpu"), type
    )
    assert not difference


# The interpreter's time goes by operations, of which the searches of the K types have many: minutes.
QUICK_IN_TRITON = [("Q4_0", True), ("Q1_0", True), ("NVFP4", True)]


@pytest.fixture(scope="module")
def quick_in_triton(tmp_path_factory):
    return interpret(QUICK_IN_TRITON, tmp_path_factory.mktemp("triton"), few_hard_rows(), "thorough")


@pytest.mark.parametrize("case", QUICK_IN_TRITON, ids=case_id)
def test_triton_gives_the_same_bytes(case, quick_in_triton):
    found, expected = quick_in_triton[case_id(case)], few_found(*case, "cpu")
    assert not oracle.first_difference(found, expected, case[0])


def of_every_program() -> list[tuple[str, bool]]:
    """The shortest searches that have between them every program, but those of the default's searches, all of which
    test_programs.py runs: what is left are the same programs with other numbers."""
    chosen, known = [], {phase.program for encoder in encoders().values() for phase in encoder.phases}
    for case, encoder in sorted(encoders("thorough").items(), key=lambda item: len(item[1].phases)):
        programs = {phase.program for phase in encoder.phases}
        if not programs <= known:
            chosen.append(case)
            known |= programs
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in of_every_program() if case not in QUICK_IN_TRITON], ids=case_id
)
def test_every_program_of_triton_gives_the_same_bytes(case, tmp_path):
    found = interpret([case], tmp_path, few_hard_rows(), "thorough")[case_id(case)]
    assert not oracle.first_difference(found, few_found(*case, "cpu"), case[0])


@pytest.mark.parametrize("source", ["F16", "Q8_0"])
def test_stored_rows_are_searched_alike(source):
    raw = qkernels.quantize(data_kinds.rows("heavy-tailed", 17, 512), source)
    importance = data_kinds.importance("cubed", 512)
    (quantizer,) = row_quantizers(choose_engines("cpu")[0], 2, "thorough")
    found = quantizer.quantize(quantizer.load(raw, source), source, "Q8_0", importance)
    rows = qkernels.to_float32(raw, source)
    expected = qkernels.quantize(rows, "Q8_0", importance, search="thorough")
    assert np.array_equal(found, expected)


def test_the_sign_of_dmin_is_searched():
    """Sub-blocks far above zero: only minimums below nothing, with a negative dmin, keep their codes for the rest."""
    rows = (1 + 0.01 * np.random.default_rng(0).standard_normal((4, 256))).astype(np.float32)
    blocks = qkernels.quantize(rows, "Q4_K", search="thorough")
    dmin = blocks[:, 2:4].copy().view(np.float16)
    assert (dmin < 0).all()
    plain = errors(rows, qkernels.quantize(rows, "Q4_K"), "Q4_K", None)
    assert (errors(rows, blocks, "Q4_K", None) < 0.1 * plain).all()


def test_importance_counts_where_llama_cpp_ignores_it():
    rows = data_kinds.rows("normal", 8, _COLUMNS)
    importance = data_kinds.importance("heavy-tailed", _COLUMNS)
    for type in ("Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"):
        assert np.array_equal(qkernels.quantize(rows, type, importance), qkernels.quantize(rows, type))
        weighted = qkernels.quantize(rows, type, importance, search="thorough")
        alike = qkernels.quantize(rows, type, search="thorough")
        lost, lost_alike = (errors(rows, blocks, type, importance).sum() for blocks in (weighted, alike))
        assert lost < 0.97 * lost_alike, type


def test_an_unknown_search_is_named():
    with pytest.raises(QuantizeError, match="unknown search 'throrough'; did you mean thorough"):
        qkernels.quantize(data_kinds.rows("normal", 1, 256), "Q4_0", search="throrough")


def test_a_file_of_thorough_blocks(tmp_path, capsys):
    """The command and the Python call write the same, which the metadata name; without the option nothing changes."""
    model, imatrix = tiny("F16"), EXAMPLE / "imatrix.gguf"
    names = ("by_command", "by_python", "default")
    by_command, by_python, default = (tmp_path / f"{name}.gguf" for name in names)
    words = [
        "quantize",
        "--search",
        "thorough",
        "--imatrix",
        str(imatrix),
        str(model),
        str(by_command),
        "Q4_K_M",
    ]
    assert cli.main(words) == 0
    quantmill.quantize_model(model, by_python, "Q4_K_M", imatrix=imatrix, search="thorough")
    quantmill.quantize_model(model, default, "Q4_K_M", imatrix=imatrix)
    assert by_command.read_bytes() == by_python.read_bytes()
    with quantmill.open_gguf(by_command) as thorough, quantmill.open_gguf(default) as plain:
        assert thorough.metadata.value("quantmill.search") == "thorough"
        assert plain.metadata.value("quantmill.search") is None
        assert [(s.name, s.type) for s in thorough.specs()] == [(s.name, s.type) for s in plain.specs()]
        name = "blk.0.attn_q.weight"
        with open_source(model) as source:
            rows = qkernels.to_float32(np.ascontiguousarray(source.read(name)), "F16")
        columns = load(str(imatrix)).columns(name, rows.shape[1], 1)
        expected = quantmill.quantize(rows, "Q4_K", columns[0], search="thorough")
        assert np.array_equal(thorough.read(name), expected)
        assert not np.array_equal(plain.read(name), expected)


def test_the_plan_says_what_is_searched_as_by_default(capsys):
    def planned(*words):
        assert cli.main(["quantize", "--dry-run", "--json", *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)

    plan = planned("--search", "thorough", "--pure", tiny("F16"), "Q1_0")
    assert plan["search"] == "thorough"
    (warning,) = [text for text in plan["warnings"] if "--search" in text]
    assert re.match(
        r"--search thorough: for Q1_0 without importance the default's .*: \S+ and \d+ more$", warning
    )
    assert planned("--search", "thorough", tiny("F16"), "Q4_0")["warnings"] == []
    assert planned(tiny("F16"), "Q4_0")["search"] == "default"
    assert cli.main(["quantize", "--search", "best", str(tiny("F16")), "Q4_0"]) == 2
    assert "unknown search 'best'; known: default, thorough" in capsys.readouterr().err
