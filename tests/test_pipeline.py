"""Layers in runs over several devices. No test machine has two: numbers are held on devices that are one, and which
device comes to which layer by itself."""

import contextlib

import numpy as np
import pytest
import torch

from quantmill.imatrix.collect import Result, Settings, collect
from quantmill.models import model as models
from quantmill.models.errors import ModelError
from quantmill.models.pipeline import Stage, runs, spread, stages_for
from tests.support.measure_models import EXAMPLE, tiny


@pytest.mark.parametrize(
    ("sizes", "outside", "room", "wanted"),
    [
        ([10] * 6, 0, [100, 100, 100], [0, 0, 1, 1, 2, 2]),  # filled to a like share
        ([10] * 6, 20, [40, 40], [0, 0, 1, 1, 1, 1]),
        ([10] * 6, 0, [100, 50], [0, 0, 0, 0, 1, 1]),
        ([30, 10, 10, 30], 0, [45, 45], [0, 0, 1, 1]),
        ([10] * 6, 0, [30, 30], [0, 0, 0, 1, 1, 1]),  # to the last byte
        ([10] * 6, 1, [30, 30], None),
        ([10, 50], 0, [60, 30], [0, 0]),
        ([10], 50, [40, 100], None),
        ([], 5, [10, 10], []),
    ],
)
def test_runs_of_layers(sizes, outside, room, wanted):
    assert runs(sizes, outside, room) == wanted


def test_which_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * (1 + device.index), 9999))
    cuda = torch.device("cuda")
    assert stages_for(700, cuda) == []  # the first holds it
    assert [(one.device.index, one.room) for one in stages_for(800, cuda)] == [(0, 750), (1, 1500), (2, 2250)]
    assert stages_for(4500, cuda) == []  # all together do not
    assert stages_for(800, torch.device("cuda", 1)) == []  # this one was asked for
    assert stages_for(800, torch.device("cpu")) == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert stages_for(800, cuda) == []


@pytest.fixture
def three(monkeypatch):
    """Three devices, of which none holds the example; all are the CPU."""
    devices = [torch.device("cpu"), torch.device("cpu", 0), torch.device("cpu", 1)]
    usable = models.usable_device
    monkeypatch.setattr(
        models, "usable_device", lambda name: torch.device("cuda") if name == "cuda" else usable(name)
    )
    monkeypatch.setattr(models, "require_dtype", lambda *given: None)
    monkeypatch.setattr(
        models, "stages_for", lambda n_bytes, device: [Stage(one, n_bytes // 2) for one in devices]
    )
    return devices


@pytest.mark.parametrize("path", [tiny("Q4_0"), EXAMPLE], ids=["GGUF", "directory"])
def test_a_model_in_three_parts_says_the_same(three, path):
    ids = torch.arange(24).reshape(2, 12)
    with (
        contextlib.closing(models.load(path)) as whole,
        contextlib.closing(models.load(path, "cuda")) as parts,
    ):
        places = [layer._hf_hook.execution_device for layer in models.named_layers(parts.model)[1]]
        assert [three.index(place) for place in places] == sorted(three.index(place) for place in places)
        assert places[-1] != places[0] == three[0]
        assert parts.device == three[0]
        assert torch.equal(parts.logits(ids), whole.logits(ids))
        assert torch.equal(parts.logits(ids, 5), whole.logits(ids, 5))


def test_each_layer_is_given_what_it_needs_where_it_is(three):
    """Also what is computed once for all of them: positions, masks."""
    seen = []
    with contextlib.closing(models.load(tiny("Q4_0"), "cuda")) as parts:
        for layer in models.named_layers(parts.model)[1]:
            hook = layer._hf_hook
            send = hook.pre_forward
            hook.pre_forward = lambda module, *given, send=send, **named: (
                seen.append((module, given, named)),
                send(module, *given, **named),
            )[1]
        parts.logits(torch.arange(8)[None])
    assert len(seen) == len(models.named_layers(parts.model)[1])
    for _, given, named in seen:
        assert isinstance(given[0], torch.Tensor)
        assert "position_embeddings" in named


def test_what_does_not_fit_is_said():
    with (
        contextlib.closing(models.load(tiny("Q4_0"))) as loaded,
        pytest.raises(ModelError, match="do not fit on 2 devices together; use --stream"),
    ):
        spread(loaded.model, [Stage(torch.device("cpu"), 1 << 20)] * 2)


def test_importance_is_the_same(three):
    chunks = np.arange(128, dtype=np.int32).reshape(4, 32) % 90
    found = []
    for device in ("cpu", "cuda"):
        with contextlib.closing(models.load(tiny("Q4_0"), device)) as loaded:
            result = Result()
            for _ in collect(loaded.model, loaded.table, chunks, Settings(), result):
                pass
            found.append(result.matrix((), 32).entries)
    assert found[0].keys() == found[1].keys()
    for name, entry in found[0].items():
        assert np.array_equal(entry.in_sum2, found[1][name].in_sum2), name
