"""A collection that is stopped, cannot be saved or meets what is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantmill.imatrix import store
from quantmill.imatrix.collect import Result, Settings, collect
from quantmill.imatrix.matrix import ImatrixError
from quantmill.imatrix.run import Saving, run
from quantmill.models.errors import ModelError
from tests.support.imatrix_models import (
    N_CTX,
    N_VOCAB,
    collected,
    dense_model,
    some_chunks,
    table_of,
)


@pytest.fixture(scope="module")
def dense() -> Any:
    return dense_model()


def test_a_stopped_run_goes_on_where_it_was(dense: Any, tmp_path: Path) -> None:
    chunks = some_chunks(7)
    table, settings = table_of(dense), Settings(batch=1, with_means=True)
    whole, of_whole = run(dense, table, chunks, settings, Saving(tmp_path / "whole.gguf", ("t",), "m"))
    saving = Saving(tmp_path / "out.gguf", ("t",), "m", every=2)

    def stop_after_five(progress: Any) -> None:
        if progress.n_done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dense, table, chunks, settings, saving, stop_after_five)
    assert not saving.output.exists()
    assert store.load(saving.partial).chunk_count == 5
    with pytest.raises(ImatrixError, match="--resume"):
        run(dense, table, chunks, settings, saving)
    resuming = Saving(saving.output, ("t",), "m", every=2, resume=True)
    with pytest.raises(ImatrixError, match="another run"):
        run(dense, table, some_chunks(7, seed=9), settings, resuming)
    rest, of_rest = run(dense, table, chunks, settings, resuming)
    assert rest.chunk_count == 7
    assert (rest.datasets, rest.run) == (("t",), "")
    assert of_rest.perplexity() == pytest.approx(of_whole.perplexity(), rel=1e-12)
    for name, entry in whole.entries.items():
        assert rest.entries[name].counts.tolist() == entry.counts.tolist()
        np.testing.assert_allclose(rest.entries[name].in_sum2, entry.in_sum2, rtol=2.4e-7)


def test_a_failing_save_does_not_end_the_run(
    dense: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quantmill.imatrix.run.save", full)
    warnings: list[str] = []
    saving = Saving(tmp_path / "out.gguf", ("t",), "m", every=1)
    matrix, _ = run(dense, table_of(dense), some_chunks(3), Settings(batch=1), saving, warn=warnings.append)
    assert matrix.chunk_count == 3
    assert len(warnings) == 2
    assert "No space left" in warnings[0]


def test_what_is_not_finite_is_named_with_its_chunk(dense: Any) -> None:
    chunks = some_chunks(4)
    chunks[chunks == 3] = 4
    chunks[2, 5] = 3  # only the third chunk holds token 3
    embedding = dense.get_input_embeddings().weight
    kept = embedding.detach().clone()
    try:
        with torch.no_grad():
            embedding[3, 0] = float("inf")
        result = Result()
        with pytest.raises(ImatrixError, match=r"blk\.0\.attn_q\.weight: .* not finite in chunk 3"):
            for _ in collect(dense, table_of(dense), chunks, Settings(batch=2), result):
                pass
    finally:
        with torch.no_grad():
            embedding.copy_(kept)
    assert result.n_done == 2  # the batch before is kept
    assert np.isfinite(result.matrix((), N_CTX).entries["blk.0.attn_q.weight"].in_sum2).all()


def test_a_token_outside_the_vocabulary_is_refused(dense: Any) -> None:
    chunks = some_chunks(2)
    chunks[0, 0] = N_VOCAB
    with pytest.raises(ModelError, match=f"token {N_VOCAB} .* vocabulary of {N_VOCAB}"):
        collected(dense, chunks)
