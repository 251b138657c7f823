"""Every Triton kernel compiled ahead of time for GPUs that are not here.

The table of registers is tests/data/triton_registers.json; after a change that is meant, write it anew with
`python -m tests.test_triton_compile` and commit both.
"""

import json
import re
import warnings
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from bench.compile_ahead import (  # noqa: E402
    TARGETS,
    Compiled,
    all_kernels,
    compile_columns,
    compile_for,
    decoding_kernel,
    run_tool,
    searching_kernels,
)
from quantmill.qkernels.decoders import decoders  # noqa: E402
from quantmill.qkernels.types import TYPES  # noqa: E402

TABLE = Path(__file__).with_name("data") / "triton_registers.json"
MOST_REGISTERS = 168
KERNELS = {kernel.name: kernel for kernel in all_kernels()}


def inexact(result: Compiled, target: str) -> set[str]:
    """What in the code does not round as the reference does."""
    if target.startswith("sm_"):
        found = re.findall(
            r"\bfma\.rn\S*|\bdiv\.(?!rn\.f32)\S*f32|\bsqrt\.(?!rn\.f32)\S*|\S*\.ftz\S*", result.text
        )
        assert result.cubin is not None
        # made of a comparison and a choice, which keep the sign of a zero; a maximum with +0 gives +0 all the same
        minimum = r"FMNMX\S* \w+, (?:RZ, -?\w+|-?\w+, RZ), PT"
        return {*found, *re.findall(minimum, run_tool("nvdisasm", result.cubin, "-c"))}
    # the machine code's v_fma are the steps of exact division and root; what could fuse is in the LLVM IR
    return set(
        re.findall(r"llvm\.fma\S*|llvm\.fmuladd\S*|\bcontract\b|\bfast\b|\bafn\b|\barcp\b", result.llir)
    )


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """Triton's cache for this run alone: the kernels of the working tree are compiled, not remembered."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton-cache"))
        yield


def test_kernels_have_names_of_their_own():
    assert len(KERNELS) == len(list(all_kernels())) > 100


@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90", "gfx942"])
def test_kernels_are_exact_and_fit_registers(own_cache, target):
    """Two roundings stay two: no fused multiply-add, no approximate division or root, no flushed sub-normals; nothing
    spills; registers are those of the table, of one version of Triton. One test, so that of workers side by side one
    compiles a target."""
    results = {name: compile_for(kernel, TARGETS[target]) for name, kernel in KERNELS.items()}
    assert not {name: wrong for name, result in results.items() if (wrong := inexact(result, target))}
    assert not {name: result.spills for name, result in results.items() if result.spills}
    assert not {name: r.registers for name, r in results.items() if r.registers > MOST_REGISTERS}
    recorded = json.loads(TABLE.read_text())
    table = {name: row[target] for name, row in recorded["registers"].items()}
    assert table.keys() == results.keys()
    if recorded["triton"] == triton.__version__:
        assert {name: result.registers for name, result in results.items()} == table
    else:
        warnings.warn(f"registers are recorded for Triton {recorded['triton']}", stacklevel=1)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_kernels_of_thorough_searches_too(own_cache, target):
    """They go through what the default's kernels go through, but for the table of registers."""
    for kernel in searching_kernels("thorough"):
        if kernel.name not in KERNELS:
            result = compile_for(kernel, TARGETS[target])
            assert not inexact(result, target), kernel.name
            assert (result.spills, result.registers <= MOST_REGISTERS) == (0, True), kernel.name


@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90", "gfx942"])
def test_the_kernels_of_columns_too(own_cache, target):
    """A column's slopes stay in registers: a spill would be paid for by each of 64 columns."""
    for name, result in compile_columns(TARGETS[target]).items():
        assert not inexact(result, target), name
        assert (result.spills, result.registers <= MOST_REGISTERS) == (0, True), name


@pytest.mark.parametrize(("numbers", "conversion"), [("*fp16", "cvt.rn.f16"), ("*bf16", "cvt.rn.bf16")])
def test_halves_are_rounded_to_the_nearest(own_cache, numbers, conversion):
    kernel = decoding_kernel(TYPES["Q4_K"], decoders()["Q4_K"], numbers)
    assert conversion in compile_for(kernel, TARGETS["sm_90"]).text


def write_table() -> None:
    registers = {
        name: {target: compile_for(kernel, TARGETS[target]).registers for target in TARGETS}
        for name, kernel in sorted(KERNELS.items())
    }
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in registers.items())
    TABLE.write_text(f'{{"triton": "{triton.__version__}", "registers": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    write_table()
