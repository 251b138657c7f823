"""Norms whose weights are exchanged with factors of the columns behind them."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from quantmill.calibrate.balance import column_factors
from quantmill.calibrate.moments import Moments, MomentsOf
from quantmill.gguf_io.source import open_source
from quantmill.jobs.compensate import run
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.quantize import Job
from quantmill.models.model import from_source
from quantmill.models.summing import Seen
from quantmill.models.walk import Walk
from quantmill.models.workers import working
from quantmill.qkernels import dequantize
from quantmill.recipe import Recipe, parse_rule
from tests.support.measure_families import FAMILIES, random_model
from tests.support.measure_models import EXAMPLE, tiny
from tests.test_walk_families import some_text

CPU = torch.device("cpu")
ATTENTION, FEED_FORWARD = "attn_norm", "ffn_norm"


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("llama", {ATTENTION, FEED_FORWARD}),
        ("gemma 3", {ATTENTION, FEED_FORWARD}),  # whose weights are stored as one more than they are
        ("phi 3", {ATTENTION, FEED_FORWARD}),  # of which several matrices are one tensor
        ("qwen3 moe", {ATTENTION}),  # the router takes the other too
        ("gemma 3n", {FEED_FORWARD}),  # so does another part here
        ("cohere 2", set()),  # attention and feed forward take the same
        ("starcoder 2", set()),  # with biases
        ("olmo 2", set()),  # norms stand behind the matrices
        ("glm 5", {FEED_FORWARD}),  # an indexer takes the queries' norm too, which a short text does not show
        ("deepseek v3", {"attn_q_a_norm", FEED_FORWARD}),
    ],
)
def test_norms_that_stand_before_the_matrices_alone_are_found(family, wanted, tmp_path):
    random_model(tmp_path, *FAMILIES[family])
    loaded = from_source(open_source(tmp_path), tmp_path, CPU, torch.float32)
    found, weights = set(), {}
    for name, module in loaded.model.named_modules():
        weights |= {
            f"{name}.{key}": one.clone() for key, one in module._parameters.items() if one is not None
        }
    with working(1, "cpu") as workers:
        for layer in Walk(loaded, some_text(24), workers.map).layers():
            found |= {place.norm.split(".")[2] for place in layer.with_norms() if place.norm}
            for holder in layer.held.matrices.values():
                assert holder.changed is holder.original  # as before the trials
    assert found == wanted
    for name, module in loaded.model.named_modules():
        for key, one in module._parameters.items():
            assert one is None or torch.equal(one, weights[f"{name}.{key}"])


def moments_of(rows):
    n = rows.shape[1]
    moments = Moments(MomentsOf(1, n, 2, False, CPU))
    moments.add(0, Seen(rows[None], rows[None], (0,), (len(rows),)))
    return moments


def test_factors_make_the_rounding_to_eight_bits_finer():
    """Rounded with one scale for all columns, as llama.cpp does as it runs; what never enters keeps its weights."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 256, generator=generator)
    rows[:, 7] *= 40
    rows[:, 9] = 0
    weights = torch.randn(32, 256, generator=generator)
    factors = column_factors(moments_of(rows))
    assert factors[9] == 1
    live = torch.cat([factors[:9], factors[10:]])
    torch.testing.assert_close(live.double().log().mean().exp().item(), 1.0, rtol=1e-5, atol=0)
    torch.testing.assert_close((factors[7] / factors[8]).item(), 40 ** (1 / 3), rtol=0.15, atol=0)

    def lost(entering, matrix):
        step = entering.abs().amax(1, keepdim=True) / 127
        return float((((entering / step).round() * step - entering) @ matrix.T).square().sum())

    assert lost(rows / factors, weights * factors) < 0.25 * lost(rows, weights)


def tensors(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def made(output, type, calibration, *rules):
    run(Job(str(tiny("F16")), output, Recipe(type, rules=rules), device="cpu", threads=1), calibration)
    return tensors(output)


def test_what_norm_and_columns_give_together_stays(tmp_path):
    """Column by column, from the written file alone; targets are the weights themselves."""
    calibration = Calibration((str(EXAMPLE / "calibration.txt"),), n_chunks=4, alpha=0.0)
    found, given = made(tmp_path / "balanced.gguf", "Q8_0", calibration), tensors(tiny("F16"))
    factors = given["blk.1.attn_norm.weight"].data / found["blk.1.attn_norm.weight"].data
    assert factors.max() > 1.2 * factors.min()
    for kind in ("attn_q", "attn_k", "attn_v"):
        blocks, weights = (of[f"blk.1.{kind}.weight"].data for of in (found, given))
        whole = dequantize(blocks, "Q8_0") / factors
        difference = whole - weights.astype(np.float32)
        assert np.linalg.norm(difference) < 0.01 * np.linalg.norm(weights.astype(np.float32))
    for name in ("blk.1.ffn_norm.weight", "output_norm.weight"):  # of which not all takers get codes
        assert found[name].data.tobytes() == given[name].data.tobytes()
    kept = made(tmp_path / "kept.gguf", "Q8_0", replace(calibration, keep_norms=True))
    assert kept["blk.1.attn_norm.weight"].data.tobytes() == given["blk.1.attn_norm.weight"].data.tobytes()


@pytest.mark.parametrize("type", ["F16", "IQ2_S"])
def test_a_norm_stays_when_one_of_its_matrices_does(type, tmp_path):
    """One that gets no codes, or codes of a codebook."""
    calibration = Calibration((str(EXAMPLE / "calibration.txt"),), n_chunks=4, effort="fast")
    found = made(tmp_path / "part.gguf", "Q4_0", calibration, parse_rule(rf"blk\.1\.attn_v={type}"))
    given = tensors(tiny("F16"))
    same = [found[f"blk.{i}.attn_norm.weight"].data.tobytes() for i in (0, 1)]
    before = [given[f"blk.{i}.attn_norm.weight"].data.tobytes() for i in (0, 1)]
    assert [one == other for one, other in zip(same, before, strict=True)] == [False, True]
