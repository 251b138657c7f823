"""The walk of every family: layer by layer it is a pass of the whole model, and comes to its matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantmill.calibrate.costs import Setting, layer_of, memory_of
from quantmill.gguf_io.source import open_source
from quantmill.models.capture import handing_on, named_layers, puts_out_more, widths
from quantmill.models.exchange import Exchange
from quantmill.models.model import from_source
from quantmill.models.walk import Walk, chunks_together, walked_names
from quantmill.models.workers import working
from tests.support.measure_families import FAMILIES, random_model

# What a walk cannot feed: transformers never multiplies by attn_k_b, routers are no block matrices of a type.
NEVER = ("attn_k_b", "ffn_gate_inp", "ssm_", "shortconv", "hc_", "_ape.", "tid2eid")


class Rows:
    def __init__(self) -> None:
        self.n = 0

    def add(self, batch: int, seen: object) -> None:
        self.n += sum(seen.counts)  # type: ignore[attr-defined]

    def join(self, other: Rows) -> None:
        self.n += other.n


class Kept:
    """Keeps what it sees, by batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Any]] = []

    def add(self, batch: int, seen: object) -> None:
        self.seen.append((batch, seen))

    def join(self, other: Kept) -> None:
        self.seen += other.seen


def behind(walk: Walk, states: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """What the model makes of the states behind its layers, before its head."""
    base, found = walk.loaded.model.base_model, []
    more = puts_out_more(walk.modules[0])
    for ids, state in zip(walk.batches, states.values(), strict=True):
        out = (state, None) if more else (state,) if walk.layers_give_tuples else state
        with torch.no_grad(), handing_on(walk.modules, lambda out=out: out):
            found.append(base(input_ids=ids, use_cache=False).last_hidden_state)
    return torch.cat(found)


def some_text(n_ctx: int) -> np.ndarray:
    """Chunks for batches of several sequences, and a last batch of fewer."""
    ids = np.random.default_rng(0).integers(0, 2000, (13, n_ctx)).astype(np.int32)
    assert (chunks_together("cpu", *ids.shape), len(ids) % 2) == (2, 1)
    return ids


# Their layers are made of parts that others have.
ALIKE = (
    *("granite 4, no experts", "granite 4, dense", "deepseek v3.2", "hy v3", "laguna", "afmoe", "hunyuan"),
    *("cohere 2 moe", "nemotron h", "hunyuan moe"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else []) for name in FAMILIES],
)
def test_walk(name: str, tmp_path: Path) -> None:
    random_model(tmp_path, *FAMILIES[name])
    loaded = from_source(open_source(tmp_path), tmp_path, torch.device("cpu"), torch.float32)
    ids = some_text(24)
    visited = set()
    with working(1, "cpu") as workers:
        walk = Walk(loaded, ids, workers.map)
        for layer in walk.layers():
            for place in layer.places:
                assert layer.visit(place, Rows).n > 0
                visited |= {taker for taker, _ in place.takers}
        output = walk.output()
        assert (output is None) == loaded.model.config.get_text_config().tie_word_embeddings
        seen = [] if output is None else output.visit(Kept).seen
    tokens = torch.cat(walk.batches)
    base = loaded.model.base_model
    with torch.no_grad():
        whole = base(input_ids=tokens, use_cache=False).last_hidden_state
        before_head = []
        head = loaded.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, inputs: before_head.append(inputs[0]))
        loaded.model(input_ids=tokens, use_cache=False)
        hook.remove()
    torch.testing.assert_close(behind(walk, walk.changed), whole, rtol=1e-4, atol=1e-4)
    if seen:
        entered = torch.cat([one.changed[0] for _, one in seen])
        torch.testing.assert_close(entered, before_head[0].flatten(0, 1), rtol=1e-4, atol=1e-4)
    wanted = {name for name in walked_names(loaded) if not any(part in name for part in NEVER)}
    assert wanted <= visited


# Layers that are given more than hidden states: something of each text (an embedding for every layer, V4's tokens),
# what the indexer of the layer before has chosen, keys and values of an earlier one.
GIVEN_MORE = ("gemma 3n", "gemma 4", "glm 5", "deepseek v4")


@pytest.mark.parametrize("name", GIVEN_MORE)
def test_the_changed_stream_is_a_pass_of_the_changed_model(name: str, tmp_path: Path) -> None:
    random_model(tmp_path, *FAMILIES[name])
    loaded = from_source(open_source(tmp_path), tmp_path, torch.device("cpu"), torch.float32)
    ids = some_text(56)  # more tokens than the indexers choose
    changed = {}
    torch.manual_seed(1)
    with working(1, "cpu") as workers:
        walk = Walk(loaded, ids, workers.map)
        for layer in walk.layers():
            for place in layer.places:
                layer.visit(place, Rows)
                for taker, _ in place.takers:
                    weight = layer.weight(taker)
                    changed[taker] = weight + 0.2 * weight.std() * torch.randn_like(weight)
                    layer.change(taker, changed[taker])
    before = behind(walk, walk.original)
    exchange = Exchange(loaded)
    for tensor, values in changed.items():
        exchange.put(tensor, "F32", values.flatten(0, -2).numpy().view(np.uint8))
    with torch.no_grad():
        whole = loaded.model.base_model(input_ids=torch.cat(walk.batches), use_cache=False).last_hidden_state
    assert (before - whole).norm() > 0.05 * whole.norm()
    torch.testing.assert_close(behind(walk, walk.changed), whole, rtol=1e-3, atol=1e-3)


# Numbers of a token between layers (Gemma 3n has four streams, V4 too); bytes kept of it for all of them: an embedding
# for each of six layers, a token's number.
WIDTHS = {
    "gemma 3n": (4 * 128, 6 * 32 * 4),
    "gemma 4": (128, 6 * 32 * 4),
    "deepseek v4": (4 * 128, 8),
    "llama": (128, 0),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_memory_is_estimated_with_what_layers_are_given(name: str, tmp_path: Path) -> None:
    random_model(tmp_path, *FAMILIES[name])
    loaded = from_source(open_source(tmp_path), tmp_path, torch.device("cpu"), torch.float32)
    ids = torch.arange(80).view(2, 40)
    with torch.inference_mode():
        states, beside = widths(loaded.model, named_layers(loaded.model)[1], ids)
    assert (states, beside) == WIDTHS[name]
    layer = layer_of({"attn_q.weight": (128, 128)}, 1)
    plain, given = (
        Setting(10240, 512, 128, "cuda", **more) for more in ({}, {"states": states, "beside": beside})
    )
    more = memory_of(layer, given) - memory_of(layer, plain)
    assert more == 10240 * (beside + 4 * 6 * (states - 128))
