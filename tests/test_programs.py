"""Every lane program on torch and in Triton's interpreter against llama.cpp, byte for byte, on data that is hard.

The CPU engine, being fast, goes through far more data in test_programs_cpu.py.
"""

import re

import numpy as np
import pytest
import torch

from quantmill import qkernels
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.engines import engine_row
from quantmill.qkernels.lanes import torch as lane_words
from quantmill.qkernels.types import TYPES, TooLargeError
from tests.support import data_kinds, oracle
from tests.support.in_triton import case_id, interpret, interpreted

CASES = list(encoders())
# Types whose Triton kernels the interpreter runs in every test run: each family, the cheapest of each search.
QUICK_IN_TRITON = [
    ("Q8_0", False),
    ("Q5_1", False),
    ("Q4_0", True),
    ("Q3_K", False),
    ("Q6_K", True),
    ("Q2_K", True),
    ("Q4_K", False),
    ("IQ4_XS", True),
    ("TQ1_0", False),
    ("MXFP4", False),
    ("NVFP4", False),
    ("IQ2_S", True),
    ("IQ1_M", False),
]


def importance_of(weighted: bool, n_cols: int, kind: str = "zeros") -> np.ndarray | None:
    return data_kinds.importance(kind, n_cols) if weighted else None


def hard_rows(n_rows: int, n_cols: int = 512) -> np.ndarray:
    """`n_rows` rows of each hard kind."""
    return np.concatenate([data_kinds.rows(kind, n_rows, n_cols) for kind in data_kinds.HARD_ROWS])


def test_every_type_has_an_encoder():
    for row in TYPES.values():
        if row.family != "plain":
            plain, weighted = (row.name, False) in CASES, (row.name, True) in CASES
            assert (plain, weighted) == (row.importance != "required", row.importance != "none"), row.name


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_torch(case):
    type, weighted = case
    rows = hard_rows(18)
    importance = importance_of(weighted, rows.shape[1])
    found = qkernels.quantize(rows, type, importance, engine="torch")
    assert not oracle.first_difference(found, oracle.quantize(rows, type, importance), type)


def assert_interpreted(case: tuple[str, bool], results: dict[str, np.ndarray]) -> None:
    """16 blocks or more of each hard kind. One call: the interpreter's time goes by operations, not by lanes."""
    type, weighted = case
    expected = oracle.quantize(hard_rows(8), type, importance_of(weighted, 512))
    assert not oracle.first_difference(results[case_id(case)], expected, type)


@pytest.fixture(scope="module")
def quick_in_triton(tmp_path_factory):
    return interpret(QUICK_IN_TRITON, tmp_path_factory.mktemp("triton"), hard_rows(8))


@pytest.mark.parametrize("case", QUICK_IN_TRITON, ids=case_id)
def test_triton(case, quick_in_triton):
    assert_interpreted(case, quick_in_triton)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK_IN_TRITON], ids=case_id)
def test_triton_all(case, tmp_path):
    assert_interpreted(case, interpret([case], tmp_path, hard_rows(8)))


def assert_all_on_torch(rows: np.ndarray) -> None:
    for type, weighted in CASES:
        importance = importance_of(weighted, rows.shape[1])
        found = qkernels.quantize(rows, type, importance, engine="torch")
        assert not oracle.first_difference(found, oracle.quantize(rows, type, importance), type)


def test_every_byte_is_written():
    """Programs write into memory that was never set: what it held before must not show."""
    rows = hard_rows(2)
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN and the largest integer
    try:
        assert_all_on_torch(rows)
    finally:
        torch.use_deterministic_algorithms(False)


ANOTHER_NAN = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)


def test_no_byte_depends_on_the_bits_of_nan(monkeypatch):
    """Processors make 0x7fc00000 or 0xffc00000 where a result is no number, NVIDIA's GPUs 0x7fffffff."""
    seen = []

    def otherwise(word):
        def with_another_nan(value, *more):
            seen.append(bool(value.isnan().any()))
            return word(torch.where(value.isnan(), ANOTHER_NAN, value), *more)

        return with_another_nan

    for name in ("nint", "nhalf", "lev", "trunc", "bits", "f2h"):
        monkeypatch.setitem(lane_words.WORDS, name, otherwise(lane_words.WORDS[name]))
    lane_words.programs.cache_clear()
    rows = np.concatenate([data_kinds.rows(kind, 4, 512) for kind in ("dead groups", "normal")])
    try:
        assert_all_on_torch(rows)
    finally:
        lane_words.programs.cache_clear()
    assert any(seen)


SCRIPT = """
import torch, triton, triton.language as tl
from quantmill.qkernels.lanes.triton_words import lev, neg, nhalf, nint

@triton.jit
def words(V, NINT, NHALF, LEV, NEG):
    at = tl.arange(0, 4)
    tl.store(NINT + at, nint(tl.load(V + at)))
    tl.store(NHALF + at, nhalf(tl.load(V + at)))
    tl.store(LEV + at, lev(tl.load(V + at), 0, 15))
    tl.store(NEG + at, neg(tl.load(V + at)))

bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, -0x400000, 0x40400000], dtype=torch.int32)
found, halves = torch.empty(2, 4, dtype=torch.int32)
limited, turned = torch.empty(2, 4)
words[(1,)](bits.view(torch.float32), found, halves, limited, turned)
print(found.tolist(), halves.tolist(), limited.tolist())
zeros = torch.tensor([0.0, -0.0, 1e-45, -2.0])
words[(1,)](zeros, found, halves, limited, turned)
assert turned.view(torch.int32).tolist() == (-zeros).view(torch.int32).tolist(), turned
"""


def test_tritons_nearest_integer_of_nan_and_the_other_sign_of_zero(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    said = interpreted(str(tmp_path / "script.py"))
    assert said == "[0, 0, 0, 3] [0, 0, 0, 2] [0.0, 0.0, 0.0, 3.0]\n"


@pytest.mark.parametrize("engine", ["torch", "triton", "metal"])
@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="no GPU here: kernels are compiled and interpreted"
)
def test_on_the_gpu(engine):
    """The same bytes on a real device, for all kinds of rows."""
    device = torch.accelerator.current_accelerator()
    assert device is not None
    if device.type not in engine_row(engine).serves:
        pytest.skip(f"{engine} does not serve {device.type}")
    for type, weighted in CASES:
        for kind in data_kinds.ROWS:
            rows = data_kinds.rows(kind, 16, 2304)
            importance = importance_of(weighted, 2304)
            weights = None if importance is None else torch.from_numpy(importance).to(device)
            there = torch.from_numpy(rows).to(device)
            try:
                qkernels.quantize(rows, type, importance, engine="cpu")
            except TooLargeError as error:  # 1e5 in the scales of some types
                with pytest.raises(TooLargeError, match=re.escape(str(error))):
                    qkernels.quantize(there, type, weights, engine=engine)
                continue
            found = qkernels.quantize(there, type, weights, engine=engine)
            difference = oracle.first_difference(
                found.cpu().numpy(), oracle.quantize(rows, type, importance), type
            )
            assert not difference, f"{kind}: {difference}"
