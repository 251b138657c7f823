"""What runs keep beside their outputs: found again, told from other runs' and from what is damaged."""

import errno

import numpy as np
import pytest

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.partial import partial_path
from quantmill.jobs.errors import ClusterError, HeadLost, JobError, KeptError
from quantmill.jobs.finished_layers import FinishedLayers, advice_of, finished_path
from quantmill.jobs.going_on import keeping
from quantmill.jobs.polish_state import Kept, kept_place

RUN = {"model": "a", "text": "b"}
BLOCKS = {"blk.0.attn_q.weight": np.arange(24, dtype=np.uint8).reshape(1, 2, 12)}


def kept(folder, run=RUN, resume=True):
    return FinishedLayers(folder / "out.gguf", run, resume)


def test_layers_come_back_up_to_the_first_gap(tmp_path):
    first = kept(tmp_path, resume=False)
    for layer in (0, 1, 3):
        first.write(layer, BLOCKS)
    again = kept(tmp_path)
    assert again.n_found == 2
    assert {name: part.tolist() for name, part in again.read(1).items()} == {
        name: part.tolist() for name, part in BLOCKS.items()
    }
    with pytest.raises(JobError, match=r"another text\)"):
        kept(tmp_path, RUN | {"text": "c"})
    with pytest.raises(JobError, match="--resume"):
        kept(tmp_path, resume=False)
    again.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_it_said_which_it_is(tmp_path, resume):
    layers, trained = finished_path(tmp_path / "out.gguf"), kept_place(tmp_path / "out.gguf")
    for folder in (layers, trained):
        folder.mkdir()
        partial_path(folder / "run.json").write_bytes(b"{")
    found = kept(tmp_path, resume=resume)
    assert found.n_found == 0
    found.write(0, BLOCKS)
    assert kept(tmp_path).n_found == 1
    Kept(tmp_path / "out.gguf", "a", resume, print)
    Kept(tmp_path / "out.gguf", "a", True, print)
    with pytest.raises(JobError, match="another run"):
        Kept(tmp_path / "out.gguf", "b", True, print)


@pytest.mark.parametrize("said", [None, b"", b"[]", b"[1]", b"3", b"\xff\xfe", b'{"model": '])
def test_layers_of_an_unknown_run_are_not_taken(tmp_path, said):
    kept(tmp_path).write(0, BLOCKS)
    note = finished_path(tmp_path / "out.gguf") / "run.json"
    note.unlink()
    if said is not None:
        note.write_bytes(said)
    with pytest.raises(JobError, match=r"run\.json: does not say|holds layers of another run"):
        kept(tmp_path)


@pytest.mark.parametrize("keep", [0, 9, 100, 300])
def test_a_damaged_layer_is_named_and_made_again(tmp_path, keep):
    kept(tmp_path).write(0, BLOCKS)
    file = finished_path(tmp_path / "out.gguf") / "layer-0000.npz"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(JobError, match=r"layer-0000\.npz: is damaged; remove it"):
        kept(tmp_path).read(0)
    file.unlink()
    assert kept(tmp_path).n_found == 0


def test_bytes_that_flipped_in_a_layer_are_noticed(tmp_path):
    kept(tmp_path).write(0, BLOCKS)
    file = finished_path(tmp_path / "out.gguf") / "layer-0000.npz"
    stored = bytearray(file.read_bytes())
    stored[stored.index(bytes(range(24)))] ^= 1
    file.write_bytes(stored)
    with pytest.raises(JobError, match="is damaged"):
        kept(tmp_path).read(0)


def test_a_run_that_finished_nothing_leaves_nothing_to_trip_over(tmp_path, monkeypatch):
    layers = finished_path(tmp_path / "out.gguf")
    layers.mkdir()
    (layers / "run.json").write_text('{"model": "another"}')
    partial_path(layers / "layer-0000.npz").write_bytes(b"PK")
    assert kept(tmp_path, resume=False).n_found == 0
    assert advice_of(tmp_path / "out.gguf") == "no layer was finished yet"
    kept(tmp_path).write(0, BLOCKS)
    assert kept(tmp_path).n_found == 1
    assert advice_of(tmp_path / "out.gguf").endswith("go on with --resume")


@pytest.mark.parametrize(
    ("error", "told", "stays"),
    [
        (GGUFError("x: the disk is full"), "x: the disk is full; kept", True),
        (ClusterError("n0: no room"), "n0: no room; kept", True),
        (HeadLost("gone: with --resume"), "gone: with --resume", True),
        (KeptError("layer-0000.npz: is damaged"), "layer-0000.npz: is damaged", True),
        (PermissionError(errno.EACCES, "denied", "x"), "[Errno 13] denied; kept: 'x'", True),
        (JobError("blk.0: row 3: too large"), "blk.0: row 3: too large", False),
    ],
)
def test_what_stays_behind_an_error_is_said(error, told, stays):
    removed = []
    with pytest.raises(type(error)) as raised, keeping(lambda: "kept", lambda: removed.append(1)):
        raise error
    assert (str(raised.value), not removed) == (told, stays)


def test_a_file_in_the_way(tmp_path):
    finished_path(tmp_path / "out.gguf").write_text("mine\n")
    with pytest.raises(JobError, match="in a folder of this name"):
        kept(tmp_path, resume=False)
