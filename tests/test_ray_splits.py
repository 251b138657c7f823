"""Hosts that share no file system: each reads its own copy of the model, and makes its own split of the output."""

import json
import shutil

import numpy as np
import pytest

from quantmill import cli
from quantmill.gguf_io import open_source
from quantmill.jobs import cluster
from quantmill.jobs.crew import Crew
from quantmill.jobs.split_carrier import SplitCarrier
from tests.support.fake_ray import Cluster
from tests.support.llama_model import LlamaModel
from tests.support.measure_models import EXAMPLE, tiny


@pytest.fixture
def fake(monkeypatch):
    made = Cluster(2)
    monkeypatch.setattr(cluster, "ray_module", lambda: made)
    return made


def content(path):
    source = open_source(path)
    held = {spec.name: (spec.type, spec.shape, source.read(spec.name).tobytes()) for spec in source.specs()}
    source.close()
    return held


def test_a_split_of_each_worker(tmp_path, fake, capsys):
    folder = tmp_path / "disk"
    folder.mkdir()
    common = ["--imatrix", str(EXAMPLE / "imatrix.gguf"), "--threads", "1"]
    on = ["--ray", "--output-on", f"workers:{folder}", "--json"]
    assert cli.main(["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_K_M", *common, *on]) == 0
    out, said = capsys.readouterr()
    names = [f"x-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert sorted(path.name for path in folder.iterdir()) == names
    told = json.loads(out)
    assert told["files"] == [str(folder / name) for name in names]
    for host, name in zip(told["hosts"], names, strict=True):
        assert f"{host}: {folder / name}" in said
    assert sorted(told["hosts"]) == ["host0", "host1"]
    assert cli.main(["quantize", str(tiny("F16")), str(tmp_path / "y.gguf"), "Q4_K_M", *common]) == 0
    assert content(folder / names[0]) == content(tmp_path / "y.gguf")
    with LlamaModel(folder / names[0]) as split, LlamaModel(tmp_path / "y.gguf") as whole:
        tokens = whole.tokenize("The splits of a model are read together.")
        np.testing.assert_array_equal(split.logits(tokens), whole.logits(tokens))


def test_several_types_are_cut_alike(tmp_path, fake):
    folder = tmp_path / "out"
    folder.mkdir()
    words = ["quantize", str(EXAMPLE), str(folder), "Q4_0,Q8_0", "--threads", "1"]
    assert cli.main([*words, "--ray", "--output-on", "workers"]) == 0
    assert len(list(folder.iterdir())) == 4
    (first,) = folder.glob("*Q4_0-00001-of-00002.gguf")
    assert cli.main(["quantize", str(EXAMPLE), str(tmp_path / "y.gguf"), "Q4_0", "--threads", "1"]) == 0
    assert content(first) == content(tmp_path / "y.gguf")


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_of_one_leaves_nothing_of_the_others(tmp_path, fake, monkeypatch, capsys, number):
    made = SplitCarrier.make

    def make(carrier, wanted):
        found = made(carrier, wanted)
        if wanted == number:
            raise OSError(28, "No space left on device")
        return found

    monkeypatch.setattr(SplitCarrier, "make", make)
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0", "--threads", "1"]
    assert cli.main([*words, "--ray", "--output-on", "workers"]) == 1
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing_on_any_worker(tmp_path, fake, monkeypatch):
    def interrupted(crew, hand):
        raise KeyboardInterrupt

    monkeypatch.setattr(Crew, "finish", interrupted)
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0", "--threads", "1"]
    assert cli.main([*words, "--ray", "--output-on", "workers"]) == 130
    assert not list(tmp_path.iterdir())


def test_a_worker_with_a_finished_split_is_lost(tmp_path, fake, monkeypatch):
    """What lay on it is made again."""
    finish, lost = Crew.finish, []

    def losing(crew, hand):
        if not lost and any(actor.n_pieces for actor in fake.actors) and not hand.busy:
            lost.append(hand)
            for sinks in hand.actor.made.result()._made.values():  # a process that ends gives up its locks
                for sink in sinks:
                    sink.__exit__()
            hand.actor.lose()
        return finish(crew, hand)

    monkeypatch.setattr(Crew, "finish", losing)
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0", "--threads", "1"]
    assert cli.main([*words, "--ray", "--output-on", "workers"]) == 0
    assert lost
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"x-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert cli.main(["quantize", str(tiny("F16")), str(tmp_path / "y.gguf"), "Q4_0", "--threads", "1"]) == 0
    assert content(tmp_path / "x-00001-of-00002.gguf") == content(tmp_path / "y.gguf")


def test_own_copies_of_the_model(tmp_path, fake, capsys):
    copies = tmp_path / "copies"
    copies.mkdir()
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0", "--threads", "1", "--force"]
    there = [*words, "--ray", "--source-on", f"workers:{copies}"]
    copy = copies / tiny("F16").name

    def refused():
        assert cli.main(there) == 1
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert str(copy) in line
        assert not (tmp_path / "x.gguf").exists()
        return line

    assert "cannot be read here (No such file or directory)" in refused()
    shutil.copyfile(tiny("F16"), copy)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400_000] = bytes(400_000)  # far from both ends
    copy.write_bytes(data)
    assert "is another file here than on the head (other content)" in refused()
    copy.write_bytes(data[:-1])
    assert f"({len(data) - 1} bytes instead of {len(data)})" in refused()
    shutil.copyfile(tiny("F16"), copy)
    assert cli.main(there) == 0
    found = (tmp_path / "x.gguf").read_bytes()
    assert cli.main(words) == 0
    assert (tmp_path / "x.gguf").read_bytes() == found


def test_own_copies_of_a_checkpoint(tmp_path, fake, capsys):
    """Its settings decide what its tensors become, so they are compared as well."""
    copies = tmp_path / "copies"
    shutil.copytree(EXAMPLE, copies)
    words = ["convert", str(EXAMPLE), str(tmp_path / "x.gguf"), "--threads", "1"]
    there = [*words, "--ray", "--source-on", f"workers:{copies}"]
    assert cli.main(there) == 0
    found = (tmp_path / "x.gguf").read_bytes()
    assert cli.main(words) == 0
    assert (tmp_path / "x.gguf").read_bytes() == found
    (copies / "config.json").write_text("{}")
    capsys.readouterr()
    assert cli.main(there) == 1
    assert f"{copies / 'config.json'}: is another file here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--source-on", "workers"], "--source-on workers: belongs to --ray"),
        (["--ray", "--output-on", "here"], "--output-on here: expected workers, or workers:FOLDER"),
        (["--ray", "--output-on", "workers:"], "expected workers, or workers:FOLDER"),
        (["--ray", "--source-on", "workers:models"], "give the folder from / on"),
        (["--ray", "--output-on", "workers", "--resume"], "--output-on and --resume cannot be used together"),
        (["--ray", "--output-on", "workers", "--keep-split"], "--output-on and --keep-split cannot"),
        (["--ray", "--source-on", "workers", "--compensate"], "--source-on and --compensate cannot"),
        (["--ray", "--output-on", "workers", "--compensate"], "--output-on and --compensate cannot"),
    ],
)
def test_what_does_not_go_together(tmp_path, capsys, more, said):
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0", *more]
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_place_that_a_worker_does_not_have(tmp_path, fake, capsys):
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0", "--threads", "1"]
    assert cli.main([*words, "--ray", "--output-on", f"workers:{tmp_path / 'nowhere'}"]) == 1
    assert "there is no directory" in capsys.readouterr().err.splitlines()[-1]
