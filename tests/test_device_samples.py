"""What devices are asked and how work is cut for them."""

import numpy as np
import pytest

from quantmill.qkernels import samples
from quantmill.qkernels.hard_blocks import hard_rows
from quantmill.qkernels.memory_faults import in_slabs


def test_chance_of_finding_wrong_blocks():
    """A type's first slab shows 768 blocks or more: one wrong block in a hundred is missed once in two thousand runs,
    one in a thousand in every second one."""
    assert (1 - 0.01) ** samples.FIRST_BLOCKS < 1 / 2000
    assert 0.4 < (1 - 0.001) ** samples.FIRST_BLOCKS < 0.5


def test_samples_cost_a_hundredth_of_the_device_s_time(monkeypatch):
    """Slabs of 2 ms whose samples take 5 ms: of a type's first slab 768 blocks, then 16 rows now and then."""
    now = [0.0]
    monkeypatch.setattr(samples, "perf_counter", lambda: now[0])
    found = samples.Samples()
    looked: list[np.ndarray] = []

    def compare(rows):
        now[0] += 0.005
        looked.append(rows)

    for case in ("Q4_K-importance", "Q6_K-importance"):
        looked.clear()
        for _ in range(10_000):
            found.rows(case, 1900, 16, 0.002, compare)
        first, *later = looked
        assert len(first) * 16 >= 768
        assert {len(rows) for rows in later} == {16}
        assert all((rows[0], rows[-1]) == (0, 1899) for rows in later)
        assert 0.009 < 0.005 * len(later) / (0.002 * 10_000) <= 0.01
    found.rows("Q2_K-importance", 3, 1, 0.002, compare)
    assert looked[-1].tolist() == [0, 1, 2]


def test_slabs_in_order_whatever_fails():
    """Rows are sent in order, each once; what is under way comes back before the same rows are tried again."""
    for limit in (1, 2, 3, 7, 100):
        sent, finished, freed = [], [], []

        def send(first, n, turn, limit=limit, sent=sent):
            if n > limit:
                raise RuntimeError("out of memory")
            sent.append((first, n, turn))
            return first

        in_slabs(
            20, 16, send, lambda first, n, s, f=finished: f.append((first, n)), lambda f=freed: f.append(1)
        )
        assert [first for first, *_ in sent] == [first for first, _ in finished]
        assert sum(n for _, n in finished) == 20
        assert [turn for *_, turn in sent] == [i % 2 for i in range(len(sent))]
        assert bool(freed) == (limit < 16)
    with pytest.raises(RuntimeError, match="out of memory"):
        in_slabs(4, 4, lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory")), print, lambda: None)


def test_hard_rows_are_some_thousand_blocks_of_every_kind():
    rows = hard_rows()
    assert rows.size // 256 == 2048
    assert np.isfinite(rows).all()
    assert (rows.reshape(8, -1, 16) == 0).all(2).any(1).sum() >= 1
    assert np.array_equal(rows, hard_rows())
