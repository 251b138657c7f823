"""A collection that is stopped, cannot be saved or meets what is not finite."""

from __future__ import annotations

import functools
import json
import random
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from quantmill.gguf_io.source import open_source
from quantmill.imatrix import store, unfinished
from quantmill.imatrix.collect import Done, Result, Settings, collect
from quantmill.imatrix.gguf_format import write_gguf
from quantmill.imatrix.matrix import ImatrixError, ImportanceMatrix
from quantmill.imatrix.run import Saving, run
from quantmill.imatrix.sums import Sums
from quantmill.models.errors import ModelError
from tests.support.imatrix_models import (
    N_CTX,
    N_VOCAB,
    collected,
    dense_model,
    experts_model,
    some_chunks,
    table_of,
)

CHUNKS = some_chunks(7)
MODELS = {"dense": dense_model, "experts": experts_model}


@functools.cache
def model_of(name: str) -> Any:
    return MODELS[name]()


@pytest.fixture(scope="module")
def dense() -> Any:
    return model_of("dense")


def settings_of(name: str) -> Settings:
    return Settings(batch=1, with_means=name == "dense", process_output=True)


def run_of(name: str, saving: Saving, show: Any = lambda progress: None) -> tuple[ImportanceMatrix, Result]:
    model = model_of(name)
    return run(model, table_of(model), CHUNKS, settings_of(name), saving, show)


def finished(name: str, folder: Path, resume: bool = False) -> bytes:
    """What a run writes in the end."""
    saving = Saving(folder / "out.gguf", ("t",), "m", every=2, resume=resume)
    matrix, _ = run_of(name, saving)
    store.save(saving.output, matrix)
    return saving.output.read_bytes()


@functools.cache
def whole(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return finished(name, Path(folder))


def stopped(name: str, folder: Path, after: int, every: int = 2, resume: bool = False) -> Saving:
    """The saving of a run that was interrupted."""
    saving = Saving(folder / "out.gguf", ("t",), "m", every=every, resume=resume)

    def stop(progress: Any) -> None:
        if progress.n_done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(name, saving, stop)
    return saving


def test_a_stopped_run_leaves_what_was_done(dense: Any, tmp_path: Path) -> None:
    saving = stopped("dense", tmp_path, 5)
    assert not saving.output.exists()
    part, until_then = store.load(saving.partial), Result()
    for progress in collect(dense, table_of(dense), CHUNKS, settings_of("dense"), until_then):
        if progress.n_done == 5:
            break
    expected = until_then.matrix(("t",), N_CTX)
    assert (part.chunk_count, part.chunk_size, part.datasets) == (5, N_CTX, ("t",))
    assert part.entries.keys() == expected.entries.keys()
    for key, entry in expected.entries.items():
        assert np.array_equal(part.entries[key].in_sum2, entry.in_sum2), key
        assert np.array_equal(part.entries[key].counts, entry.counts), key
    with pytest.raises(ImatrixError, match="--resume"):
        run_of("dense", saving)
    resuming = replace(saving, resume=True)
    with pytest.raises(ImatrixError, match="another run"):
        run(dense, table_of(dense), some_chunks(7, seed=9), settings_of("dense"), resuming)


@pytest.mark.parametrize("after", range(1, 8))
@pytest.mark.parametrize("name", MODELS)
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, name: str, after: int) -> None:
    stopped(name, tmp_path, after)
    assert finished(name, tmp_path, resume=True) == whole(name)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_is_stopped_after_every_chunk(tmp_path: Path, name: str) -> None:
    for after in range(1, 7):
        saving = stopped(name, tmp_path, after, every=0, resume=True)
        assert store.load(saving.partial).chunk_count == after
    matrix, result = run_of(name, replace(saving, resume=True))
    store.save(saving.output, matrix)
    assert saving.output.read_bytes() == whole(name)
    with tempfile.TemporaryDirectory() as folder:
        _, of_whole = run_of(name, Saving(Path(folder) / "out.gguf", ("t",), "m"))
    assert result.perplexity() == of_whole.perplexity()


def interrupted(model: Any, saving: Saving, at: int) -> bool:
    """Whether an interrupt came to a run of three chunks, as line number `at` of collect and run was to be run."""
    codes = {collect.__code__, run.__code__}
    n_lines = 0

    def line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal n_lines
        n_lines += event == "line"
        if event == "line" and n_lines == at:
            raise KeyboardInterrupt
        return line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: line if frame.f_code in codes else None)
    try:
        run(model, table_of(model), CHUNKS[:3], settings_of("dense"), saving)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_between_any_two_lines(dense: Any, tmp_path: Path) -> None:
    """No chunk is counted in the sums and not among the chunks, nor the other way round."""
    expected, _ = collected(dense, CHUNKS[:3], **asdict(settings_of("dense")))
    at, left = 1, set()
    saving = Saving(tmp_path / "1.gguf", ("text",), "m", every=2)
    while interrupted(dense, saving, at):
        left.add(store.load(saving.partial).chunk_count if saving.partial.exists() else 0)
        resuming = replace(saving, resume=True)
        matrix, _ = run(dense, table_of(dense), CHUNKS[:3], settings_of("dense"), resuming)
        for key, entry in expected.entries.items():
            assert np.array_equal(matrix.entries[key].in_sum2, entry.in_sum2), at
            assert np.array_equal(matrix.entries[key].counts, entry.counts), at
        at += 1
        saving = replace(saving, output=tmp_path / f"{at}.gguf")
    assert left == {0, 1, 2, 3}, at


@pytest.mark.parametrize("name", MODELS)
def test_a_damaged_part_is_refused(tmp_path: Path, name: str) -> None:
    partial = stopped(name, tmp_path, 4).partial
    sound, drawn, n_refused = partial.read_bytes(), random.Random(name), 0
    for i in range(30):
        data = bytearray(sound)
        if i % 3:
            data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        else:
            del data[drawn.randrange(len(data)) :]
        partial.write_bytes(data)
        said = ""
        try:
            found = finished(name, tmp_path, resume=True)
        except ImatrixError as error:
            said = str(error)
        if said:
            n_refused += 1
            assert str(partial) in said
            assert said.endswith("remove it to begin anew")
            assert "\n" not in said
        else:  # it was padding, or what is not gone on from
            assert found == whole(name)
    assert n_refused > 15


def test_a_part_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    """Whose sums were rounded before the rest was added."""
    saving = stopped("dense", tmp_path, 4)
    with open_source(saving.partial) as source:
        state = json.loads(source.metadata.value(unfinished.RUN))
    earlier = {key: state[key] for key in ("identity", "nll", "nll2", "n_scored")}
    text = MetaValue(GGUFValueType.STRING, json.dumps(earlier))
    write_gguf(saving.partial, store.load(saving.partial), {unfinished.RUN: text})
    with pytest.raises(ImatrixError, match=r"earlier version of quantmill.*remove it to begin anew"):
        run_of("dense", replace(saving, resume=True))
    write_gguf(saving.partial, store.load(saving.partial))
    with pytest.raises(ImatrixError, match="does not say how far it got"):
        run_of("dense", replace(saving, resume=True))


def test_what_is_kept_is_exact(tmp_path: Path) -> None:
    """Counts that no float32 holds, what two float32 hold and one does not, and zeros with their sign."""
    high = torch.tensor([[1.0, -0.0, 2.0**30], [3.0, 0.5, 7.0]])
    low = torch.tensor([[2.0**-40, -0.0, -1.5], [-(2.0**-30), 0.0, 1e-45]])
    counts = np.array([2**24 + 1, 2**53 + 1])
    done = Done(
        3,
        0.1,
        1 / 3,
        2**40,
        {"a": Sums(counts, (high, low), (low, high)), "b": Sums(counts, (low, high), (high, low))},
    )
    unfinished.save_unfinished(tmp_path / "x.gguf", ImportanceMatrix({}), done, "this")
    found = unfinished.load_unfinished(tmp_path / "x.gguf", "this")
    assert (found.n_chunks, found.nll, found.nll2, found.n_scored) == (3, 0.1, 1 / 3, 2**40)
    assert list(found.sums) == ["a", "b"]
    for key, kept in done.sums.items():
        read = found.sums[key]
        assert read.counts.tolist() == counts.tolist()
        assert kept.plain is not None
        assert read.plain is not None
        for ours, theirs in zip((*read.square, *read.plain), (*kept.square, *kept.plain), strict=True):
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()
            assert ours.shape == theirs.shape


def test_sums_of_what_is_not_watched_any_more(dense: Any, tmp_path: Path) -> None:
    saving = stopped("dense", tmp_path, 4)
    with pytest.raises(ImatrixError, match=r"lm_head|output\.weight: the run that was stopped has sums"):
        list(collect(dense, table_of(dense), CHUNKS, Settings(batch=1), Result(kept_of(saving))))


def kept_of(saving: Saving) -> Done:
    with open_source(saving.partial) as source:
        identity = json.loads(source.metadata.value(unfinished.RUN))["identity"]
    return unfinished.load_unfinished(saving.partial, identity)


def test_a_failing_save_does_not_end_the_run(
    dense: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quantmill.imatrix.run.save_unfinished", full)
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
