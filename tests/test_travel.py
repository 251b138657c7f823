"""How tensors go to a device and come back."""

import numpy as np
import pytest
import torch

from quantmill import qkernels
from quantmill.qkernels import device, travel
from quantmill.qkernels.engines import Engine
from tests.support import data_kinds, oracle


class Event:
    """torch.mps.Event, of a device that has always finished."""

    happened = 0

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded
        Event.happened += 1


@pytest.mark.parametrize("source", ["F32", "BF16", "F16", "Q8_0"])
def test_memory_that_host_and_gpu_share(monkeypatch, source):
    """Rows are written and blocks read through the host's view of the device's memory; slabs of 7 rows."""
    monkeypatch.setattr(torch.mps, "Event", Event)
    monkeypatch.setattr(torch.mps, "_host_alias_storage", lambda storage: storage, raising=False)
    monkeypatch.setattr(device, "slab_rows", lambda *arguments: 7)
    raw = qkernels.quantize(data_kinds.rows("heavy-tailed", 23, 512), source)
    quantizer = device.DeviceQuantizer(Engine("torch", "cpu", "a test"))
    quantizer._travel = travel.Shared(torch.device("cpu"))
    before = Event.happened
    found = quantizer.quantize(raw, source, "Q8_0")
    assert Event.happened - before == 4
    expected = oracle.quantize(qkernels.to_float32(raw, source), "Q8_0")
    assert not oracle.first_difference(found, expected, "Q8_0")
    again = quantizer.quantize(raw[:9], source, "Q8_0")
    assert np.array_equal(again, found[:9])


def test_the_way_to_a_device_is_what_torch_allows(monkeypatch):
    metal_device, here = torch.device("mps"), torch.device("cpu")
    monkeypatch.setattr(travel, "_shares", lambda device: True)
    assert isinstance(travel.travel_to(metal_device), travel.Shared)
    assert isinstance(travel.travel_to(here), travel.Plain)
    monkeypatch.undo()
    # this torch has no MPS
    assert isinstance(travel.travel_to(metal_device), travel.Plain)
    monkeypatch.setattr(torch.mps, "_host_alias_storage", lambda storage: storage, raising=False)
    assert travel._shares(here)
    monkeypatch.delattr(torch.mps, "_host_alias_storage")
    assert not travel._shares(here)
