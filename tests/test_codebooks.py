"""Grids, code maps and neighbour lists against counts of llama.cpp's tables and a search by hand."""

import itertools

import gguf
import numpy as np
import pytest

from quantmill.qkernels import codebooks

# entries, codes off the grid, neighbours in all lists, shortest and longest list, as llama.cpp builds them
COUNTS = {
    "IQ2_XXS": (256, 6305, 113157, 2, 150),
    "IQ2_XS": (512, 6049, 181721, 2, 292),
    "IQ2_S": (1024, 5537, 44716, 1, 70),
    "IQ1_S": (2048, 4513, 327721, 12, 205),
    "IQ3_XXS": (256, 3840, 18985, 2, 36),
    "IQ3_S": (512, 3584, 24733, 3, 38),
}
# how many different distances a list spans (the nwant of iq2xs_init_impl and iq3xs_init_impl)
SHELLS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(codebooks, "cache_dir", lambda kind: tmp_path / kind)
    codebooks.codebook.cache_clear()
    yield tmp_path / "codebooks"
    codebooks.codebook.cache_clear()


def neighbours_of(book, code):
    return book.neighbours[book.start[code] : book.start[code + 1]].tolist()


def digits_of(book, code):
    return [(code >> (book.bits * k)) & ((1 << book.bits) - 1) for k in range(book.dim)]


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    book = codebooks.codebook(name)
    n_entries, n_off, total, shortest, longest = COUNTS[name]
    lengths = np.diff(book.start)
    assert len(book.digits) == (book.index >= 0).sum() == n_entries
    assert ((lengths > 0).sum(), len(book.neighbours)) == (n_off, total)
    assert (lengths[lengths > 0].min(), lengths.max()) == (shortest, longest)
    assert not lengths[book.index >= 0].any()


@pytest.mark.parametrize("name", COUNTS)
def test_grid_is_the_decoder_s(name):
    book = codebooks.codebook(name)
    source = getattr(gguf.quants, name)
    source.init_grid()
    np.testing.assert_array_equal(book.values[book.digits], source.grid.reshape(source.grid_shape))
    codes = np.flatnonzero(book.index >= 0)
    np.testing.assert_array_equal(book.index[codes], np.arange(len(codes)))
    for code in codes[:: len(codes) // 50].tolist():
        assert digits_of(book, code) == book.digits[book.index[code]].tolist()


@pytest.mark.parametrize("name", COUNTS)
def test_neighbours_by_hand(name):
    """Sampled codes: sort all entries by (distance, index), keep those at the smallest few distances."""
    book = codebooks.codebook(name)
    grid = [[2 * digit + 1 for digit in entry] for entry in book.digits.tolist()]
    off = np.flatnonzero(np.diff(book.start))
    for code in np.random.default_rng(0).choice(off, 40, replace=False).tolist():
        point = [2 * digit + 1 for digit in digits_of(book, code)]
        ranked = sorted(
            (sum((a - b) ** 2 for a, b in zip(point, entry, strict=True)), i) for i, entry in enumerate(grid)
        )
        shells = itertools.islice(itertools.groupby(ranked, key=lambda pair: pair[0]), SHELLS[name])
        assert neighbours_of(book, code) == [index for _, shell in shells for _, index in shell]


def test_iq1_m_shares_iq1_s():
    assert codebooks.codebook("IQ1_M").digits is codebooks.codebook("IQ1_S").digits


def test_stored_and_read_back(own_cache):
    first = codebooks.codebook("IQ3_S")
    (stored,) = own_cache.iterdir()
    codebooks.codebook.cache_clear()
    second = codebooks.codebook("IQ3_S")
    assert second is not first
    for field in ("values", "digits", "index", "start", "neighbours"):
        a, b = getattr(first, field), getattr(second, field)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert list(own_cache.iterdir()) == [stored]


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_file_is_derived_again(own_cache, damage):
    codebooks.codebook("IQ3_S")
    (stored,) = own_cache.iterdir()
    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    codebooks.codebook.cache_clear()
    assert len(codebooks.codebook("IQ3_S").neighbours) == 24733
    assert stored.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(own_cache):
    own_cache.write_text("a file where the folder should be")
    assert len(codebooks.codebook("IQ3_S").neighbours) == 24733


def test_the_arrays_cannot_be_changed(own_cache):
    for _ in ("derived", "loaded"):
        codebooks.codebook.cache_clear()
        with pytest.raises(ValueError, match="read-only"):
            codebooks.codebook("IQ3_XXS").index[0] = 1
