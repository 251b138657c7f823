"""What devices are asked and how work is cut for them."""

import numpy as np
import pytest

from quantmill.qkernels import guarded
from quantmill.qkernels.hard_blocks import hard_rows
from quantmill.qkernels.memory_faults import in_slabs


def test_chance_of_finding_wrong_blocks():
    """A type's first slab shows 768 blocks or more: one wrong block in a hundred is missed once in two thousand runs,
    one in a thousand in every second one."""
    assert (1 - 0.01) ** guarded._FIRST_BLOCKS < 1 / 2000
    assert 0.4 < (1 - 0.001) ** guarded._FIRST_BLOCKS < 0.5


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
