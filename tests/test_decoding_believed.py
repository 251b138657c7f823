"""Numbers of blocks on a device other than the CPU: compared before they are believed; where they differ, the CPU's."""

import threading
import time
import warnings

import numpy as np
import pytest
import torch

from quantmill import cli
from quantmill.jobs import check_devices
from quantmill.qkernels import dequantize, device_decode
from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.guard import first_answer
from quantmill.qkernels.lanes import torch_decode
from quantmill.qkernels.torch_errors import SilentDeviceError, in_words
from quantmill.qkernels.types import TYPES, readable_type
from tests.support.measure_models import EXAMPLE, tiny
from tests.test_dequantize import assert_same_bits, random_blocks

TEXT = EXAMPLE / "evaluation.txt"
ENGINE = Engine("torch", "cpu", "a test")


@pytest.fixture
def device(monkeypatch):
    """The CPU as if it were another device, with torch's operations, which `device.changes` gets hold of."""
    monkeypatch.setattr(device_decode, "_engine_at", lambda name: ENGINE)
    device_decode._is_believed.cache_clear()
    decode = torch_decode.decode
    monkeypatch.setattr(torch_decode, "decode", lambda *given: (decode(*given), Device.changes(given))[0])
    monkeypatch.setattr(Device, "changes", lambda given: None)
    yield Device
    device_decode._is_believed.cache_clear()


class Device:
    changes = None


def numbers_of(type: str, to: str) -> tuple[np.ndarray, list[str]]:
    """Of 96 rows of random blocks, and what was said."""
    blocks = torch.from_numpy(random_blocks(type, 96, 2))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # of what other tests have left to the collector
        found = dequantize(blocks, type, to=to)
    expected = device_decode._by_cpu(TYPES[type], blocks, to).view(96, -1)
    assert_same_bits(found.float().numpy(), expected.float().numpy())
    return found, [str(one.message) for one in said]


@pytest.mark.parametrize("to", device_decode.DTYPES)
def test_a_sound_device_is_believed_once(device, monkeypatch, to):
    calls = []
    monkeypatch.setattr(Device, "changes", lambda given: calls.append(len(given[2])))
    assert [numbers_of("Q4_K", to)[1] for _ in range(2)] == [[], []]
    assert calls == [512, 192, 192]


def test_a_wrong_number_leaves_the_type_to_the_cpu(device, monkeypatch):
    def spoil(given):
        given[3].view(-1)[77] += 1

    monkeypatch.setattr(Device, "changes", spoil)
    _, said = numbers_of("Q4_0", "F32")
    assert said == ["Q4_0 on cpu: 1 of 512 blocks decoded to F32 are not the CPU's; the CPU decodes it"]
    assert numbers_of("Q4_0", "F32")[1] == []


def test_a_kernel_that_does_not_compile_leaves_it_to_the_cpu(device, monkeypatch):
    def fail(given):
        raise RuntimeError("no such function\nat line 3")

    monkeypatch.setattr(Device, "changes", fail)
    _, said = numbers_of("Q6_K", "BF16")
    assert said == ["Q6_K is not decoded on cpu (RuntimeError: no such function); the CPU decodes it"]


def test_want_of_memory_is_no_wrong_number(device, monkeypatch):
    def fail(given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(Device, "changes", fail)
    with pytest.raises(torch.OutOfMemoryError):
        numbers_of("Q6_K", "F32")


@pytest.fixture
def hanging(device, monkeypatch, impatient):
    """The same device, which hangs at its first work, for longer than is waited."""
    released = threading.Event()
    monkeypatch.setattr(Device, "changes", lambda given: released.wait(30))
    yield device
    released.set()


def test_a_device_that_hangs_is_not_waited_for(hanging):
    """The CPU cannot hand its numbers to it either."""
    with pytest.raises(SilentDeviceError) as raised:
        numbers_of("Q6_K", "F32")
    why = "no answer for 0 s from cpu, which was to decode Q6_K"
    assert in_words(raised.value) == f"the device failed ({why}); --device cpu does the work without it"
    assert device_decode._is_believed.cache_info().currsize == 0


def test_a_job_on_a_device_that_hangs_ends_with_one_line(hanging, tmp_path, capsys):
    record = tmp_path / "r.json"
    words = f"evaluate {tiny('Q8_0')} -f {TEXT} -c 64 --chunks 2 -t 1 -o {record}"
    began = time.perf_counter()
    assert cli.main(words.split()) == 1
    assert time.perf_counter() - began < 25
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: the device failed (no answer for 0 s from cpu, ")
    assert "Traceback" not in said
    assert not record.exists()


@pytest.mark.parametrize("inference", [True, False])
def test_the_first_work_has_the_modes_of_its_thread(device, inference):
    with torch.inference_mode(inference), torch.set_grad_enabled(False):
        modes = first_answer(
            "cpu", "here", lambda: (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        )
    assert modes == (inference, False)


def test_a_check_of_devices_decodes_too(device, monkeypatch):
    monkeypatch.setattr(check_devices, "_asked", lambda *given: (512, 0))
    monkeypatch.setattr(check_devices, "timed", lambda engine, row, seconds: row)
    (row,) = check_devices.check([ENGINE], ["Q4_0"])
    assert (row.identical, row.fault) == (True, "")

    def fail(given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Device, "changes", fail)
    (row,) = check_devices.check([ENGINE], ["Q4_0"])
    assert (row.identical, row.fault) == (False, "OutOfMemoryError: CUDA out of memory")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no GPU here")
def test_the_gpu_is_believed():
    engine = device_decode._engine_at(str(torch.accelerator.current_accelerator()))
    cases = [(readable_type(type), to) for type in decoders() for to in device_decode.DTYPES]
    assert not [fault for case in cases if (fault := device_decode.decoding_fault(engine, *case))]
