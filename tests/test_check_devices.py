"""quantmill devices --check and --bench, and how `auto` chooses, on devices that are the CPU in disguise."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quantmill.cli import main
from quantmill.commands.devices import app
from quantmill.jobs.check_devices import Checked, Limits, check, limits, slowest
from quantmill.qkernels import engines, trial
from quantmill.qkernels.engines import Engine, choose_engines
from tests.test_guarded import ENGINE, PLAIN, faults, spoiled  # noqa: F401

TRIED = ("Q8_0", "Q4_0")


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(trial, "_N_ROWS", 64)


def test_every_type_is_compared_and_timed(faults):  # noqa: F811
    rows = check([ENGINE, PLAIN], TRIED, seconds=0.01)
    assert [(row.device, row.engine, row.type) for row in rows] == [
        ("cpu", "torch", "Q8_0"),
        ("cpu", "torch", "Q4_0"),
        ("cpu", "cpu", "Q8_0"),
        ("cpu", "cpu", "Q4_0"),
    ]
    assert [row.identical for row in rows] == [True, True, None, None]
    # for Q4_0 with importance as well
    assert [row.blocks for row in rows] == [512, 1024, 0, 0]
    assert all(row.mweights > 0 and not row.fault for row in rows)


def test_a_device_that_is_wrong_and_one_that_fails(faults):  # noqa: F811
    rng = np.random.default_rng(0)
    faults.wrong = lambda blocks: spoiled(blocks, 0.01, rng)
    (wrong,) = check([ENGINE], ["Q8_0"], seconds=0.01)
    assert (wrong.identical, wrong.blocks) == (False, 512)
    assert 0 < wrong.different < 20
    faults.fails = lambda step: RuntimeError("out of order\nat line 3")
    (failed,) = check([ENGINE], ["Q8_0"], seconds=0.01)
    assert (failed.identical, failed.fault, failed.mweights) == (False, "RuntimeError: out of order", 0)


def test_what_limits_a_file():
    row = Checked("cuda:0", "triton", "Q4_K", True, 1, 0, 3000.0, 0, None, None)
    assert slowest(row, Limits(None, None)) == ("search", 3000.0)
    assert slowest(row, Limits(2.0, 24.0)) == ("disk", 1000.0)
    assert slowest(row, Limits(20.0, 4.0)) == ("PCIe", 2000.0)
    apart = replace(row, alone=9000.0)
    assert slowest(apart, Limits(20.0, 24.0)) == ("main memory", 3000.0)
    assert slowest(replace(apart, alone=2500.0), Limits(20.0, 24.0)) == ("search", 2500.0)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K", "IQ2_XS"])
def test_how_fast_a_search_is_alone(type, monkeypatch):
    """On the CPU as if it were CUDA; each turn is waited for."""
    waits = []
    engine = Engine("torch", "cpu", "a test")
    assert trial.speed_alone(engine, type, 0.01) is None
    monkeypatch.setattr(Engine, "kind", property(lambda engine: "cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(trial, "trial_rows", lambda type: (rows_of_f16(), np.ones(512, np.float32)))
    found = trial.speed_alone(engine, type, 0.01)
    assert found is not None
    assert 0 < found < 1000
    assert len(waits) > 1


def rows_of_f16():
    return np.random.default_rng(3).standard_normal((8, 512), np.float32).astype("<f2").view(np.uint8)


def test_the_commands(faults, monkeypatch, tmp_path, capsys):  # noqa: F811
    monkeypatch.setattr(engines, "available_engines", lambda: (ENGINE, PLAIN))
    monkeypatch.setattr("quantmill.jobs.check_devices._PROBE_BYTES", 1 << 20)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["--check", "--types", "Q8_0"])
    assert done.exit_code == 0, done.output
    assert "identical, 512 blocks" in done.output
    assert "the judge" in done.output
    assert "To paste into a report:" in done.output
    found = json.loads(CliRunner().invoke(app, ["--bench", "--types", "q8_0,Q8_0", "--json"]).stdout)
    about, *devices = found["about"]
    assert about.startswith("quantmill ")
    for line, facts in zip(
        devices, (("engine torch", "torch ", "programs "), ("python ", "llvmlite ")), strict=True
    ):
        assert all(fact in line for fact in facts)
    assert len(found["types"]) == 2
    assert {row["limited_by"] for row in found["types"]} <= {"disk", "search"}
    assert limits(PLAIN).upload is None
    assert not list(tmp_path.glob("tmp*"))
    faults.wrong = lambda blocks: spoiled(blocks, 0.01, np.random.default_rng(0))
    assert main(["devices", "--check", "--types", "Q8_0"]) == 1
    printed = capsys.readouterr()
    assert "blocks compared are not the CPU's" in printed.out
    assert "Q8_0 on cpu; the CPU does these" in printed.err


def test_a_folder_that_cannot_be_written_tells_nothing_of_the_disk(monkeypatch):
    def refused(dir):
        raise PermissionError(dir)

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr("quantmill.jobs.check_devices._PROBE_BYTES", 1 << 20)
    assert limits(PLAIN).disk is None


def test_types_without_a_check_are_refused(capsys):
    assert main(["devices", "--types", "Q8_0"]) == 2
    assert "add --check or --bench" in capsys.readouterr().err
    for name in ("F16", "q9", "Q8_0,"):
        assert main(["devices", "--check", "--types", name]) == 2
        assert f"--types {name}: unknown type" in capsys.readouterr().err


@pytest.fixture
def mac(monkeypatch):
    monkeypatch.setattr(engines, "torch_devices", lambda: ["mps"])
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv("PYTORCH_MPS_FAST_MATH", raising=False)


@pytest.mark.parametrize(("metal", "device"), [(400.0, "mps"), (90.0, "cpu"), (0.0, "cpu")])
def test_auto_on_a_mac_is_the_faster(mac, monkeypatch, metal, device):
    monkeypatch.setattr(trial, "speeds", lambda engines: {"mps": metal, "cpu": 120.0})
    (engine,) = choose_engines("auto")
    assert engine.device == device
    assert engine.why == f"Metal {metal:.0f}, the CPU 120 Mweights/s of Q4_K, tried once"


def test_auto_on_a_mac_that_must_not_use_its_gpu(mac, monkeypatch):
    monkeypatch.setenv("PYTORCH_MPS_FAST_MATH", "1")
    (engine,) = choose_engines("auto")
    assert engine.device == "cpu"
    assert "PYTORCH_MPS_FAST_MATH is set" in engine.why
    monkeypatch.setattr(engines, "_installed", lambda module: False)
    assert "needs torch" in choose_engines("auto")[0].why


def test_devices_are_tried_once(faults, monkeypatch):  # noqa: F811
    calls = []

    def fast(engine, type, *more):
        calls.append(engine.device)
        return (300.04, []) if len(calls) == 1 else (0.0, ["it failed"])

    monkeypatch.setattr(trial, "speed", fast)
    pair = (Engine("torch", "cpu", ""), Engine("cpu", "cpu", ""))
    monkeypatch.setattr(Engine, "kind", property(lambda engine: engine.name))
    assert trial.speeds(pair) == {"torch": 300.0, "cpu": 0.0}
    assert trial.speeds(pair) == {"torch": 300.0, "cpu": 0.0}
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["cuda:0", "cuda:1"], ["cuda:0", "cuda:1"]),
        (["xpu:0"], ["xpu:0"]),
        (["cuda:0", "xpu:0", "xpu:1"], ["cuda:0"]),
        ([], ["cpu"]),
    ],
)
def test_auto_takes_all_devices_of_a_kind(monkeypatch, there, taken):
    monkeypatch.setattr(engines, "torch_devices", lambda: there)
    monkeypatch.setattr(engines, "gpu_driver_present", lambda: True)
    monkeypatch.setattr(sys, "platform", "linux")
    chosen = choose_engines("auto")
    assert [engine.device for engine in chosen] == taken
    if len(taken) > 1:
        assert all("2 devices share the work" in engine.why for engine in chosen)
