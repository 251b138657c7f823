"""Models whose matrices are multiplied by shorter products: near float32, and the same divergences."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from quantmill.gguf_io import open_source
from quantmill.jobs import evaluate
from quantmill.models.arithmetic import automatic_dtype
from quantmill.models.errors import ModelError
from quantmill.models.model import load
from quantmill.models.packed import PackedLinear
from quantmill.qkernels import products
from tests.support.measure_models import EXAMPLE, tiny

KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(kind not in products.served(), reason=f"no {needed}"))
    for kind, needed in ((products.INT16, "AVX512-VNNI"), (products.BFLOAT16X3, "AMX"))
]
every_kind = pytest.mark.parametrize("dtype", KINDS)


@every_kind
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_layer_multiplies_by_what_gguf_decodes(kind: str, dtype: str) -> None:
    linear = load(tiny(kind), dtype=dtype).model.model.layers[1].self_attn.k_proj
    assert isinstance(linear, PackedLinear)
    assert linear.kind == dtype
    source = open_source(tiny(kind))
    raw = np.array(source.read("blk.1.attn_k.weight"))
    source.close()
    matrix = gguf.quants.dequantize(
        raw.view("<f2") if kind == "F16" else raw, gguf.GGMLQuantizationType[kind]
    )
    x = torch.randn(2, 30, linear.in_features, generator=torch.Generator().manual_seed(0))
    wanted = x.double() @ torch.from_numpy(matrix.astype(np.float64)).T
    found = linear(x).double()
    assert found.shape == wanted.shape
    assert 1e-6 < (found - wanted).norm() / wanted.norm() < {"int16": 3e-4, "bfloat16x3": 1e-5}[dtype]


@every_kind
def test_divergences_stay_within_two_per_cent_of_float32s(dtype: str) -> None:
    def record(dtype: str) -> evaluate.Run:
        models = (tiny("Q8_0"), tiny("Q4_0"))
        text = EXAMPLE / "evaluation.txt"
        return evaluate.run(
            evaluate.Job(models, base=tiny("F16"), text=text, chunks=3, device="cpu", dtype=dtype)
        )

    exact, found = record("float32"), record(dtype)
    assert exact.device == "cpu, float32"
    assert found.device == f"cpu, float32, products {dtype}"
    for one, other in zip(exact.models, found.models, strict=True):
        assert one.divergence is not None
        assert other.divergence is not None
        assert other.divergence.kld.value != one.divergence.kld.value
        assert other.divergence.kld.value == pytest.approx(one.divergence.kld.value, rel=0.02)
        assert other.divergence.ppl.value == pytest.approx(one.divergence.ppl.value, rel=2e-4)


def test_what_a_processor_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for served, chosen in (((), "float32"), (("int16",), "int16"), (("bfloat16x3", "int16"), "bfloat16x3")):
        monkeypatch.setattr(products, "served", lambda served=served: served)
        assert automatic_dtype(torch.device("cpu")) == chosen
        assert automatic_dtype(torch.device("meta")) == "float32"
    monkeypatch.setattr(products, "served", lambda: ())
    for dtype, needed in (("int16", "AVX512-VNNI"), ("bfloat16x3", "AMX")):
        with pytest.raises(ModelError, match=rf"{needed}.*use float32"):
            load(Path("any.gguf"), dtype=dtype)
