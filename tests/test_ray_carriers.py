"""What a worker does for a quantization, and what it says where it cannot; without Ray."""

import errno
import os
import platform
import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from quantmill import __version__, cli
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.shared import SharedRows
from quantmill.jobs import cluster, compensate_carrier, squeeze_on_ray
from quantmill.jobs.carrier import SlabCarrier, Task, as_workers_see, inputs_of
from quantmill.jobs.edits import open_model
from quantmill.jobs.quantize import Job, plan_job, run
from quantmill.jobs.squeeze_on_ray import CandidateCarrier
from quantmill.recipe import Recipe
from quantmill.recipe.slabs import slabs
from tests.support.fake_ray import Cluster
from tests.support.measure_models import EXAMPLE, tiny


def opened(tmp_path, entries_type="Q4_0"):
    """A job, its plan, and an output that is open for others to write into."""
    job = Job(str(tiny("F16")), tmp_path / "out.gguf", Recipe(entries_type), device="cpu")
    plan = plan_job(job)
    return job, plan, GGUFSink(job.output, plan.metadata, plan.output_tensors())


def task_of(job, sink, **changes):
    with open_source(job.source) as source:
        inputs = inputs_of(source.paths)
    return replace(Task(job, inputs, (sink.places(),), None, 1), **changes)


def test_a_carrier_writes_what_the_line_writes(tmp_path):
    job, plan, sink = opened(tmp_path)
    with sink:
        carrier = SlabCarrier(task_of(job, sink))
        assert [engine.name for engine in carrier.ready(__version__).found] == ["cpu"]
        rows = list(slabs([plan.entries], 1 << 18))
        for slab in reversed(rows):  # in any order, some twice
            for _ in range(1 + (slab.first_row == 0)):
                outcome = carrier.carry(slab)
                assert outcome.error is None
            sink.count_written(slab.entries[0].name, slab.n_rows)
        assert carrier.finish().error is None
        carrier.close()
        sink.commit()
    whole = run(replace(job, output=tmp_path / "whole.gguf"))
    assert (tmp_path / "out.gguf").read_bytes() == whole.paths[0].read_bytes()


def test_rows_that_nobody_counted_are_missed(tmp_path):
    _, _, sink = opened(tmp_path)
    with sink, pytest.raises(GGUFError, match=r"0 bytes written, \d+ declared"):
        sink.commit()
    assert not list(tmp_path.iterdir())


def test_what_a_worker_does_not_see_is_said(tmp_path):
    job, _, sink = opened(tmp_path)

    def complaint(task, version=__version__):
        outcome = SlabCarrier(task).ready(version)
        assert outcome.error.startswith(f"{outcome.host}: ")
        return outcome.error

    with sink:
        task = task_of(job, sink)
        gone = replace(task.inputs[0], path=str(tmp_path / "elsewhere.gguf"))
        found = complaint(replace(task, inputs=(gone,)))
        assert "elsewhere.gguf: cannot be read here (No such file or directory); put the model" in found
        other = replace(task.inputs[0], ends="0" * 64)
        assert "is another file here than on the head" in complaint(replace(task, inputs=(other,)))
        places = task.outputs[0]
        unseen = replace(places, files=(replace(places.files[0], path=tmp_path / "nowhere"),))
        assert "out.gguf: the output is not seen here" in complaint(replace(task, outputs=(unseen,)))
        assert f"has quantmill {__version__}, the head 0.0; install the same" in complaint(task, "0.0")


def test_settings_of_a_checkpoint_that_differ_are_said(tmp_path):
    """They decide what its tensors become, so that a worker with others would write other rows."""
    shutil.copytree(EXAMPLE, tmp_path / "model")
    job = Job(str(tmp_path / "model"), tmp_path / "x.gguf", Recipe("Q4_0"), device="cpu")
    with closing(open_model(job.source, job.edits, job.later)) as source:
        job, inputs = as_workers_see(job, source)
    settings = tmp_path / "model" / "config.json"
    settings.write_text(settings.read_text().replace('"rope_theta": 10000', '"rope_theta": 10001') + " ")
    said = SlabCarrier(Task(job, inputs, (), None, 1)).ready(__version__).error
    assert f"{settings}: is another file here than on the head (" in said


def test_an_output_that_a_worker_of_a_compensation_does_not_see_is_said(tmp_path):
    """It would come to nothing after the first layer, for finished layers lie beside the output."""
    job, _, sink = opened(tmp_path)
    with sink:
        task = task_of(job, sink)
        files = tuple(replace(one, path=tmp_path / "nowhere") for one in task.outputs[0].files)
        output = replace(task.outputs[0], files=files)
        chunks = np.zeros((1, 8), np.int32)
        unseen = compensate_carrier.Task(job, task.inputs, chunks, True, {}, output, tmp_path, "cpu", 1)
        said = compensate_carrier.CompensateCarrier(unseen).ready(__version__).error
    assert said.startswith(
        f"{platform.node()}: {tmp_path / 'out.gguf'}: the output is not seen here (No such file"
    )
    assert said.endswith("write it into a file system that all share")


def test_a_set_that_a_worker_does_not_see_is_said(tmp_path):
    mark = tmp_path / "set" / ".quantmill" / "aside-0-seen"
    said = CandidateCarrier(squeeze_on_ray.Task((), 1, mark)).ready(__version__).error
    assert said == (
        f"{platform.node()}: {mark.parent}: is not seen here; write the set (-o) into a file system that all "
        "hosts share"
    )
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert CandidateCarrier(squeeze_on_ray.Task((), 1, mark)).ready(__version__).error is None


def test_a_full_disk_of_one_worker_is_said(tmp_path, monkeypatch):
    with GGUFSink(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (64, 4), "F32")]) as sink:
        rows = SharedRows(sink.places())

        def full(*given):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(GGUFError, match=r"x\.gguf: the disk is full at byte \d+ of \d+; free space"):
            rows.write_rows("a", 0, bytes(1024))
        rows.close()


def test_a_disk_that_is_full_on_the_way_ends_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "ray_module", lambda: Cluster(2))
    written, pwrite = [], os.pwrite

    def full(*given):
        written.append(given)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*given)

    monkeypatch.setattr(os, "pwrite", full)
    words = [
        "quantize",
        str(tiny("F16")),
        str(tmp_path / "x.gguf"),
        "Q4_0",
        "--max-buffer-size",
        "1",
        "--ray",
    ]
    assert cli.main(words) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {platform.node()}: {tmp_path / 'x.gguf'}: the disk is full at byte ")
    assert not list(tmp_path.iterdir())
