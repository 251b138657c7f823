"""Which engine serves which device, and rows through a device in slabs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quantmill import qkernels
from quantmill.qkernels import device, engines
from quantmill.qkernels import rows as row_work
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.qkernels.types import NotFiniteError, QuantizeError, TooLargeError
from tests.support import data_kinds, oracle
from tests.support.in_triton import require_triton

ON_CPU = Engine("torch", "cpu", "a test")


@pytest.fixture
def three_devices(monkeypatch):
    monkeypatch.setattr(engines, "torch_devices", lambda: ["cuda:0", "cuda:1", "mps"])
    monkeypatch.setattr(engines, "gpu_driver_present", lambda: True)
    monkeypatch.setattr(engines, "_installed", lambda module: True)
    monkeypatch.setattr(sys, "platform", "linux")


def test_auto_without_a_driver_is_the_cpu_and_loads_no_torch():
    code = (
        "import sys; from quantmill.qkernels import engines; engines.gpu_driver_present = lambda: False;"
        "(e,) = engines.choose_engines(); assert e.name == 'cpu' and 'driver' in e.why, e;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_takes_the_gpus(three_devices):
    assert [(engine.name, engine.device) for engine in choose_engines()] == [
        ("triton", "cuda:0"),
        ("triton", "cuda:1"),
    ]


def test_auto_leaves_few_weights_to_the_cpu(three_devices, monkeypatch):
    """Those that it has done before torch is there; torch is not asked."""
    monkeypatch.setattr(engines, "torch_devices", lambda: pytest.fail("torch was asked"))
    (few,) = choose_engines("auto", 4 * engines.WEIGHTS_BEFORE_A_GPU, 4)
    assert (few.device, few.why) == ("cpu", "240 Mweights are done before a GPU begins")
    monkeypatch.setattr(engines, "torch_devices", lambda: ["cuda:0"])
    for engine in (
        *choose_engines("auto", 4 * engines.WEIGHTS_BEFORE_A_GPU + 1, 4),
        *choose_engines("cuda", 1, 4),
    ):
        assert engine.device == "cuda:0"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("cpu", [("cpu", "cpu")]),
        ("mps", [("metal", "mps")]),
        ("cuda", [("triton", "cuda:0")]),
        ("cuda:0,cuda:1", [("triton", "cuda:0"), ("triton", "cuda:1")]),
    ],
)
def test_asked_for_devices(three_devices, asked, found):
    assert [(engine.name, engine.device) for engine in choose_engines(asked)] == found


@pytest.mark.parametrize(
    ("missing", "name", "hint"),
    [("torch", "cpu", "quantmill[gpu]"), ("triton", "torch", "pip install triton")],
)
def test_without_a_package(three_devices, monkeypatch, missing, name, hint):
    monkeypatch.setattr(engines, "_installed", lambda module: module != missing)
    engine, *_ = choose_engines()
    assert engine.name == name
    assert hint in engine.why


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cuda:7", "cuda:7 is not there; torch finds cuda:0, cuda:1, mps, cpu"),
        ("xpu", "xpu is not there"),
        ("gpu", "unknown device 'gpu'; devices: auto, cpu, cuda"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cuda:0,", "unknown device ''"),
        ("cuda,cuda:1,cuda:0", "names cuda:0 twice"),
        ("cpu, cpu", "names cpu twice"),
        ("auto,cpu", "auto takes all that there are"),
    ],
)
def test_refuses(three_devices, asked, message):
    with pytest.raises(QuantizeError, match=message):
        choose_engines(asked)


def test_devices_command():
    from quantmill.commands.devices import app

    found = json.loads(CliRunner().invoke(app, ["--json"]).output)
    assert found["devices"][-1]["device"] == "cpu"
    assert found["auto"]["device"] in {row["device"] for row in found["devices"]}
    table = CliRunner().invoke(app, [])
    assert table.exit_code == 0
    assert found["auto"]["why"].split()[0] in table.output


@pytest.mark.parametrize("source", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize(
    ("type", "weighted"), [("Q4_K", True), ("Q4_0", True), ("Q8_0", False), ("F16", False)]
)
def test_stored_rows_through_a_device(monkeypatch, source, type, weighted):
    """Slabs of 7 rows, the last one short; rows travel as they are stored."""
    monkeypatch.setattr(device, "slab_rows", lambda *arguments: 7)
    raw = qkernels.quantize(data_kinds.rows("heavy-tailed", 17, 512), source)
    importance = data_kinds.importance("cubed", 512) if weighted else None
    found = device.DeviceQuantizer(ON_CPU).quantize(raw, source, type, importance)
    expected = oracle.quantize(qkernels.to_float32(raw, source), type, importance)
    assert not oracle.first_difference(found, expected, type)


@pytest.mark.parametrize(
    ("engine", "count"),
    [
        (Engine("triton", "cuda:0", ""), 2),
        (Engine("triton", "xpu:1", ""), 2),
        (Engine("metal", "mps", ""), 1),
        (Engine("cpu", "cpu", ""), 1),
    ],
    ids=lambda v: getattr(v, "device", str(v)),
)
def test_two_quantizers_share_a_gpu(engine, count):
    """They are made when they are used, so no device is needed."""
    if engine.name == "triton":
        require_triton()
    assert len(row_work.row_quantizers(engine, 3)) == count


def test_engines_are_chosen_by_their_rows_only():
    """No code outside engines.py asks for the name of an engine."""
    names = "|".join(row.name for row in engines.ENGINES)
    asked = re.compile(rf"engine(\.name)?\)? *(==|!=|in) *[(\[{{]?[\"']({names})")
    folder = Path(engines.__file__).parent.parent
    wrong = [
        f"{file.relative_to(folder)}: {found[0]}"
        for room in ("qkernels", "jobs", "commands", "models", "recipe", "imatrix", "measure")
        for file in (folder / room).rglob("*.py")
        if (found := asked.search(file.read_text()))
    ]
    assert not wrong


@pytest.mark.parametrize("row", engines.ENGINES, ids=lambda row: row.name)
def test_an_engine_module_offers_what_the_rows_promise(row):
    if "triton" in row.needs:
        require_triton()
    module = row.load()
    assert all(callable(getattr(module, name)) for name in ("quantize", "decode", "quantizers"))
    assert callable(row.lanes(row.encoder).encode)
    assert callable(row.lanes(row.decoder).decode)


def test_an_error_carries_its_row():
    rows = data_kinds.rows("normal", 40, 512)
    rows[31, 4] = np.inf
    for engine in ("cpu", "torch"):
        with pytest.raises(NotFiniteError) as caught:
            qkernels.quantize(rows, "Q4_K", engine=engine)
        assert (caught.value.value, caught.value.row, caught.value.column) == (np.inf, 31, 4)
    rows[31, 4] = 1e9
    for engine in ("cpu", "torch"):
        with pytest.raises(TooLargeError) as large:
            qkernels.quantize(rows, "Q4_K", engine=engine)
        assert large.value.row == 31


def test_an_unknown_engine_is_named():
    with pytest.raises(QuantizeError, match="unknown engine 'npu'; engines: cpu, triton, metal, torch"):
        qkernels.quantize(data_kinds.rows("normal", 1, 256), "Q4_K", engine="npu")


def test_slabs_fit_the_memory(monkeypatch):
    """Twice the memory, about twice the rows; never none."""
    rows = []
    for free in (1 << 24, 1 << 25, 1):
        monkeypatch.setattr(device, "_slab_bytes", lambda device, free=free: free)
        rows.append(device.slab_rows(qkernels.TYPES["IQ2_XXS"], 4096, True, torch.device("cpu")))
    assert rows[1] in (2 * rows[0], 2 * rows[0] + 1)
    assert rows[0] * 4096 * 4 < 1 << 24
    assert rows[2] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_names_the_weight_that_is_not_finite(monkeypatch, value):
    monkeypatch.setattr(device, "slab_rows", lambda *arguments: 7)
    rows = data_kinds.rows("normal", 17, 512)
    rows[15, 300] = value
    quantizer = device.DeviceQuantizer(ON_CPU)
    with pytest.raises(QuantizeError, match="row 15, column 300"):
        quantizer.quantize(rows.view(np.uint8), "F32", "Q4_K")
    with pytest.raises(QuantizeError, match="row 15, column 300"):
        qkernels.quantize(rows, "Q4_K", engine="torch")


def test_refuses_what_no_block_can_hold():
    quantizer = device.DeviceQuantizer(ON_CPU)
    rows = data_kinds.rows("normal", 3, 512)
    with pytest.raises(QuantizeError, match="IQ2_XXS needs importance"):
        quantizer.quantize(rows.view(np.uint8), "F32", "IQ2_XXS")
    importance = data_kinds.importance("ones", 512)
    importance[5] = np.nan
    with pytest.raises(QuantizeError, match="importance: nan"):
        quantizer.quantize(rows.view(np.uint8), "F32", "Q4_K", importance)
    rows[2, 7] = 1e9
    with pytest.raises(QuantizeError, match="row 2: weights too large for the scales of Q4_K"):
        quantizer.quantize(rows.view(np.uint8), "F32", "Q4_K")


def test_triton_without_a_gpu_says_so():
    require_triton()
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(QuantizeError, match="needs a CUDA, ROCm or XPU device"):
        qkernels.quantize(data_kinds.rows("normal", 1, 256), "Q4_K", engine="triton")
