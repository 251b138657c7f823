"""The package as a Python user calls it; bytes and numbers against ggml's own functions."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import quantmill
from quantmill.jobs.errors import PlanError
from tests.support import oracle
from tests.support.measure_models import EXAMPLE, tiny

ROOT = Path(__file__).parent.parent


def rows_of(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected(rows, type, importance=None):
    """By ggml, of float32 [..., n_cols], matrix by matrix."""
    flat = rows.reshape(-1, rows.shape[-1])
    return oracle.quantize(flat, type, importance).reshape(*rows.shape[:-1], -1)


def test_all_that_is_promised_is_there():
    assert {"quantize", "dequantize", "TYPES", "get_type", "open_gguf", "convert", "quantize_model"} <= set(
        dir(quantmill)
    )
    assert all(getattr(quantmill, name) is not None for name in quantmill.__all__)
    assert all(
        getattr(quantmill, name).__doc__ for name in quantmill.__all__ if name not in ("__version__", "TYPES")
    )
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = quantmill.no_such_thing


def test_importing_it_imports_nothing_heavy():
    heavy = "{'numpy', 'torch', 'typer', 'gguf', 'llvmlite', 'quantmill.api'}"
    code = f"import sys, quantmill; print(quantmill.__version__, sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout == f"{quantmill.__version__} []\n"


def test_arrays_need_no_torch():
    code = (
        "import sys, numpy, quantmill\n"
        "for dtype in ('f4', 'f2'):\n"
        "    blocks = quantmill.quantize(numpy.ones((2, 256), dtype), 'Q4_K')\n"
        "quantmill.dequantize(blocks, 'Q4_K')\n"
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout == "False\n"


# Element types, shapes, spellings


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("type", ["Q4_K", "Q8_0", "IQ3_S", "F16"])
def test_tensors_of_every_float_type(kind, type):
    rows = torch.from_numpy(rows_of(5, 512)).to(getattr(torch, kind))
    blocks = quantmill.quantize(rows, type)
    assert (blocks.dtype, blocks.device.type) == (torch.uint8, "cpu")
    np.testing.assert_array_equal(blocks.numpy(), expected(rows.float().numpy(), type))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", ">f2", "f8"])
def test_arrays_of_every_float_type(kind):
    rows = rows_of(5, 512).astype(kind)
    blocks = quantmill.quantize(rows, "Q5_K")
    assert blocks.dtype == np.uint8
    np.testing.assert_array_equal(blocks, expected(rows.astype(np.float32), "Q5_K"))


@pytest.mark.parametrize("shape", [(512,), (3, 512), (4, 3, 512), (2, 2, 3, 512), (0, 512), (2, 0, 512)])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_leading_dimensions(shape, library):
    rows = rows_of(*shape)
    given = rows if library == "numpy" else torch.from_numpy(rows)
    blocks = quantmill.quantize(given, "Q4_K")
    assert tuple(blocks.shape) == (*shape[:-1], 2 * 144)
    if rows.size:
        np.testing.assert_array_equal(np.asarray(blocks), expected(rows, "Q4_K"))
    numbers = quantmill.dequantize(blocks, "Q4_K")
    assert tuple(numbers.shape) == shape
    assert type(numbers) is type(given)
    if rows.size:
        flat = expected(rows, "Q4_K").reshape(-1, 288)
        np.testing.assert_array_equal(np.asarray(numbers).reshape(-1, 512), oracle.dequantize(flat, "Q4_K"))


def test_experts_have_importance_of_their_own():
    rows, importance = rows_of(3, 4, 512), rows_of(3, 512, seed=1) ** 2
    blocks = quantmill.quantize(rows, "IQ2_XS", importance)
    for i in range(3):
        np.testing.assert_array_equal(blocks[i], oracle.quantize(rows[i], "IQ2_XS", importance[i]))
    shared = quantmill.quantize(torch.from_numpy(rows).half(), "Q3_K", torch.from_numpy(importance[0]))
    halves = rows.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(shared.numpy(), expected(halves, "Q3_K", importance[0]))
    np.testing.assert_array_equal(
        quantmill.quantize(rows[0], "Q3_K", importance[:1]), expected(rows[0], "Q3_K", importance[0])
    )


def test_what_users_pass():
    rows = rows_of(4, 512)
    wanted = expected(rows, "Q4_K")
    layer = torch.nn.Linear(512, 4, bias=False)
    layer.weight.data = torch.from_numpy(rows)
    for given in (rows, rows.tolist(), np.asfortranarray(rows), rows_of(4, 512)[:, :], layer.weight):
        for name in ("Q4_K", "q4_k", quantmill.get_type("q4_K"), gguf.GGMLQuantizationType.Q4_K):
            np.testing.assert_array_equal(np.asarray(quantmill.quantize(given, name)), wanted)
    wide = rows_of(4, 1024)
    np.testing.assert_array_equal(
        quantmill.quantize(wide[:, ::2], "Q8_0"), expected(wide[:, ::2].copy(), "Q8_0")
    )
    np.testing.assert_array_equal(
        quantmill.dequantize(wanted.tobytes(), "Q4_K").reshape(4, 512), oracle.dequantize(wanted, "Q4_K")
    )
    for device in ("cpu", torch.device("cpu"), "auto"):
        np.testing.assert_array_equal(quantmill.quantize(rows, "Q4_K", device=device, threads=1), wanted)


@pytest.mark.parametrize("type", list(quantmill.TYPES))
def test_there_and_back_for_every_type(type):
    rows, importance = rows_of(2, 512), np.ones(512, np.float32)
    blocks = quantmill.quantize(rows, type, importance)
    np.testing.assert_array_equal(blocks, oracle.quantize(rows, type, importance))
    back = rows if type == "F32" else oracle.dequantize(blocks, type)  # ggml has no function for F32
    np.testing.assert_array_equal(quantmill.dequantize(blocks, type), back)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: quantmill.quantize(rows_of(2, 512), "Q4_KM"), "unknown type 'Q4_KM'; did you mean Q4_K?"),
        (lambda: quantmill.get_type("q9"), "unknown type 'q9'"),
        (lambda: quantmill.quantize(rows_of(2, 500), "Q4_K"), "500 columns, Q4_K needs a multiple of 256"),
        (lambda: quantmill.quantize(np.ones((2, 256), np.int32), "Q4_K"), "rows are int32; expected float32"),
        (lambda: quantmill.quantize(torch.ones(2, 256, dtype=torch.int8), "Q4_K"), "rows are int8"),
        (lambda: quantmill.quantize(np.float32(1), "Q8_0"), "rows of shape [] have no columns"),
        (lambda: quantmill.quantize(rows_of(2, 256), "IQ1_S"), "IQ1_S needs importance"),
        (lambda: quantmill.quantize(rows_of(2, 256), "Q4_K", np.ones(255)), "importance has shape [255]"),
        (lambda: quantmill.quantize(rows_of(2, 256), "Q4_K", np.ones((3, 256))), "importance has shape [3, 256]"),
        (lambda: quantmill.quantize(rows_of(2, 256) * np.inf, "Q4_K"), "nothing can be quantized"),
        (lambda: quantmill.quantize(rows_of(2, 256), "Q4_K", device="tpu"), "unknown device 'tpu'"),
        (lambda: quantmill.quantize(rows_of(2, 256), "Q4_K", device="cpu,cpu"), "one device"),
        (lambda: quantmill.dequantize(np.zeros((2, 145), np.uint8), "Q4_K"), "whole blocks of 144 bytes"),
        (lambda: quantmill.dequantize(rows_of(2, 144), "Q4_K"), "must be uint8"),
        (lambda: quantmill.open_gguf(EXAMPLE / "config.json"), "not a GGUF file"),
        (lambda: quantmill.quantize_model("no-such-model.gguf", "x.gguf", "Q8_0"), "no such file"),
        (lambda: quantmill.convert(EXAMPLE / "config.json", "x.gguf"), "is no directory"),
    ],
    ids=range(17),
)  # fmt: skip
def test_what_cannot_be_done_is_one_plain_error(call, says):
    with pytest.raises(quantmill.QuantmillError) as raised:
        call()
    assert says in str(raised.value)


# Whole models


def test_a_file_from_end_to_end(tmp_path):
    converted = quantmill.convert(EXAMPLE, tmp_path / "f16.gguf", "f16")
    assert converted.type == "F16"
    result = quantmill.quantize_model(
        tmp_path / "f16.gguf",
        str(tmp_path / "small.gguf"),
        "q4_k_m",
        imatrix=EXAMPLE / "imatrix.gguf",
        tensor_types={"attn_v": "q8_0", "attn_": "q5_0"},
    )
    assert result.file_bytes == (tmp_path / "small.gguf").stat().st_size
    with quantmill.open_gguf(tmp_path / "small.gguf") as small, quantmill.open_gguf(tiny("F16")) as original:
        types = {spec.name: spec.type for spec in small.specs()}
        assert (types["blk.0.attn_v.weight"], types["blk.0.attn_q.weight"]) == ("Q8_0", "Q5_0")
        assert small.metadata["general.architecture"].value == "qwen3moe"
        weights = quantmill.dequantize(original.read("blk.0.attn_v.weight"), "F16")
        np.testing.assert_array_equal(small.read("blk.0.attn_v.weight"), oracle.quantize(weights, "Q8_0"))


def test_importance_and_what_was_lost(tmp_path):
    text = EXAMPLE / "evaluation.txt"
    collected = quantmill.collect_imatrix(
        tiny("F16"), text, tmp_path / "imatrix.gguf", ctx=64, chunks=2, threads=1, device="cpu"
    )
    assert collected.matrix.chunk_count == 2
    options = {"imatrix": tmp_path / "imatrix.gguf", "device": "cpu", "threads": 1}
    quantmill.quantize_model(tiny("F16"), tmp_path / "small.gguf", "IQ3_S", **options)
    run = quantmill.evaluate(
        tmp_path / "small.gguf", base=tiny("F16"), text=text, ctx=64, chunks=2, device="cpu"
    )
    assert run.models[0].divergence.kld.value > 0
    assert collected.perplexity[0] == pytest.approx(run.base.ppl.value, rel=1e-5)  # the same text by two ways


def test_all_problems_of_a_plan(tmp_path):
    with pytest.raises(PlanError) as raised:
        quantmill.quantize_model(tiny("Q8_0"), tmp_path / "out.gguf", "Q4_0")
    assert len(raised.value.problems) > 20
    assert str(raised.value).count("more like it") == 1


def test_the_public_names_are_typed(tmp_path):
    """A checker that sees only py.typed and the annotations finds the wrong call and nothing in the right ones."""
    (tmp_path / "user.py").write_text(
        "import numpy as np\nimport quantmill\n"
        "blocks: np.ndarray = quantmill.quantize(np.ones((2, 256), np.float32), 'Q4_K', device='cpu')\n"
        "row: quantmill.qkernels.types.QuantType = quantmill.TYPES['Q4_K']\n"
        "version: str = quantmill.__version__\n"
        "quantmill.quantize_model('a', 'b', 'Q4_K_M', imatrx='c')\n"
    )
    (tmp_path / "quantmill").symlink_to(ROOT)
    # No public name has a type of torch's or transformers'; reading theirs takes most of a minute.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = true\nfollow_imports = silent\n"
        "[mypy-torch.*,transformers.*]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    errors = [line for line in shown.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, shown.stdout
    assert 'user.py:6: error: Unexpected keyword argument "imatrx"' in errors[0]
