"""Devices that give wrong bytes, fail, hang or have no memory: found or survived, the file right or not there."""

import itertools
import json
import time
import warnings

import numpy as np
import pytest
import torch

from quantmill import qkernels
from quantmill.gguf_io import GGUFSink, OutputTensor
from quantmill.jobs import quantize_plan
from quantmill.jobs.quantize import Job, run
from quantmill.jobs.watcher import Silent
from quantmill.qkernels import arrays, cpu_engine, device, guarded, samples, travel, trust
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.guard import Guard, within
from quantmill.qkernels.guarded import check_rows
from quantmill.qkernels.hard_blocks import hard_rows
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.types import DeviceFault, QuantizeError
from quantmill.recipe import Recipe
from tests.support import data_kinds
from tests.support.recipe_models import metadata

ENGINE = Engine("torch", "cpu", "a test")
# Two rows of each kind: 512 blocks of 32.
HARD_ROWS = hard_rows()[::32]
# Where a device can fail: the searches, the way there, the way back, the question how much it can hold.
STEPS = (
    (device, "encode_rows"),
    (travel.Plain, "send"),
    (travel._Here, "wait"),
    (device, "slab_rows"),
    (device, "travel_to"),
)


class Faults:
    """Counts the steps of a device, which is the CPU engine in disguise, and lets some of them fail."""

    def __init__(self) -> None:
        self.count = itertools.count()
        self.fails = lambda step: None
        self.wrong = lambda blocks: blocks

    def passing(self, step):
        def passed(*arguments, **named):
            error = self.fails(next(self.count))
            if error is not None:
                raise error
            return step(*arguments, **named)

        return passed

    def encode_rows(self, engine, type, rows, importance, search):
        weights = None if importance is None else importance.numpy()
        stored = rows.contiguous().numpy().view(np.uint8)
        return torch.from_numpy(self.wrong(cpu_engine.quantize_stored(stored, "F32", type.name, weights, 1)))


@pytest.fixture
def faults(monkeypatch, tmp_path) -> Faults:
    found = Faults()
    monkeypatch.setattr(device, "encode_rows", found.encode_rows)
    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, found.passing(getattr(owner, name)))
    monkeypatch.setattr(trust, "hard_rows", lambda: HARD_ROWS)
    monkeypatch.setattr(trust, "cache_dir", lambda kind: tmp_path / "cache" / kind)
    monkeypatch.setattr(
        quantize_plan, "choose_engines", lambda name, *of: (PLAIN if name == "cpu" else ENGINE,)
    )
    return found


PLAIN = Engine("cpu", "cpu", "a test")


class Listener(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two matrices of 96 rows, in F16."""
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    names = [f"blk.0.{name}.weight" for name in ("attn_q", "ffn_up")]
    rows = [data_kinds.rows("normal", 96, 256, seed).astype("<f2").view(np.uint8) for seed in range(2)]
    tensors = [OutputTensor(name, (256, 96), "F16") for name in names]
    with GGUFSink(path, metadata("llama", 1), tensors) as sink:
        for name, data in zip(names, rows, strict=True):
            sink.write(name, data)
        sink.commit()
    return path


def made(model, output, watcher=None, **options) -> bytes:
    """Several slabs a tensor."""
    recipe = Recipe("Q8_0")
    run(Job(str(model), output, recipe, max_buffer_bytes=1 << 17, **options), watcher)
    return output.read_bytes()


@pytest.fixture(scope="module")
def right(model, tmp_path_factory) -> bytes:
    return made(model, tmp_path_factory.mktemp("right") / "right.gguf", device="cpu")


def test_a_sound_device_is_believed_once(model, right, faults, tmp_path):
    watcher = Listener()
    assert made(model, tmp_path / "a.gguf", watcher) == right
    first = next(faults.count)
    assert not watcher.lines
    (answer,) = (tmp_path / "cache").rglob("Q8_0-plain-default.json")
    kept = json.loads(answer.read_text())
    assert kept["verdict"] == {"blocks": 512, "different": 0, "report": ""}
    assert {"device", "driver", "torch", "triton", "programs"} <= set(kept)
    assert made(model, tmp_path / "b.gguf") == right
    assert next(faults.count) - first < first  # the hard blocks are not asked for again


@pytest.mark.parametrize(
    ("after", "apart"),
    [(False, 5), (True, 1), pytest.param(False, 1, marks=pytest.mark.slow)],
)
def test_a_device_that_fails_at_any_point(model, right, faults, tmp_path, after, apart):
    made(model, tmp_path / "counted.gguf")
    steps = next(faults.count)
    assert steps > 20
    for k in range(0, steps, apart):
        faults.count = itertools.count()
        faults.fails = lambda step, k=k: (
            RuntimeError("device lost") if step == k or (after and step > k) else None
        )
        for file in (tmp_path / "cache").rglob("*.json"):
            file.unlink()
        watcher = Listener()
        output = tmp_path / f"{k}.gguf"
        assert made(model, output, watcher) == right, k
        assert len(watcher.lines) == 1, (k, watcher.lines)
        assert "device lost" in watcher.lines[0]
        assert "the CPU" in watcher.lines[0]


def test_a_strict_device_must_not_fail(model, faults, tmp_path):
    faults.fails = lambda step: RuntimeError("device lost") if step > 12 else None
    with pytest.raises(DeviceFault, match="device lost"):
        made(model, tmp_path / "out.gguf", strict_device=True)
    assert not list(tmp_path.glob("*.gguf*"))


def spoiled(blocks: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A bit of some blocks of Q8_0 turned."""
    flat = blocks.reshape(-1, 34).copy()
    flat[rng.random(len(flat)) < share, 20] ^= 1
    return flat.reshape(blocks.shape)


def test_wrong_bytes_in_hard_blocks_leave_the_type_to_the_cpu(model, right, faults, tmp_path):
    rng = np.random.default_rng(0)
    faults.wrong = lambda blocks: spoiled(blocks, 0.01, rng)
    watcher = Listener()
    assert made(model, tmp_path / "out.gguf", watcher) == right
    (line,) = watcher.lines
    assert "Q8_0 on cpu" in line
    assert "the CPU does this type" in line
    (report,) = (tmp_path / "cache").rglob("*-report-*.json")
    assert str(report) in line
    shown = json.loads(report.read_text())["shown"][0]
    assert shown["device"] != shown["cpu"]
    assert len(bytes.fromhex(shown["stored"])) == 128
    faults.wrong = lambda blocks: blocks
    again = Listener()
    assert made(model, tmp_path / "again.gguf", again) == right
    assert len(again.lines) == 1  # the answer is kept


def test_wrong_bytes_in_a_hundredth_of_the_blocks_are_found_in_the_run(model, right, faults, tmp_path):
    """After the hard blocks came out right. The file is made again; meanwhile none stands under its name."""
    made(model, tmp_path / "learned.gguf")
    rng = np.random.default_rng(1)
    faults.wrong = lambda blocks: spoiled(blocks, 0.01, rng)
    seen = []
    watcher = Listener()
    output = tmp_path / "out.gguf"
    watcher.warn = lambda line: (seen.append(output.exists()), watcher.lines.append(line))
    assert made(model, output, watcher) == right
    (line,) = watcher.lines
    assert "blocks of the model are not the CPU's" in line
    assert "the CPU begins again" in line
    assert seen == [False]
    with pytest.raises(DeviceFault):
        made(model, tmp_path / "strict.gguf", strict_device=True)
    assert not list(tmp_path.glob("strict*"))


def test_a_slab_that_is_wrong_is_found_wherever_it_is(model, right, faults, tmp_path, monkeypatch):
    """Of each slab something is looked at, before the file has its name at the latest."""
    monkeypatch.setattr(
        samples, "SHARE", 1e6
    )  # small slabs take no time, and a hundredth of it pays for nothing
    monkeypatch.setattr(samples, "ENOUGH", 10_000)
    made(model, tmp_path / "learned.gguf")
    slabs = itertools.count()
    faults.wrong = lambda blocks: (next(slabs), blocks)[1]
    made(model, tmp_path / "counted.gguf")
    n = next(slabs)
    assert n > 10
    for wrong in range(1 + n):  # the hard blocks, and each slab
        slabs = itertools.count()
        faults.wrong = lambda blocks, wrong=wrong, slabs=slabs: blocks ^ 1 if next(slabs) == wrong else blocks
        for file in (tmp_path / "cache").rglob(
            "*.json"
        ):  # a type found wrong is left to the CPU from then on
            file.unlink()
        with pytest.raises(DeviceFault, match="are not the CPU's"):
            made(model, tmp_path / "strict.gguf", strict_device=True)
        assert not list(tmp_path.glob("strict*"))


def test_a_device_that_hangs(model, right, faults, tmp_path, monkeypatch):
    made(model, tmp_path / "learned.gguf")
    waiting = faults.wrong
    faults.wrong = lambda blocks: (time.sleep(1.5), waiting(blocks))[1]
    monkeypatch.setattr(guarded.Guard, "__init__", _impatient)
    watcher = Listener()
    assert made(model, tmp_path / "out.gguf", watcher) == right
    (line,) = watcher.lines
    assert "no answer for 0 s" in line
    assert "the CPU goes on" in line


_GUARD = Guard.__init__


def _impatient(self, *arguments, **named):
    _GUARD(self, *arguments, **named)
    object.__setattr__(self, "seconds", 0.3)


def test_sixty_seconds_are_a_hang():
    assert Guard().seconds == 60
    with pytest.raises(DeviceFault, match="no answer for 0 s"):
        within(0.01, lambda: time.sleep(0.5))
    with pytest.raises(KeyError):
        within(5, lambda: {}["not there"])
    assert within(5, lambda: 3) == 3


def test_without_memory_slabs_are_halved(model, right, faults, tmp_path, monkeypatch):
    """What does not fit is tried in smaller slabs; the bytes are the same and nobody needs to know."""
    largest = []
    encode = faults.encode_rows

    def small(engine, type, rows, importance, search):
        largest.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return encode(engine, type, rows, importance, search)

    monkeypatch.setattr(device, "encode_rows", small)
    watcher = Listener()
    assert made(model, tmp_path / "out.gguf", watcher) == right
    assert not watcher.lines
    assert max(largest) > 5


def test_without_memory_for_a_row_the_cpu_does_it(model, right, faults, tmp_path, monkeypatch):
    made(model, tmp_path / "learned.gguf")

    def none(engine, type, rows, importance, search):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")

    monkeypatch.setattr(device, "encode_rows", none)
    watcher = Listener()
    assert made(model, tmp_path / "out.gguf", watcher) == right
    assert watcher.lines
    assert all("has no memory for a row of 256; the CPU does it" in line for line in watcher.lines)


def test_bad_input_is_no_fault_of_the_device(faults):
    (quantizer, *_) = row_quantizers(ENGINE, 1, tell=pytest.fail)
    rows = data_kinds.rows("normal", 3, 256)
    rows[1, 5] = np.nan
    with pytest.raises(QuantizeError, match="row 1, column 5"):
        quantizer.quantize(rows.view(np.uint8), "F32", "Q8_0", None)


def test_without_a_listener_faults_are_pythons_warnings(faults):
    faults.fails = lambda step: RuntimeError("no such device")
    (quantizer, *_) = row_quantizers(ENGINE, 1)
    rows = data_kinds.rows("normal", 3, 256)
    with pytest.warns(RuntimeWarning, match="Q8_0 does not run on cpu .RuntimeError: no such device"):
        found = quantizer.quantize(rows.view(np.uint8), "F32", "Q8_0", None)
    assert np.array_equal(found, cpu_engine.quantize_stored(rows.view(np.uint8), "F32", "Q8_0", None))


@pytest.mark.parametrize("step", [None, 0, 5])
def test_tensors_on_a_device_too(faults, monkeypatch, step):
    """quantmill.quantize leaves them where they are; a device that fails before or while it works costs no result."""
    monkeypatch.setattr(arrays, "choose_engines", lambda name: (ENGINE,))
    rows = data_kinds.rows("normal", 6, 256)
    importance = data_kinds.importance("cubed", 256)
    if step is not None:
        faults.fails = lambda k: RuntimeError("device lost") if k >= step else None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # of what other tests have left to the collector
        found = arrays.quantize_array(torch.from_numpy(rows), "Q8_0", importance, "auto", 1)
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), cpu_engine.quantize_stored(rows.view(np.uint8), "F32", "Q8_0", None))
    assert len(said) == (step is not None)


def test_blocks_of_a_tensor_that_are_not_the_cpu_s_are_found():
    rows, weights = torch.from_numpy(HARD_ROWS.copy()), torch.ones(HARD_ROWS.shape[1])
    blocks = qkernels.quantize(rows, "Q4_K", weights)
    check_rows(rows, blocks, "Q4_K", weights, "default")
    blocks[-1, -1] ^= 1
    with pytest.raises(DeviceFault, match=r"Q4_K on cpu: 1 of \d+ blocks of the model are not the CPU's"):
        check_rows(rows, blocks, "Q4_K", weights, "default")
