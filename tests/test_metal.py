"""Metal kernels without a Mac: their text compiled as C++ and run, their bytes compared with llama.cpp's."""

import re
import sys

import numpy as np
import pytest
import torch

from quantmill.qkernels import device, device_decode, engines, flushing
from quantmill.qkernels.cpu_engine import quantize_stored
from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.encoders import encoder_of, encoders
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.lanes import metal, metal_decode, metal_source
from quantmill.qkernels.lanes import torch as torch_lanes
from quantmill.qkernels.types import TYPES, QuantizeError, TooLargeError, readable_type
from tests.support import data_kinds, oracle
from tests.support.in_triton import case_id
from tests.support.metal_device import Compiler, kernels_in
from tests.support.metal_rules import violations
from tests.test_dequantize import assert_same_bits, exact, random_blocks

CASES = list(encoders())
# Between them the kinds of searches, every word of the language, and a row's own sigma.
QUICK = [
    ("Q4_0", True),
    ("Q4_K", True),
    ("IQ3_XXS", True),
    ("IQ1_M", False),
    ("IQ4_XS", True),
    ("MXFP4", False),
]
QUICK_DECODED = ["Q6_K", "IQ2_S", "IQ1_M", "MXFP4", "FP8_E4M3"]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory) -> Compiler:
    """Kernels are kept by source, compiled and wrapped; whether they flush is the wrapper's."""
    return Compiler(tmp_path_factory.mktemp("metal"))


@pytest.fixture
def exactly(compiler, monkeypatch) -> Compiler:
    return with_compiler(compiler, False, monkeypatch)


@pytest.fixture
def zeroing(compiler, monkeypatch) -> Compiler:
    return with_compiler(compiler, True, monkeypatch)


def with_compiler(compiler: Compiler, flushing: bool, monkeypatch) -> Compiler:
    metal.library.cache_clear()
    metal._kernel.cache_clear()
    compiler.flushing = flushing
    monkeypatch.setattr(torch.mps, "compile_shader", compiler)
    return compiler


def blocks_of(type: str, weighted: bool, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    weights = None if importance is None else torch.from_numpy(importance)
    encoder = encoder_of(type, weighted)
    return metal.encode(TYPES[type], encoder, torch.from_numpy(rows), weights).numpy()


def difference(case: tuple[str, bool], n_rows: int, n_cols: int, kinds: list[str]) -> str:
    type, weighted = case
    for kind in kinds:
        rows = data_kinds.rows(kind, n_rows, n_cols)
        for important in ("cubed", "zeros") if weighted else (None,):
            importance = None if important is None else data_kinds.importance(important, n_cols)
            found = blocks_of(type, weighted, rows, importance)
            wrong = oracle.first_difference(found, oracle.quantize(rows, type, importance), type)
            if wrong:
                return f"{kind}, {important}: {wrong}"
    return ""


@pytest.mark.parametrize("case", QUICK, ids=case_id)
def test_bytes(case, exactly):
    assert not difference(case, 2, 512, list(data_kinds.HARD_ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_bytes_of_every_kind_of_row(case, exactly):
    """512 blocks of each kind or more, with either importance."""
    block = TYPES[case[0]].block
    assert not difference(case, 64, max(8 * block, 256), list(data_kinds.ROWS))


def decoded(type: str, blocks: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    row = readable_type(type)
    out = torch.full((len(blocks), row.block), float("nan"), dtype=dtype)
    metal_decode.decode(row, decoders()[type], torch.from_numpy(blocks), out)
    return out


def assert_decoded(type: str) -> None:
    blocks = random_blocks(type, 1, 600).reshape(600, -1)
    expected = exact(blocks, type)
    assert_same_bits(decoded(type, blocks, torch.float32).numpy(), expected)
    for dtype in (torch.float16, torch.bfloat16):
        found, nearest = decoded(type, blocks, dtype), torch.from_numpy(expected).to(dtype)
        assert torch.equal(found.nan_to_num(1.5), nearest.nan_to_num(1.5))


@pytest.mark.parametrize("type", QUICK_DECODED)
def test_numbers(type, exactly):
    assert_decoded(type)


@pytest.mark.slow
@pytest.mark.parametrize("type", [type for type in decoders() if type not in QUICK_DECODED])
def test_numbers_of_all(type, exactly):
    assert_decoded(type)


def assert_believed(type: str, monkeypatch) -> None:
    """By those who ask a device that makes zero of sub-normal numbers."""
    monkeypatch.setattr(device_decode, "FLUSHING", frozenset({"cpu"}))
    engine = Engine("metal", "cpu", "a test")
    for to in device_decode.DTYPES:
        assert not device_decode.decoding_fault(engine, readable_type(type), to)


@pytest.mark.parametrize("type", QUICK_DECODED)
def test_numbers_are_believed(type, zeroing, monkeypatch):
    assert_believed(type, monkeypatch)
    if type == "MXFP4":
        monkeypatch.setattr(device_decode, "FLUSHING", frozenset())
        assert "decoded to F32" in device_decode.decoding_fault(
            Engine("metal", "cpu", ""), TYPES[type], "F32"
        )


@pytest.mark.slow
@pytest.mark.parametrize("type", [type for type in decoders() if type not in QUICK_DECODED])
def test_numbers_of_all_are_believed(type, zeroing, monkeypatch):
    assert_believed(type, monkeypatch)


def sources(search: str) -> dict[str, str]:
    found = {
        case_id(case): metal_source.encoder_source(encoder) for case, encoder in encoders(search).items()
    }
    if search == "default":
        found["risky"] = metal_source.risky_source()
        for name, decoder in decoders().items():
            found[name] = metal_source.decoder_source(readable_type(name), decoder)
    return found


@pytest.mark.parametrize("search", ["default", pytest.param("thorough", marks=pytest.mark.slow)])
def test_the_text_keeps_to_the_rules_of_metal(search):
    for name, source in sources(search).items():
        assert not violations(source), f"{name}: {violations(source)[:5]}"
        assert kernels_in(source)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("float total", "double total"), "the word double"),
        (("0.0f", "0.0"), "the literal 0.0"),
        (("device const float*", "const float*"), "takes"),
        (("device const float* v,", "const float* v,"), "without an address space"),
        (("j = ", "thread = "), "the word thread"),
        (("fp contract(off)", "fp contract(on)"), "contraction"),
        (("[[buffer(0)]]", "[[buffer(1)]]"), "numbers its buffers"),
        (("return fits ? int(v)", "return fits ? trunc_to_int(v)"), "trunc_to_int calls trunc_to_int"),
        (("offset(", "goto("), "the word goto"),
        (("precise::divide", "mystery"), "calls mystery"),
    ],
)
def test_the_rules_find_what_breaks_them(change, found):
    source = metal_source.encoder_source(encoder_of("Q4_K", True))
    assert change[0] in source
    assert not violations(source)
    assert found in " ".join(violations(source.replace(*change)))


def test_groups_of_threads_are_what_every_gpu_has():
    """Apple's GPUs run 32 threads in step and at most 1024 in a group."""
    for group in (metal._GROUP, metal._WALKING_GROUP):
        assert group % 32 == 0
        assert group <= 1024


FLUSHED_KINDS = ["normal", "dead groups", "wide range", "1e-12", "1e-18", "1e-38"]


@pytest.mark.parametrize("case", [("Q4_K", True), ("Q4_0", False)], ids=case_id)
def test_rows_at_risk_are_all_that_flushing_changes(case, zeroing, monkeypatch):
    """On a device that makes zero of sub-normal numbers: some rows differ, and the quantizer gives them to the CPU."""
    assert_flushed(case, monkeypatch, FLUSHED_KINDS)
    assert difference(case, 6, 768, ["1e-38"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_rows_at_risk_of_all_types(case, zeroing, monkeypatch):
    assert_flushed(case, monkeypatch, list(data_kinds.ROWS))


def assert_flushed(case: tuple[str, bool], monkeypatch, kinds: list[str]) -> None:
    type, weighted = case
    monkeypatch.setattr(device, "FLUSHING", frozenset({"cpu"}))
    quantizer = device.DeviceQuantizer(Engine("metal", "cpu", "a test"))
    for kind in kinds:
        for important in ("heavy-tailed", "zeros", "1e-20", "1e10") if weighted else (None,):
            rows = data_kinds.rows(kind, 6, 768)
            importance = None if important is None else data_kinds.importance(important, 768)
            stored = rows.view(np.uint8)
            try:
                quantize_stored(stored, "F32", type, importance)
            except TooLargeError as error:  # 1e5 in the scales of some types
                with pytest.raises(TooLargeError, match=re.escape(str(error))):
                    quantizer.quantize(stored, "F32", type, importance)
                continue
            found = quantizer.quantize(stored, "F32", type, importance)
            expected = oracle.quantize(rows, type, importance)
            assert not oracle.first_difference(found, expected, type), (kind, important)


def test_machines_agree_on_rows_at_risk(exactly):
    rows = np.concatenate([data_kinds.rows(kind, 2, 512) for kind in data_kinds.ROWS])
    safe = flushing.bounds(None)
    assert safe is not None
    found = metal.risky(torch.from_numpy(rows), safe).numpy()
    size = np.abs(rows).reshape(len(rows), -1, 16)
    alone = (size != 0) & ((size < 2.0**-28) | (size > 2.0**100))
    top = size.max(2)
    expected = alone.any((1, 2)) | ((top != 0) & (top < 2.0**-12)).any(1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(torch_lanes.risky(torch.from_numpy(rows), safe).numpy(), expected)
    assert 0 < expected.sum() < len(rows)


def test_bounds_follow_the_importance():
    """Smaller importance wants larger weights, for the third of the one and the fifth power of the other meet."""

    def top(values: np.ndarray) -> float:
        safe = flushing.bounds(values.astype(np.float32))
        assert safe is not None
        return float(np.int32(safe[1]).view(np.float32))

    ones = np.ones(64)
    assert np.isclose(top(ones), 2.0 ** (-96 / 5))
    assert np.isclose(top(ones / 1024), 2.0 ** (-66 / 5))
    assert top(ones * 2**20) == 2.0**-24
    assert top(np.where(np.arange(64) % 16 == 3, 1, 2.0**-30)) == np.float32(2.0 ** (-96 / 5))
    assert np.isclose(top(np.zeros(64)), 2.0**-12)
    assert flushing.bounds(np.full(64, 2.0**-40, np.float32)) is None
    assert flushing.bounds(np.full(64, 2.0**50, np.float32)) is None


@pytest.mark.parametrize("value", ["1", "", "true"])
def test_fast_mathematics_is_refused(monkeypatch, value):
    monkeypatch.setenv("PYTORCH_MPS_FAST_MATH", value)
    monkeypatch.setattr(engines, "torch_devices", lambda: ["mps"])
    with pytest.raises(QuantizeError, match="PYTORCH_MPS_FAST_MATH is set"):
        engines.choose_engines("mps")
    metal.library.cache_clear()
    with pytest.raises(QuantizeError, match="unset it, or use --device cpu"):
        metal.library("kernel void f() {}")
    monkeypatch.setenv("PYTORCH_MPS_FAST_MATH", "0")
    assert engines.choose_engines("mps")[0].name == "metal"


def test_torch_without_a_compiler_says_so(monkeypatch):
    metal.library.cache_clear()
    monkeypatch.delattr(torch.mps, "compile_shader")
    with pytest.raises(QuantizeError, match=re.escape(f"torch {torch.__version__} cannot compile for Metal")):
        metal.library("")
    assert "torch" in sys.modules


def test_numbers_that_decoding_would_flush_are_told_apart():
    """Blocks whose scale is so small that a product with a code may be below 2^-126."""
    for type in ("MXFP4", "FP8_E4M3", "FP8_E5M2", "INT4", "INT8"):
        blocks = random_blocks(type, 300, 4)
        if type.startswith("INT"):  # random zero points make every number large
            blocks[:20, :4] = np.array([2.0**-145], "<f4").view(np.uint8)
        with np.errstate(all="ignore"):
            numbers = np.abs(exact(blocks, type)).reshape(300, -1)
        tiny = ((numbers > 0) & (numbers < 2.0**-126)).any(1)
        found = flushing.risky_blocks(torch.from_numpy(blocks), readable_type(type))
        assert found is not None
        assert tiny.any()
        assert not (tiny & ~found.numpy()).any(), type
    assert flushing.risky_blocks(torch.zeros(3, 144, dtype=torch.uint8), TYPES["Q4_K"]) is None
