"""What devices are asked and how work is cut for them."""

import numpy as np
import pytest

from quantmill.qkernels import samples
from quantmill.qkernels.cpu_engine import blocks_of, quantize_stored
from quantmill.qkernels.encoders import encoder_of, encoders
from quantmill.qkernels.hard_blocks import hard_importance, hard_rows
from quantmill.qkernels.memory_faults import in_slabs
from quantmill.qkernels.types import TYPES


def test_chance_of_finding_wrong_blocks():
    """A type's first slab shows 768 blocks or more: one wrong block in a hundred is missed once in two thousand runs,
    one in a thousand in every second one."""
    assert (1 - 0.01) ** samples.FIRST_BLOCKS < 1 / 2000
    assert 0.4 < (1 - 0.001) ** samples.FIRST_BLOCKS < 0.5


def a_kind(case, source="F16", target="Q4_K", n_cols=4096):
    return samples.Kind(case, TYPES[source], TYPES[target], n_cols, False)


def a_slab(kind, n_rows):
    """Each block holds its number."""
    per_row = kind.n_cols // kind.target.block
    numbers = np.arange(n_rows * per_row, dtype="<u4")

    def rows(width):
        return np.repeat(numbers[:, None], width // 4, 1).view(np.uint8).reshape(n_rows, -1)

    importance = np.repeat(np.arange(per_row), kind.target.block).astype(np.float32)
    return samples.Slab(rows(2 * kind.target.block), rows(kind.target.bytes), importance)


@pytest.mark.parametrize(
    ("a_part", "a_call", "share_of_slabs"), [(4e-6, 1e-4, 1.0), (1.5e-6, 1e-5, 1.0), (3e-5, 0, 0.667)]
)
def test_samples_cost_a_hundredth_of_the_device_s_time(monkeypatch, a_part, a_call, share_of_slabs):
    """Slabs of 2 ms: of every one some blocks, as many as 20 µs a slab are enough for; of some none where a block alone
    takes longer. What is compared are blocks with the columns that they come from, each slab's at other places."""
    now = [0.0]
    monkeypatch.setattr(samples, "perf_counter", lambda: now[0])
    found, seen = samples.Samples(), set()

    def compare(parts):
        now[0] += a_call + a_part * len(parts)
        numbers = parts.stored.view("<u4")[:, 0]
        assert np.array_equal(parts.made.view("<u4")[:, 0], numbers)
        assert np.array_equal(parts.importance[:, 0], numbers % 16)
        assert len(numbers) == len(parts)
        seen.update(numbers.tolist())

    for case in ("Q4_K-importance", "Q6_K-importance"):
        kind = a_kind(case)
        slab = a_slab(kind, 1200)
        assert found.is_first(case)
        found.begin(kind, slab, compare)
        seen.clear()
        for _ in range(5000):
            assert not found.is_first(case)
            found.take(kind, slab, 0.002, compare)
        assert len(seen) > 2500  # other blocks in other slabs
        assert {number // (16 * 120) for number in seen} == set(range(10))
    found.finish(compare)
    assert found.slabs == 10_000
    assert share_of_slabs - 0.02 < found.sampled / found.slabs <= share_of_slabs
    assert 0.004 < found.compared / found.worked <= 0.01


@pytest.mark.parametrize("n_slabs", [5, 100, 1000, 1001, 1030])
def test_the_last_comparison_is_within_the_hundredth(monkeypatch, n_slabs):
    """That of the few blocks that are laid aside when a run ends takes as long as half a millisecond for the call."""
    now = [0.0]
    monkeypatch.setattr(samples, "perf_counter", lambda: now[0])
    found = samples.Samples()

    def compare(parts):
        now[0] += 5e-4 + 2e-5 * len(parts)

    kind = a_kind("Q4_K-importance")
    slab = a_slab(kind, 1200)
    assert found.is_first(kind.case)
    found.begin(kind, slab, compare)
    before = now[0]
    for _ in range(n_slabs):
        found.take(kind, slab, 0.002, compare)
    found.finish(compare)
    assert now[0] - before <= 0.01 * 0.002 * n_slabs * (1 + 1e-9)
    assert found.sampled or n_slabs < 30


def test_what_was_laid_aside_is_compared_in_the_end():
    found, compared = samples.Samples(), []
    for case, n_cols in (("a", 256), ("a", 512), ("b", 256)):
        kind = a_kind(case, n_cols=n_cols)
        if found.is_first(case):
            found.begin(kind, a_slab(kind, 2), lambda parts: None)
        found.take(kind, a_slab(kind, 2), 1.0, lambda parts: pytest.fail("too early"))
    for _ in range(2):
        found.finish(lambda parts: compared.append((parts.kind.case, parts.kind.n_cols)))
    assert sorted(compared) == [("a", 256), ("a", 512), ("b", 256)]


@pytest.mark.parametrize(
    ("source", "target", "weighted"),
    [
        (source, target, weighted)
        for source in ("F32", "F16", "BF16", "Q8_0", "Q6_K")
        for target, weighted in (("Q4_0", True), ("Q5_1", True), ("Q4_K", True), ("Q6_K", False))
    ]
    + [
        pytest.param("F16", type, weighted, marks=pytest.mark.slow)
        for type, weighted in encoders()
        if (type, weighted) not in (("Q4_0", True), ("Q5_1", True), ("Q4_K", True), ("Q6_K", False))
    ],
)
def test_blocks_apart_are_those_of_whole_rows(source, target, weighted):
    """Parts of rows, in any order and number, each with its columns' importance."""
    from_type, to_type = TYPES[source], TYPES[target]
    rows, importance = hard_rows()[:96, :1024], hard_importance()[:1024] if weighted else None
    raw = quantize_stored(np.ascontiguousarray(rows).view(np.uint8), "F32", source, None)
    whole = quantize_stored(raw, source, target, importance)
    case = f"{target}-{weighted}"
    sigma = encoder_of(target, weighted).uses_row_sigma
    kind = samples.Kind(case, from_type, to_type, 1024, sigma)
    slab = samples.Slab(raw, whole, importance)
    n_parts = 96 * 1024 // kind.n_weights
    rng = np.random.default_rng(0)
    for count in (1, 16, 77):
        parts = samples.Parts(kind)
        parts.add(slab, rng.choice(n_parts, count, replace=False).tolist())
        found = blocks_of(parts.stored, from_type, to_type, parts.importance, parts.rows, "default")
        assert np.array_equal(found, parts.made), count


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
