"""Too little memory, of a device or of the machine: said as that, with a way out; and much of it, told before."""

import numpy as np
import pytest
import torch

from quantmill import cli
from quantmill.calibrate.allocation import Sensitivity, n_scored
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.jobs.held_predictions import predictions_note
from quantmill.models.errors import ModelError, said_of_transformers
from quantmill.models.model import load
from quantmill.models.workers import Workers
from tests.support.measure_models import EXAMPLE, tiny

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.25 GiB is free. "
    "Of the allocated memory 5.12 GiB is allocated by PyTorch."
)
METAL = (
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 MB, max allowed: 9.07 GB). Tried to "
    "allocate 2.50 GB on private pool."
)
ON_DEVICE = [torch.OutOfMemoryError(CUDA), RuntimeError(METAL)]


def raising(error):
    def fail(*arguments, **named):
        raise error

    return fail


@pytest.fixture
def here():
    """What torch raises on this machine."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    return raised.value


def evaluated(capsys, path=EXAMPLE):
    code = cli.main(["evaluate", str(path), "-f", str(EXAMPLE / "evaluation.txt"), "--chunks", "1"])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.mark.parametrize("error", ON_DEVICE, ids=["cuda", "mps"])
@pytest.mark.parametrize(
    ("step", "path"),
    [
        ("transformers.AutoModelForCausalLM.from_pretrained", EXAMPLE),
        ("quantmill.models.model.skeleton", tiny("Q8_0")),
        ("quantmill.models.model.Filler.fill_part", tiny("Q8_0")),
        ("quantmill.models.model.LoadedModel.logits", tiny("Q8_0")),
    ],
    ids=["a directory", "a GGUF", "weights", "running"],
)
def test_a_device_without_memory_is_said(capsys, monkeypatch, step, path, error):
    monkeypatch.setattr(step, raising(error))
    code, err = evaluated(capsys, path)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: the device has not enough memory: 2.50 G")
    assert "--device cpu" in err
    assert "transformers" not in err


def test_a_machine_without_memory_is_said(capsys, monkeypatch, here):
    monkeypatch.setattr("quantmill.models.model.skeleton", raising(here))
    code, err = evaluated(capsys, tiny("Q8_0"))
    assert code == 1
    assert err.startswith(f"error: this machine has not enough memory: {1 << 60} bytes more were asked for; ")
    assert "--stream" in err


def test_other_errors_keep_their_place():
    with pytest.raises(ModelError, match=r"the words \(size mismatch\)"), said_of_transformers("the words"):
        raise RuntimeError("size mismatch")


def test_a_bug_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr("quantmill.jobs.evaluate.usable_device", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        evaluated(capsys, tiny("Q8_0"))


def test_predictions_that_take_much_memory_are_told():
    """As many bytes as are held."""

    class Source:
        metadata = Metadata({"tokenizer.ggml.tokens": MetaValue(GGUFValueType.ARRAY, ["a"] * 150_000)})

    assert "take 0.9 GiB of memory while x" in predictions_note(Source(), n_scored(8, 256), "x")
    assert not predictions_note(Source(), n_scored(2, 256), "x")
    loaded, chunks = load(tiny("Q8_0")), np.zeros((3, 64), np.int32)
    held = Sensitivity(loaded, chunks, Workers(1))._log_p
    loaded.close()
    assert sum(part.nbytes for part in held) == 4 * loaded.n_vocab * n_scored(3, 64)
