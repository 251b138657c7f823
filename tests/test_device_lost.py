"""A device that is lost while a model runs: one line that says so and how to go on, and nothing finished is lost."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from quantmill import cli
from quantmill.jobs.going_on import StoppedError, telling
from quantmill.models.errors import ModelError, said_of_transformers
from quantmill.qkernels.torch_errors import device_failed, in_words, out_of_memory
from tests.support.measure_models import EXAMPLE, directory, tiny

LOST = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API"
TEXT = EXAMPLE / "evaluation.txt"


def lost() -> RuntimeError:
    """As torch raises it, which has a class for it since 2.8."""
    return getattr(torch, "AcceleratorError", RuntimeError)(LOST)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA driver error: device-side assert triggered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "HIP error: the operation cannot be performed in the present state",
        "HIPBLAS_STATUS_INTERNAL_ERROR when calling `hipblasSgemm`",
        "miopenStatusUnknownError",
        "level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
        "Native API failed. Native API returns: -1 (PI_ERROR_DEVICE_NOT_FOUND)",
        "MPS error: command buffer exited with error status",
    ],
)
def test_what_a_lost_device_says(said):
    line = device_failed(RuntimeError(f"{said}\nmore"))
    assert line == f"the device failed ({said}); --device cpu does the work without it"


@pytest.mark.parametrize(
    "said",
    ["size mismatch, m1: [4 x 5]", "mat1 and mat2 shapes cannot be multiplied", "", "expected an error here"],
)
def test_other_errors_are_no_devices(said):
    assert in_words(RuntimeError(said)) == ""


def test_memory_comes_first():
    error = RuntimeError("CUDA error: out of memory")
    assert in_words(error) == out_of_memory(error) != ""


def test_a_lost_device_is_no_fault_of_the_files():
    with pytest.raises(RuntimeError, match="launch failure") as raised, said_of_transformers("the words"):
        raise lost()
    assert not isinstance(raised.value, ModelError)


def test_the_outer_advice_counts():
    with pytest.raises(StoppedError) as raised, telling(lambda: "outer"), telling(lambda: "inner"):
        raise lost()
    assert str(raised.value).endswith("does the work without it; outer")
    with pytest.raises(StoppedError, match=r"^not enough memory; advice$"), telling(lambda: "advice"):
        raise MemoryError
    with pytest.raises(RuntimeError, match=r"^a bug$"), telling(lambda: "advice"):
        raise RuntimeError("a bug")


class Losing:
    """Stands before the activation of feed-forward networks: counts; from one call on the device is lost."""

    def __init__(self, last: int | None = None) -> None:
        self.silu = functional.silu
        self.calls, self.last = 0, last

    def __call__(self, *arguments, **named):
        if self.calls == self.last:
            raise lost()
        self.calls += 1
        return self.silu(*arguments, **named)


@dataclass(frozen=True)
class Command:
    """What is written, and the words."""

    output: str
    words: str


COMMANDS = {
    "evaluate": Command("r.json", f"evaluate --base BASE QUANT -f {TEXT} -c 64 --chunks 8"),
    "imatrix": Command("im.gguf", f"imatrix BASE -f {TEXT} -c 64 --chunks 8 -ofreq 1"),
    "compensate": Command(
        "c.gguf", f"quantize --compensate --effort fast --calibration {TEXT} --chunks 4 BASE OUT Q4_0"
    ),
    "polish": Command(
        "p.gguf", f"polish COARSE --base BASE --calibration {EXAMPLE / 'calibration.txt'} --chunks 12"
    ),
}


@functools.cache
def coarse() -> Path:
    """A file that polish makes better."""
    path = directory() / "coarse.gguf"
    assert cli.main(["quantize", "--force", str(tiny("F16")), str(path), "Q2_K"]) == 0
    return path


def arguments(command: Command, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = {"BASE": tiny("F16"), "QUANT": tiny("Q8_0"), "COARSE": coarse(), "OUT": folder / command.output}
    words = [str(names.get(word, word)) for word in command.words.split()]
    return [*words, "-t", "1", *([] if "OUT" in command.words else ["-o", str(names["OUT"])])]


def require_same(path: Path, whole: Path) -> None:
    if path.suffix == ".json":
        one, other = (json.loads(file.read_text()) for file in (path, whole))
        assert {**one, "date": "", "command": ""} == {**other, "date": "", "command": ""}
    else:
        assert path.read_bytes() == whole.read_bytes()


@functools.cache
def whole(name: str) -> tuple[Path, int]:
    """What a run on a device that is not lost writes, and how often it comes by."""
    folder = directory() / f"not-lost-{name}"
    counting = Losing()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(functional, "silu", counting)
        assert cli.main(arguments(COMMANDS[name], folder)) == 0
    return folder / COMMANDS[name].output, counting.calls


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param(name, share, marks=() if share == 0.5 else pytest.mark.slow)
        for name in COMMANDS
        for share in (0, 0.25, 0.5, 0.75, 0.99)
    ],
)
def test_a_device_is_lost_in_a_job(tmp_path, capsys, monkeypatch, name, share):
    expected, calls = whole(name)
    command, losing = COMMANDS[name], Losing(int(share * calls))
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(functional, "silu", losing)
        assert cli.main(arguments(command, tmp_path / "run")) == 1
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert last.startswith("error: the device failed (CUDA error: unspecified launch failure); --device cpu")
    assert "Traceback" not in said
    left = [path.name for path in (tmp_path / "run").iterdir()]
    assert command.output not in left
    assert ("--resume" in last) == bool(left), said
    assert left or share < 0.9, said
    assert cli.main([*arguments(command, tmp_path / "run"), *(["--resume"] if left else [])]) == 0
    require_same(tmp_path / "run" / command.output, expected)


@pytest.mark.parametrize("stage", ["compensate", "polish"])
def test_a_device_is_lost_in_a_squeeze(tmp_path, capsys, monkeypatch, stage):
    """Which does not leave that candidate out and go on without it."""

    def fail(*arguments):
        with telling(lambda: "go on with --resume"):
            raise lost()

    monkeypatch.setattr(f"quantmill.jobs.{stage}.run", fail)
    texts = f"--calibration {EXAMPLE / 'calibration.txt'} --evaluation {TEXT} --chunks 2"
    shorter = f"--imatrix-chunks 2 --learn-chunks 12 --no-speed -t 1 -o {tmp_path / 'out'}"
    assert cli.main(["squeeze", str(tiny("F16")), "--types", "Q4_0", *texts.split(), *shorter.split()]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the device failed (CUDA error: unspecified launch failure); ")
    assert last.endswith(f"; the same call goes on from what is in {tmp_path / 'out' / '.quantmill'}")
    assert "--resume" not in last
