"""A layer's blocks where something is missing: tokens of an expert, room for the whole square of second moments."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantmill.calibrate import layer as calibrated
from quantmill.calibrate import output
from quantmill.calibrate.layer import Settings, quantize_layer
from quantmill.calibrate.output import quantize_output
from quantmill.calibrate.solver import EFFORTS
from quantmill.gguf_io.source import open_source
from quantmill.models.walk import Walk
from quantmill.models.workers import working
from quantmill.qkernels import dequantize
from tests.support import oracle
from tests.support.measure_models import untied
from tests.test_walk import Rows, load, some_chunks

SETTINGS = Settings(EFFORTS["fast"], alpha=1.0)


def first_layer(types, settings=SETTINGS, route=None):
    """Made of the first layer; route(module, hidden) may change which experts its router picks."""
    loaded = load()
    with working(1, "cpu") as workers:
        layers = Walk(loaded, some_chunks(loaded, 4, 64), workers.map).layers()
        if route is not None:
            route(loaded.model.model.layers[0].mlp)
        layer = next(layers)
        if route is not None:
            seen = layer.visit(layer.places[2], Rows).seen
            assert {expert for _, one in seen for expert in one.experts} == set(range(7))
        made = quantize_layer(layer, types, settings, workers, two_streams=True)
        originals = {one.name: layer.weight(one.name) for one in made}
    return made, originals


def test_experts_that_no_token_is_routed_to_get_the_layers_moments():
    def never_the_last(mlp):
        mlp.gate.weight.data[-1] = 0
        mlp.gate.weight.data[:-1] *= 30  # the softmax of the others leaves nothing

    types = {f"blk.0.ffn_{kind}_exps.weight": "Q4_0" for kind in ("gate", "up", "down")}
    made, originals = first_layer(types, route=never_the_last)
    assert [one.name for one in made] == list(types)
    for one in made:
        decoded = dequantize(one.blocks, "Q4_0")
        unused = (originals[one.name].numpy() - decoded)[-1]
        assert np.isfinite(decoded).all()
        assert np.square(unused).sum() < 0.1 * np.square(originals[one.name].numpy()[-1]).sum()


@pytest.mark.parametrize("type", ["Q4_0", "Q5_1"])
def test_wide_rows_are_treated_in_parts(type, monkeypatch):
    monkeypatch.setattr(calibrated, "BLOCK", 32)
    types = {"blk.0.attn_q.weight": type, "blk.0.attn_output.weight": type}
    whole, _ = first_layer(types)
    parts, originals = first_layer(types, Settings(EFFORTS["fast"], alpha=1.0, widest=128))
    for one, other in zip(whole, parts, strict=True):
        assert one.blocks.shape == other.blocks.shape
        assert other.compensated
        assert other.fitted[1] < 0.9 * other.fitted[0]  # better than plain blocks all the same
        assert one.blocks.tobytes() != other.blocks.tobytes()
        difference = dequantize(other.blocks, type) - originals[other.name].numpy()
        assert np.square(difference).sum() < 0.05 * np.square(originals[other.name].numpy()).sum()


def test_the_output_matrix_loses_less_than_plain_blocks_on_another_text(monkeypatch):
    """Whole, and its rows and columns in parts; the states that enter it by hooks in the model itself."""
    loaded = load(untied())
    chunks = some_chunks(loaded, 13, 64)
    with working(1, "cpu") as workers:
        walk = Walk(loaded, chunks[:12], workers.map)
        for _ in walk.layers():
            pass
        found = walk.output()
        whole = quantize_output(found, "Q4_0", SETTINGS, workers, two_streams=True)
        monkeypatch.setattr(output, "ROWS_WEIGHTS", 256 * 1000)
        monkeypatch.setattr(calibrated, "BLOCK", 32)
        narrow = replace(SETTINGS, widest=128)
        parts = quantize_output(found, "Q4_0", narrow, workers, two_streams=True)
        assert len(output.row_slabs(found)) > 2
    entered = []
    head = loaded.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0][0]))
    loaded.logits(torch.from_numpy(chunks[12:].astype(np.int64)))
    wanted = open_source(untied()).read("output.weight").view(np.float16).astype(np.float32)
    plain = oracle.quantize(wanted, "Q4_0", np.square(entered[0].numpy()).mean(0))
    losses = [
        np.square((dequantize(blocks, "Q4_0") - wanted) @ entered[0].numpy().T).sum()
        for blocks in (plain, whole.blocks[0], parts.blocks[0])
    ]
    assert losses[1] < 0.7 * losses[0]
    assert losses[2] < 0.9 * losses[0]
    assert whole.blocks.shape == parts.blocks.shape == (1, *plain.shape)
