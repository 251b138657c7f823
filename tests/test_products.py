"""Short products against numpy's in float64, and against sums of Python's integers where exact."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill.qkernels import TYPES, products, quantize, to_float32
from quantmill.qkernels.lanes.cpu_product_shape import TOP, TOP_OF_MATRIX
from quantmill.qkernels.types import CHECKPOINT_TYPES, readable_type

KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(kind not in products.served(), reason=f"this processor has no {needed}"),
    )
    for kind, needed in ((products.INT16, "AVX512-VNNI"), (products.BFLOAT16X3, "AMX"))
]
every_kind = pytest.mark.parametrize("kind", KINDS)
B = products.BLOCK


def multiplied(x: np.ndarray, matrix: np.ndarray, kind: str) -> np.ndarray:
    out = np.full((len(x), len(matrix)), np.nan, np.float32)
    products.multiplied(products.entered(x, kind), matrix, out)
    return out


def numbers(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Rows of very different sizes, as activations and weights are."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(0, 2, (shape[0], 1)))
    return (rng.standard_normal(shape) * sizes).astype(np.float32)


def bound(x: np.ndarray, matrix: np.ndarray, kind: str) -> np.ndarray:
    """A code is off by at most half, and a block's largest number is at most its norm; of two bfloat16 what is left
    over is 2^-18 of a number on either side, and as much is not multiplied."""
    sizes = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(matrix, axis=1)
    if kind == products.BFLOAT16X3:
        return sizes * 3 * 2.0**-18
    return sizes * np.sqrt(B) * (0.5 / TOP + 0.5 / TOP_OF_MATRIX)


@every_kind
@pytest.mark.parametrize("n_rows", [1, 3, 4, 37])
@pytest.mark.parametrize("n", [1, 16, 47, 48, 49, 100])
@pytest.mark.parametrize("n_blocks", [1, 9])
def test_products_are_those_of_float64_to_a_part_in_thousands(
    kind: str, n_rows: int, n: int, n_blocks: int
) -> None:
    x, matrix = numbers((n_rows, B * n_blocks), 1), numbers((n, B * n_blocks), 2)
    found = multiplied(x, matrix, kind)
    wanted = x.astype(np.float64) @ matrix.astype(np.float64).T
    assert np.abs(found - wanted).max() > 0
    assert (np.abs(found - wanted) < bound(x, matrix, kind)).all()
    # They are off in all directions, so that most is lost in the sum.
    most = {"int16": 0.1, "bfloat16x3": 0.2}[kind]
    assert np.sqrt(np.mean(((found - wanted) / bound(x, matrix, kind)) ** 2)) < most


@pytest.mark.parametrize("kind", KINDS[:1])
def test_whole_numbers_are_multiplied_exactly_up_to_the_largest_sums(kind: str) -> None:
    rng = np.random.default_rng(0)
    largest = ((5, TOP), (50, TOP_OF_MATRIX))
    x, matrix = (rng.integers(-top, top + 1, (n, B)).astype(np.float32) for n, top in largest)
    x[:, 0], matrix[:, 7] = TOP, -TOP_OF_MATRIX  # each block has its largest code
    x[0], matrix[0], matrix[1] = TOP, TOP_OF_MATRIX, -TOP_OF_MATRIX  # and the largest sum there is
    wanted = x.astype(np.int64) @ matrix.astype(np.int64).T
    assert wanted.max() == B * TOP * TOP_OF_MATRIX < 2**31
    assert (multiplied(x, matrix, kind) == wanted.astype(np.float32)).all()


@every_kind
def test_a_row_gives_the_same_beside_any_others_and_in_any_place(kind: str) -> None:
    x, matrix = numbers((23, 3 * B), 3), numbers((100, 3 * B), 4)
    whole = multiplied(x, matrix, kind)
    for row in (0, 3, 22):
        assert (multiplied(x[row : row + 1], matrix, kind) == whole[row]).all()
    wide = np.full((23, 200), 7, np.float32)
    products.multiplied(products.entered(x, kind), matrix, wide, 60)
    assert (wide[:, 60:160] == whole).all()
    assert (wide[:, :60] == 7).all()
    assert (wide[:, 160:] == 7).all()


@every_kind
def test_outliers_zeros_and_the_ends_of_the_range(kind: str) -> None:
    x, matrix = numbers((8, 2 * B), 5), numbers((16, 2 * B), 6)
    plain = multiplied(x, matrix, kind)
    outlier = x.copy()
    outlier[0, 5] = 1e6  # its own block is coarse, the other and other rows are as before
    assert (multiplied(outlier, matrix, kind)[1:] == plain[1:]).all()
    wanted = outlier[0].astype(np.float64) @ matrix.astype(np.float64).T
    assert (np.abs(multiplied(outlier, matrix, kind)[0] - wanted) < bound(outlier[:1], matrix, kind)).all()
    assert (multiplied(np.zeros_like(x), matrix, kind) == 0).all()
    tiny = multiplied(x * 1e-37, matrix, kind)
    sizes = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(matrix, axis=1)
    assert (np.abs(tiny) <= (0 if kind == products.INT16 else 1e-37 * sizes)).all()
    large = multiplied(x * np.float32(1e30), matrix, kind)
    assert np.allclose(large, plain.astype(np.float64) * 1e30, rtol=1e-3, atol=1e27)


# That of a half with all bits set, and one with all bits set itself.
NANS = [float(np.uint32(bits).view(np.float32)) for bits in (0x7FFFE000, 0xFFFFE000, 0x7FFFFFFF)]


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, *NANS])
def test_what_is_not_finite_shows(kind: str, bad: float) -> None:
    x, matrix = numbers((8, 2 * B), 7), numbers((16, 2 * B), 8)
    plain = multiplied(x, matrix, kind)
    x[3, 2 * B - 1] = bad
    found = multiplied(x, matrix, kind)
    assert not np.isfinite(found[3]).any()
    assert (np.delete(found, 3, 0) == np.delete(plain, 3, 0)).all()
    matrix[9, 1] = bad
    found = multiplied(np.delete(x, 3, 0), matrix, kind)
    assert not np.isfinite(found[:, 9]).any()
    assert np.isfinite(np.delete(found, 9, 1)).all()


@every_kind
@pytest.mark.parametrize("type", [*TYPES, *CHECKPOINT_TYPES])
def test_stored_matrices_give_what_their_decoded_ones_do(kind: str, type: str) -> None:
    row, rng = readable_type(type), np.random.default_rng(9)
    # 32 rows are taken together; some are left over at the end
    for n, n_cols in ((3, 256), (64, 256), (85, 256), (107, 512), (150, 1280)):
        n_cols = max(n_cols, row.block)
        matrix = rng.standard_normal((n, n_cols)).astype(np.float32)
        if row.family == "checkpoint":
            stored = rng.integers(0, 120, (n, n_cols // row.block * row.bytes)).astype(np.uint8)
        else:
            stored = quantize(matrix, type, np.ones(n_cols, np.float32))
        x = numbers((5, n_cols), 10)
        entered, found = products.entered(x, kind), np.full((5, n), np.nan, np.float32)
        products.multiplied_by_stored(entered, stored, type, found)
        wanted = multiplied(x, to_float32(stored, type), kind)
        assert np.isfinite(wanted).any()
        assert np.array_equal(found, wanted, equal_nan=True), (n, n_cols)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, factor: float) -> np.ndarray:
    """By definition, f64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    shared = len(q) // len(k)
    out = np.empty_like(q)
    for head in range(len(q)):
        scores = factor * (q[head] @ k[head // shared].T)
        scores[np.triu_indices(len(scores), 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[head] = shares / shares.sum(axis=1, keepdims=True) @ v[head // shared]
    return out


@every_kind
@pytest.mark.parametrize("n_tokens", [32, 128, 160, 512])
@pytest.mark.parametrize(("n_heads", "n_kv", "width"), [(2, 2, 32), (6, 2, 64), (3, 1, 96)])
def test_attention_is_that_of_float64(kind: str, n_tokens: int, n_heads: int, n_kv: int, width: int) -> None:
    rng = np.random.default_rng(0)
    # as models have them: heads of a token lie beside each other
    q, k, v = (
        rng.standard_normal((n_tokens, n, width)).astype(np.float32).transpose(1, 0, 2)
        for n in (n_heads, n_kv, n_kv)
    )
    out = np.full((n_tokens, n_heads, width), np.nan, np.float32).transpose(1, 0, 2)
    products.attended(2 * q, k, v, width**-0.5, out, kind)
    wanted = attended(2 * q, k, v, width**-0.5)
    assert (out[:, 0] != v[np.arange(n_heads) * n_kv // n_heads, 0]).any()
    assert np.abs(out - wanted).max() < 3e-3
    assert np.sqrt(np.mean((out - wanted) ** 2) / np.mean(wanted**2)) < 4e-4


@every_kind
@pytest.mark.parametrize("bad", [np.nan, *NANS])
def test_attention_shows_what_is_not_finite_and_only_behind_it(kind: str, bad: float) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, 64, 32)).astype(np.float32) for _ in range(3))
    plain, found = np.empty_like(q), np.empty_like(q)
    products.attended(q, k, v, 0.2, plain, kind)
    k[1, 40, 3] = bad
    products.attended(q, k, v, 0.2, found, kind)
    assert not np.isfinite(found[1, 40:]).any()
    assert (found[0] == plain[0]).all()
    assert (found[1, :40] == plain[1, :40]).all()
