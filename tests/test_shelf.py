"""What a walk keeps of batches, on the device or in main memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantmill.jobs import compensate, compensate_needs
from quantmill.jobs.compensate_request import Calibration, SilentLayers
from quantmill.jobs.quantize import Job
from quantmill.models import memory
from quantmill.models.shelf import Shelf
from quantmill.models.walked_layer import Layer
from quantmill.recipe import Recipe
from tests.support.measure_families import FAMILIES, random_model
from tests.support.measure_models import EXAMPLE, tiny

META = torch.device("meta")
TEXT = str(EXAMPLE / "calibration.txt")


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts: Sequence[Any] = list(value.values()) if isinstance(value, dict) else value
    return [one for part in parts if part is not None for one in tensors_of(part)]


def test_a_shelf_in_main_memory_brings_back_what_it_was_given() -> None:
    shelf: Shelf[str, Any] = Shelf(META)
    one, two = torch.arange(3.0), torch.ones(2, 2)
    shelf.put({"a": (one, None), "b": {"x": [one, two], "y": (two,)}})
    stored = [tensor for value in shelf._values.values() for tensor in tensors_of(value)]
    assert {tensor.device.type for tensor in stored} == {"cpu"}
    assert len({tensor.data_ptr() for tensor in stored}) == 2  # each of the two once
    assert torch.equal(shelf._values["b"]["x"][0], one)
    found = shelf["b"]
    assert {tensor.device.type for tensor in tensors_of(found)} == {"meta"}
    assert (found["x"][0].shape, type(found["x"]), type(found["y"])) == (one.shape, list, tuple)
    assert shelf["a"][1] is None
    assert ("a" in shelf, "c" in shelf, len(shelf)) == (True, False, 2)
    shelf.clear()
    assert not shelf


def test_a_shelf_where_it_is_computed_is_a_dict() -> None:
    shelf: Shelf[int, Any] = Shelf()
    shelf[3] = value = (torch.ones(1),)
    assert shelf[3] is value
    assert shelf.pop(3) is value
    assert 3 not in shelf


class Telling(SilentLayers):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.mark.parametrize(("effort", "family"), [("normal", None), ("fast", None), ("normal", "gemma 3n")])
def test_main_memory_changes_no_byte(
    effort: str, family: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the CPU, said to have too little: what is kept is copied, and copied back."""
    model = tiny("F16")
    if family is not None:
        kind, settings = FAMILIES[family]
        random_model(model := tmp_path / "model", kind, settings)
    made = []
    away: list[object] = []
    whole = Layer.finish

    def finish(layer: Layer) -> None:
        away.append(layer.walk._away)
        whole(layer)

    monkeypatch.setattr(Layer, "finish", finish)
    for name, n_bytes in (("plenty", None), ("little", 1 << 20)):
        monkeypatch.setattr(memory, "device_bytes", lambda device, n_bytes=n_bytes: n_bytes)
        watcher = Telling()
        output = tmp_path / f"{name}.gguf"
        job = Job(str(model), output, Recipe("Q4_0"), device="cpu", threads=2)
        compensate.run(job, Calibration((TEXT,), effort, n_chunks=4), watcher)
        made.append(output.read_bytes())
        assert ("in main memory" in "".join(watcher.notes)) == (name == "little")
    assert made[0] == made[1]
    assert set(away[: len(away) // 2]) == {None}
    assert set(away[len(away) // 2 :]) == {torch.device("cpu")}


@pytest.mark.parametrize(("n_bytes", "in_main_memory"), [(None, False), (1 << 50, False), (1 << 20, True)])
def test_the_devices_memory_decides(
    n_bytes: int | None, in_main_memory: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[compensate_needs.Needs] = []
    whole = compensate_needs.needs_of
    monkeypatch.setattr(memory, "device_bytes", lambda device: n_bytes)

    def needs(*given: Any) -> compensate_needs.Needs:
        found.append(whole(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(compensate, "needs_of", needs)
    job = Job(str(tiny("F16")), tmp_path / "out.gguf", Recipe("Q4_0"), device="cpu", threads=1)
    with pytest.raises(KeyboardInterrupt):
        compensate.run(job, Calibration((TEXT,), n_chunks=4))
    assert (found[0].main_bytes > 0) == in_main_memory


def test_only_devices_with_memory_of_their_own_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 << 30)
    )
    assert memory.device_bytes(torch.device("cuda", 0)) == 24 << 30
    assert memory.device_bytes(torch.device("cpu")) is None
    assert memory.device_bytes(torch.device("mps")) is None
