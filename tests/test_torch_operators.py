"""Every torch operation that the torch engine and the decoders use, against torch's own table of what MPS has."""

import inspect
from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from quantmill import qkernels
from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes import torch as torch_lanes
from quantmill.qkernels.lanes import torch_decode
from quantmill.qkernels.types import readable_type
from tests.support import data_kinds

# Composite operations are made of others, which the recording below sees when they are not views.
ON_EVERY_DEVICE = (
    "CompositeExplicitAutograd",
    "CompositeImplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
)
# What MPS has no kernels for in any operation.
NEVER = {torch.float64, torch.complex64, torch.complex128}
# On the CPU numpy takes the root, so it is not recorded; every other device uses torch's.
UNSEEN = {"sqrt"}


class Recorder(TorchDispatchMode):
    """The names of the operations that run, and the dtypes of all tensors they take and give."""

    def __init__(self):
        super().__init__()
        self.operations: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.add(func.name().removeprefix("aten::"))
        result = func(*args, **(kwargs or {}))
        for value in (*args, *(kwargs or {}).values(), result):
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, torch.Tensor):
                    self.dtypes.add(tensor.dtype)
                elif isinstance(tensor, torch.dtype):
                    self.dtypes.add(tensor)
        return result


@pytest.fixture(scope="module")
def table() -> dict[str, dict]:
    path = Path(inspect.getfile(torchgen)).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_text(), yaml.CSafeLoader)
    return {entry["func"].split("(")[0]: entry for entry in entries}


def runs_on_mps(operation: str, table: dict[str, dict]) -> bool:
    entry = table[operation]
    if "structured_delegate" in entry:
        return runs_on_mps(entry["structured_delegate"], table)
    if "dispatch" not in entry:
        return True  # CompositeImplicitAutograd, the default
    backends = {name.strip() for names in entry["dispatch"] for name in names.split(",")}
    return "MPS" in backends or not backends.isdisjoint(ON_EVERY_DEVICE)


def covering() -> list[tuple[str, bool]]:
    """Encoders that between them run every program function; the others only repeat them with other numbers."""
    chosen: list[tuple[str, bool]] = []
    seen: set[tuple[str, str]] = set()
    for case, encoder in encoders().items():
        functions = {(encoder.family, phase.function) for phase in encoder.phases}
        if functions - seen:
            chosen.append(case)
            seen |= functions
    return chosen


@pytest.fixture(scope="module")
def encoding() -> Recorder:
    with Recorder() as recorder:
        for type, weighted in covering():
            rows = torch.from_numpy(data_kinds.rows("heavy-tailed", 1, 512))
            weights = torch.from_numpy(data_kinds.importance("cubed", 512)) if weighted else None
            qkernels.quantize(rows, type, weights, engine="torch")
    return recorder


@pytest.fixture(scope="module")
def decoding() -> Recorder:
    with Recorder() as recorder:
        for name, decoder in decoders().items():
            row = readable_type(name)
            blocks = torch.zeros(3, row.bytes, dtype=torch.uint8)
            torch_decode.decode(row, decoder, blocks, torch.empty(3, row.block))
    return recorder


@pytest.mark.parametrize("work", ["encoding", "decoding"])
def test_mps_has_every_operation(work, table, request):
    recorder = request.getfixturevalue(work)
    assert len(recorder.operations) > 20
    missing = {name for name in recorder.operations | UNSEEN if not runs_on_mps(name, table)}
    assert not missing
    assert not recorder.dtypes & NEVER


def test_the_table_can_say_no(table):
    """torch has operations without MPS; if the test above could not see that, it would show nothing."""
    assert not runs_on_mps("linalg_eig", table)
    assert not runs_on_mps("frexp.Tensor_out", table)
    assert runs_on_mps("add.Tensor", table)


def test_nothing_is_divided_by_reciprocal(encoding):
    """`number / tensor` is reciprocal times number in torch, which rounds twice: 0.98 of the blocks would be right."""
    assert "div.Tensor" in encoding.operations
    assert "reciprocal" not in encoding.operations


def test_roots_are_correctly_rounded():
    """torch's own kernel for large arrays on the CPU (MKL) is not; the engine's word must be."""
    values = torch.rand(1 << 16, generator=torch.Generator().manual_seed(0))
    exact = values.double().sqrt().float()
    assert torch.equal(torch_lanes.WORDS["sqrt"](values), exact)
