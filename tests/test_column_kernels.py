"""Kernels for blocks of columns, interpreted, against torch's operations; and that they are not believed unseen."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantmill.calibrate import column_choice, columns, costs, rounding, solver
from quantmill.calibrate.column_check import wrong_descent, wrong_feeding
from quantmill.calibrate.column_choice import Guarded, columns_on
from quantmill.calibrate.columns import COLUMNS, Feeding, Levels
from quantmill.calibrate.rounding import State
from quantmill.models.workers import working
from quantmill.qkernels.lattices import LATTICES, lattice_of
from quantmill.qkernels.torch_errors import SilentDeviceError
from tests.support.column_blocks import CPU, TILES, again, gone_through, metric, works
from tests.support.in_triton import interpreted, require_triton

# type, matrices, columns, rows: even levels without and with minimums, uneven ones, two levels, wide groups
SHAPES = (
    ("Q4_0", 1, 96, 20),
    ("Q8_0", 1, 96, 9),
    ("Q4_K", 1, 96, 13),
    ("IQ4_NL", 1, 96, 20),
    ("MXFP4", 2, 32, 17),
    ("NVFP4", 2, 80, 12),
    ("Q1_0", 1, 128, 16),
)
CASES = [(f"{type}-{'x'.join(map(str, shape))}", type, *shape) for type, *shape in SHAPES]
# those gone through with programs of all sizes: the interpreter is slow
TILED = ("Q4_0-1x96x20", "IQ4_NL-1x96x20")


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """As the solver is used; torch's own threads wait for each other at every one of its many small operations."""
    with working(1, "cpu"):
        yield


@pytest.fixture(scope="module")
def by_triton(tmp_path_factory):
    """(case, "feed" or "descend") → type, the work as it was, what the kernels made of it with each tile."""
    folder = tmp_path_factory.mktemp("columns")
    given = {
        (name, kind): (type, work)
        for name, type, *shape in CASES
        for kind, work in zip(("feed", "descend"), works(type, *shape), strict=True)
    }
    asked = [(*given[key], TILES if key[0] in TILED else TILES[:1]) for key in given]
    torch.save(asked, folder / "given")
    interpreted("-m", "tests.support.interpret_columns", str(folder / "given"), str(folder / "results"))
    made = torch.load(folder / "results", weights_only=False)
    return {key: (*given[key], found) for key, found in zip(given, made, strict=True)}


def same(one, other):
    """Bit for bit, what was not written too."""
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["feed", "descend"])
@pytest.mark.parametrize("case", [case[0] for case in CASES])
def test_kernels_do_what_torch_does(by_triton, case, kind):
    type, work, made = by_triton[case, kind]
    expected = gone_through(columns, type, work)
    found = made[0]
    which = 1 if kind == "feed" else 0  # what is not a level follows
    apart = rows = 0
    for block, theirs in enumerate(expected.after):
        ours = found.after[block]
        agree = (ours[which] == theirs[which]).all(1)
        apart, rows = apart + int((~agree).sum()), rows + agree.numel()
        pairs = [(found.given[block], expected.given[block])]
        pairs += [] if kind == "feed" else list(zip(ours, theirs, strict=True))
        for a, b in pairs:
            a, b = (part.transpose(1, 2)[agree] for part in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()))
    assert apart <= 0.03 * rows  # near ties, from where a row goes its own way


@pytest.mark.parametrize("kind", ["feed", "descend"])
@pytest.mark.parametrize("case", TILED)
def test_bytes_do_not_depend_on_rows_of_a_program(by_triton, case, kind):
    _, _, made = by_triton[case, kind]
    assert len(made) == len(TILES)
    for other in made[1:]:
        assert same(made[0].given, other.given)
        assert all(same(a, b) for a, b in zip(made[0].after, other.after, strict=True))


def checked(work, type, made, block=0):
    """What the check says of a block: work as it is after it."""
    at = slice(block * COLUMNS, (block + 1) * COLUMNS)
    for part, now in zip(work.changed(at.start, at.stop), made.after[block], strict=True):
        part.copy_(now)
    wrong = wrong_feeding if isinstance(work, Feeding) else wrong_descent
    levels = Levels(lattice_of(type), CPU)
    end = at.start + made.given[block].shape[1]
    return wrong(work, levels, at.start, end, made.before[block], made.given[block])


@pytest.mark.parametrize("kind", ["feed", "descend"])
@pytest.mark.parametrize("case", [case[0] for case in CASES])
def test_the_check_believes_both_and_finds_one_wrong_number(by_triton, case, kind):
    """A level, an error or a slope that is off by little is one wrong weight at least."""
    type, work, made = by_triton[case, kind]
    by_torch = gone_through(columns, type, work)
    for one in (made[0], by_torch):
        for block in range(len(one.given)):
            n, of = checked(again(work), type, one, block)
            assert (n, of) == (0, one.given[block].numel())
    levels = lattice_of(type).levels
    which = 1 if kind == "feed" else 0
    chosen = by_torch.after[0][which][0, 5, 2].clone()
    by_torch.after[0][which][0, 5, 2] = levels[0] if chosen != levels[0] else levels[-1]
    assert checked(again(work), type, by_torch)[0] >= 1
    by_torch.after[0][which][0, 5, 2] = chosen
    assert checked(again(work), type, by_torch)[0] == 0
    numbers = [by_torch.given[0], *([] if kind == "feed" else by_torch.after[0][1:])]
    for number in numbers:
        old = number[0, 7, 1].clone()
        number[0, 7, 1] += 0.01 * number.abs().max()
        assert checked(again(work), type, by_torch)[0] >= 1
        number[0, 7, 1] = old


class Stub:
    """Kernels that do what torch does, but for what a test breaks."""

    FAULTS = ()

    def __init__(self, fault=None, error=None):
        self.fault, self.error, self.calls = fault, error, 0

    def descend_columns(self, *given):
        self.calls += 1
        if self.error is not None:
            raise self.error
        made = columns.descend_columns(*given)
        if self.fault is not None:
            self.fault(*given)
        return made

    feed_columns = staticmethod(columns.feed_columns)


def wrong_level(work, levels, begin, end):
    work.values[0, begin, 0] = (
        levels.legal[0] if work.values[0, begin, 0] != levels.legal[0] else levels.legal[1]
    )


@pytest.mark.parametrize(
    ("stub", "words"),
    [
        (Stub(fault=wrong_level), " of 2368 weights of a first block"),
        (Stub(error=RuntimeError("PTX\nmore")), "RuntimeError: PTX"),
    ],
)
def test_what_differs_or_does_not_run_is_said_once_and_done_by_torch(stub, words):
    _, work = works("Q4_0", 1, 96, 37)
    guarded = Guarded("cuda:0", stub)
    with pytest.warns(RuntimeWarning, match="compensation on cuda:0") as said:
        found, _ = (gone_through(guarded, "Q4_0", work) for _ in range(2))
    assert [words in str(one.message) for one in said] == [True]
    assert stub.calls == 1
    expected = gone_through(columns, "Q4_0", work)
    assert same(found.given, expected.given)
    assert all(same(a, b) for a, b in zip(found.after, expected.after, strict=True))


def test_each_kind_of_levels_is_compared_once(recwarn):
    """A fault that begins later than the first block of a kind is not found; another kind is looked at anew."""
    stub = Stub()
    guarded = Guarded("cuda:0", stub)
    gone_through(guarded, "Q4_0", works("Q4_0", 1, 96, 37)[1])
    stub.fault = wrong_level
    gone_through(guarded, "Q4_0", works("Q4_0", 1, 96, 37)[1])
    assert not guarded.refused
    assert not recwarn.list
    with pytest.warns(RuntimeWarning):
        gone_through(guarded, "IQ4_NL", works("IQ4_NL", 1, 96, 37)[1])


def test_no_memory_is_no_fault_of_a_kernel():
    guarded = Guarded("cuda:0", Stub(error=RuntimeError("CUDA out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        gone_through(guarded, "Q4_0", works("Q4_0", 1, 96, 37)[1])
    assert not guarded.refused


def test_kernels_that_hang_end_the_work(impatient):
    """torch's operations would wait behind them."""
    released = threading.Event()
    guarded = Guarded("cuda:0", Stub(fault=lambda *given: released.wait(30)))
    words = r"^no answer for 0 s from cuda:0, which was to compensate a first block$"
    with pytest.raises(SilentDeviceError, match=words):
        gone_through(guarded, "Q4_0", works("Q4_0", 1, 96, 37)[1])
    released.set()


def test_who_serves_a_device(monkeypatch):
    assert columns_on(CPU) is columns
    assert columns_on(torch.device("mps")) is columns
    require_triton()
    found = columns_on(torch.device("cuda:0"))
    assert isinstance(found, Guarded)
    assert columns_on(torch.device("cuda:0")) is found
    monkeypatch.setattr("quantmill.qkernels.engines._installed", lambda name: name != "triton")
    assert columns_on(torch.device("cuda:0")) is columns


@pytest.mark.parametrize("type", ["Q4_0", "NVFP4", "Q2_K"])
def test_asking_once_a_sweep_changes_no_bytes(type, monkeypatch):
    """And descent ends with the sweep that changes nothing."""
    _, work = works(type, 2, 160, 20)
    of, levels = metric(2, 160), Levels(lattice_of(type), CPU)
    given = (work.target, work.scale, work.low, work.group)
    made, calls = [], []

    def counted(*given):
        calls[-1] += 1
        return columns.descend_columns(*given)

    class Counting:
        feed_columns = staticmethod(columns.feed_columns)
        descend_columns = staticmethod(counted)

    monkeypatch.setattr(rounding, "columns_on", lambda device: Counting)
    for waits in (False, True):
        monkeypatch.setattr(rounding, "_waits", lambda device, answer=waits: answer)
        state = State(given[0], work.values.clone(), *given[1:])
        calls.append(0)
        rounding.descend(state, of, levels, 50)
        made.append(state.values)
    assert torch.equal(*made)
    assert calls[0] == calls[1] < 50 * 3


class Counted(TorchDispatchMode):
    """What a device would be given to do: views and empty memory are nothing."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += not (function.is_view or "empty" in str(function) or "_unsafe_view" in str(function))
        return function(*args, **(kwargs or {}))


def test_a_refit_has_the_launches_of_the_formula(monkeypatch):
    """Of Q4_K, whose groups of 32 have minimums, and of Q4_0."""
    counted, plainly = Counted(), solver.refit

    def refit(*given):
        with counted:
            plainly(*given)

    monkeypatch.setattr(solver, "refit", refit)
    target = torch.randn(1, 4, 512, generator=torch.Generator().manual_seed(0))
    for type, expected in (("Q4_K", costs._LAUNCHES[2]), ("Q4_0", 33)):
        counted.n = 0
        solver.solve(target, metric(1, 512), type, solver.Effort(1, 1))
        assert counted.n / (512 / costs._GROUP) == pytest.approx(expected, rel=0.05)


def test_levels_are_whole_numbers():
    """The kernels find an uneven level as a sum of distances, exact for these."""
    assert all(
        float(level).is_integer() and abs(level) < 2**20 for row in LATTICES.values() for level in row.levels
    )
    assert column_choice.columns is columns
