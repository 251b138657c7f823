"""The walk of every family: layer by layer it is a pass of the whole model, and comes to its matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantmill.gguf_io.source import open_source
from quantmill.models.errors import ModelError
from quantmill.models.model import from_source
from quantmill.models.walk import Walk, walked_names
from quantmill.models.workers import working
from tests.support.measure_families import FAMILIES, random_model

# What a walk cannot feed: transformers never multiplies by attn_k_b, routers are no block matrices of a type.
NEVER = ("attn_k_b", "ffn_gate_inp", "ssm_", "shortconv")


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


_FINAL_NORMS = (
    "norm",
    "final_layernorm",
    "embedding_norm",
    "norm_f",
)  # the last two are LFM2's and Nemotron's


# Families whose layers cannot be run one by one, and what is said of it.
UNWALKABLE = {
    "gemma 3n": "its layers are given more than the hidden states of a text",
    "gemma 4": "its layers are given more than the hidden states of a text",
    "glm 5": "its layers are given more than the hidden states of a text",
    "deepseek v4": "its layers are given more than the hidden states of a text",
}


@pytest.mark.parametrize("name", UNWALKABLE)
def test_what_cannot_be_walked_is_said(name: str, tmp_path: Path) -> None:
    random_model(tmp_path, *FAMILIES[name])
    loaded = from_source(open_source(tmp_path), tmp_path, torch.device("cpu"), torch.float32)
    ids = np.random.default_rng(0).integers(0, 2000, (4, 40)).astype(np.int32)
    with working(1) as workers, pytest.raises(ModelError, match=UNWALKABLE[name]):
        Walk(loaded, ids, workers.map)


# Their layers are made of parts that others have.
ALIKE = (
    *("granite 4, no experts", "granite 4, dense", "deepseek v3.2", "hy v3", "laguna", "afmoe", "hunyuan"),
    *("cohere 2 moe", "nemotron h", "hunyuan moe"),
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ALIKE else [])
        for name in FAMILIES
        if name not in UNWALKABLE
    ],
)
def test_walk(name: str, tmp_path: Path) -> None:
    random_model(tmp_path, *FAMILIES[name])
    loaded = from_source(open_source(tmp_path), tmp_path, torch.device("cpu"), torch.float32)
    ids = np.random.default_rng(0).integers(0, 2000, (4, 40)).astype(np.int32)
    visited = set()
    with working(1) as workers:
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
        final = next(part for key, part in base.named_children() if key in _FINAL_NORMS)
        ended = final(torch.cat(walk.changed))
        before_head = []
        head = loaded.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, inputs: before_head.append(inputs[0]))
        loaded.model(input_ids=tokens, use_cache=False)
        hook.remove()
    torch.testing.assert_close(ended, whole, rtol=1e-4, atol=1e-4)
    if seen:
        entered = torch.cat([one.changed[0] for _, one in seen])
        torch.testing.assert_close(entered, before_head[0].flatten(0, 1), rtol=1e-4, atol=1e-4)
    wanted = {name for name in walked_names(loaded) if not any(part in name for part in NEVER)}
    assert wanted <= visited
