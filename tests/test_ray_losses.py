"""Workers that are lost while they have splits on their disks: others make them, and nothing of theirs is left."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import threading

import pytest

from quantmill import cli
from quantmill.gguf_io import leftovers, open_source, outputs
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import KEPT_SUFFIX, beside
from quantmill.gguf_io.leftovers import Found, mark_of, remove_leftover
from quantmill.gguf_io.partial import PartialFile, partial_path
from quantmill.jobs import cluster
from quantmill.jobs.crew import Crew
from quantmill.jobs.split_carrier import Name, SplitCarrier
from tests.support.fake_ray import HERE, Cluster
from tests.support.measure_models import tiny

NAMES = [f"x-0000{i}-of-00002.gguf" for i in (1, 2)]


class Disks:
    """A cluster of two hosts, and their disks: one that they share, or one of each, reached by the same name."""

    def __init__(self, folder, fake):
        self.folder, self.fake, self.shared = folder, fake, True

    def part(self, monkeypatch):
        self.shared = False
        for name in ("n0", "n1"):
            (self.folder / name).mkdir()

        def resolved(path, real=outputs.resolved):
            found = real(path)
            return found.parent / HERE.node / found.name if hasattr(HERE, "node") else found

        monkeypatch.setattr(outputs, "resolved", resolved)
        monkeypatch.setattr(leftovers, "resolved", resolved)

    def place(self, number, name):
        return self.folder / name if self.shared else self.folder / f"n{number}" / name

    def files(self):
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def names(self):
        return [path.name for path in self.files()]

    def content(self):
        whole = self.folder / "whole"
        whole.mkdir()
        for path in self.files():
            shutil.copyfile(path, whole / path.name)
        with contextlib.closing(open_source(whole / NAMES[0])) as source:
            return {spec.name: source.read(spec.name).tobytes() for spec in source.specs()}

    def given(self, file_types="Q4_0", *more):
        output = self.folder if "," in file_types else self.folder / "x.gguf"
        words = ["quantize", str(tiny("F16")), str(output), file_types, "--threads", "1", "--json"]
        return cli.main([*words, "--ray", "--output-on", "workers", *more])

    def kill(self, carrier, with_node=False):
        """As a process ends: its locks are given up, its files stay."""
        (actor,) = (one for one in self.fake.actors if one.made.result() is carrier)
        for sink in (sink for sinks in carrier._made.values() for sink in sinks):
            sink.leave()
        carrier._made.clear()
        if with_node:
            self.fake.gone.add(actor.node)
        actor.lose()
        return int(actor.node[1:])


@pytest.fixture(params=["shared", "own"])
def disks(request, tmp_path, monkeypatch):
    fake = Cluster(2)
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    monkeypatch.setattr(platform, "node", lambda: "host" + getattr(HERE, "node", "n0")[1:])
    made = Disks(tmp_path, fake)
    if request.param == "own":
        made.part(monkeypatch)
    return made


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    path = tmp_path_factory.mktemp("wanted") / "x.gguf"
    assert cli.main(["quantize", str(tiny("F16")), str(path), "Q4_0", "--threads", "1"]) == 0
    with contextlib.closing(open_source(path)) as source:
        return {spec.name: source.read(spec.name).tobytes() for spec in source.specs()}


def lost_before_naming(monkeypatch, disks, **how):
    """Whoever is to name split 2 first, in the moment in which it is asked."""
    submit, killed = Crew.submit, []

    def losing(crew, piece, hand=None):
        if piece == Name(1) and not killed:
            killed.append(disks.kill(hand.actor.made.result(), **how))
        return submit(crew, piece, hand)

    monkeypatch.setattr(Crew, "submit", losing)
    return killed


def lost_in_naming(monkeypatch, disks):
    """The same, when the file has its name and nobody knows yet."""
    name, killed = SplitCarrier.name, []

    def losing(carrier, number):
        found = name(carrier, number)
        if number == 1 and found and not killed:
            killed.append(disks.kill(carrier))
        return found

    monkeypatch.setattr(SplitCarrier, "name", losing)
    return killed


def made_once(monkeypatch):
    """Nobody makes a split again, so that what a lost worker leaves can be seen."""
    make, made = SplitCarrier.make, []

    def once(carrier, number):
        if number in made:
            raise OSError(5, "Input/output error")
        made.append(number)
        return make(carrier, number)

    monkeypatch.setattr(SplitCarrier, "make", once)


@pytest.mark.parametrize("lose", [lost_before_naming, lost_in_naming])
def test_a_split_that_is_lost_before_it_is_known_to_have_its_name_is_made_again(
    disks, monkeypatch, capsys, wanted, lose
):
    killed = lose(monkeypatch, disks)
    assert disks.given() == 0
    out, said = capsys.readouterr()
    assert killed
    assert disks.names() == NAMES
    assert "may be left" not in said
    for host, name in zip(json.loads(out)["hosts"], NAMES, strict=True):
        assert disks.place(int(host[-1]), name).exists()
    assert disks.content() == wanted


def test_a_command_that_fails_leaves_nothing_of_lost_workers(disks, monkeypatch, capsys):
    """One has named a split and is lost, then the other fails."""
    name, killed = SplitCarrier.name, []

    def failing(carrier, number):
        if number == 0:
            raise OSError(5, "Input/output error")
        return name(carrier, number)

    monkeypatch.setattr(SplitCarrier, "name", failing)
    submit = Crew.submit

    def losing(crew, piece, hand=None):
        if piece == Name(0):
            (other,) = (one for one in crew.hands if one is not hand)
            assert NAMES[1] in disks.names()
            killed.append(disks.kill(other.actor.made.result()))
        return submit(crew, piece, hand)

    monkeypatch.setattr(Crew, "submit", losing)
    assert disks.given() == 1
    assert killed
    assert "Input/output error" in capsys.readouterr().err.splitlines()[-1]
    assert disks.files() == []


def test_older_files_stay_where_the_name_was_not_yet_given(disks, monkeypatch):
    killed = lost_before_naming(monkeypatch, disks)
    made_once(monkeypatch)
    for number in (0, 1):
        disks.place(number, NAMES[1]).write_bytes(b"older")
    assert disks.given("Q4_0", "--force") == 1
    assert killed
    assert set(disks.names()) == {NAMES[1]}
    assert {path.read_bytes() for path in disks.files()} == {b"older"}


def test_older_files_are_there_again_where_not_all_names_were_given(disks, monkeypatch):
    """Of two types one has its name when the worker is lost."""
    killed = []

    def half(files):
        (carrier,) = (one.made.result() for one in disks.fake.actors if one.node == HERE.node)
        os.link(files[0].final, beside(files[0].final, KEPT_SUFFIX))
        files[0].rename()
        killed.append(disks.kill(carrier))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("quantmill.gguf_io.sink.rename_all", half)
    made_once(monkeypatch)
    names = {f"ggml-model-{type}-00002-of-00002.gguf" for type in ("Q4_0", "Q8_0")}
    for number in (0, 1):
        for name in names:
            disks.place(number, name).write_bytes(b"older")
    assert disks.given("Q4_0,Q8_0", "--force") == 1
    assert killed
    assert set(disks.names()) == names
    assert {path.read_bytes() for path in disks.files()} == {b"older"}


def test_a_host_that_is_lost_is_named(tmp_path, disks, monkeypatch, capsys, wanted):
    killed = lost_before_naming(monkeypatch, disks, with_node=True)
    assert disks.given() == 0
    out, said = capsys.readouterr()
    (number,) = killed
    left = disks.place(number, NAMES[1] + ".quantmill-partial")
    assert set(json.loads(out)["hosts"]) == {f"host{1 - number}"}
    assert f"host{number}: {left} or {tmp_path / NAMES[1]} may be left there; remove it by hand" in said
    assert left.exists() != disks.shared
    left.unlink(missing_ok=True)
    assert disks.names() == NAMES
    assert disks.content() == wanted


def test_a_lost_host_on_a_machine_with_another_is_looked_after_by_that(tmp_path, monkeypatch, capsys):
    """Several raylets of one machine, which have its name and its disk: here the other one has made the split there."""
    fake = Cluster(2)
    real = fake.nodes
    fake.nodes = lambda: [{**one, "NodeManagerHostname": "here"} for one in real()]
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    disks = Disks(tmp_path, fake)
    killed = lost_before_naming(monkeypatch, disks, with_node=True)
    assert disks.given() == 0
    assert killed
    assert "may be left" not in capsys.readouterr().err
    assert disks.names() == NAMES


@pytest.mark.parametrize("disks", ["shared"], indirect=True)
def test_what_a_lost_host_left_on_a_disk_that_all_share_is_removed_by_another(disks, monkeypatch, capsys):
    killed = lost_before_naming(monkeypatch, disks, with_node=True)
    made_once(monkeypatch)
    assert disks.given() == 1
    assert killed
    assert "may be left" not in capsys.readouterr().err
    assert disks.files() == []


@pytest.mark.parametrize("disks", ["own"], indirect=True)
def test_a_worker_in_place_of_one_whose_host_is_gone_is_known_by_its_own_host(disks, monkeypatch, capsys):
    """Where the files are said to be."""
    finish, killed = Crew.finish, []

    def losing(crew, hand):
        if not killed and hand.node.id == "n1":
            killed.append(disks.kill(hand.actor.made.result(), with_node=True))
        return finish(crew, hand)

    monkeypatch.setattr(Crew, "finish", losing)
    hosts = []
    monkeypatch.setattr(
        Crew,
        "_send_waiting",
        lambda crew, real=Crew._send_waiting: (
            hosts.append([one.node.name for one in crew.hands]),
            real(crew),
        ),
    )
    assert disks.given() == 0
    assert set(json.loads(capsys.readouterr().out)["hosts"]) == {"host0"}
    assert ["host0", "host0"] in hosts


def leftover(tmp_path):
    """A partial file as a killed process leaves it, and its mark."""
    with PartialFile(tmp_path / "x", 3) as file:
        file.write_at(0, memoryview(b"new"))
        file.sync()
        mark = mark_of(file.path)
        file.forget()
    return mark


def test_what_somebody_writes_is_no_leftover(tmp_path):
    mark = leftover(tmp_path)
    with PartialFile(tmp_path / "x", 3):
        for known in (None, mark):
            assert remove_leftover(tmp_path / "x", known, 0.0) is Found.STAYS
        assert partial_path(tmp_path / "x").exists()
    assert remove_leftover(tmp_path / "x", mark, 0.0) is Found.NOTHING


def test_a_file_of_another_is_no_leftover(tmp_path):
    mark = leftover(tmp_path)
    (tmp_path / "x").write_bytes(b"own")
    assert remove_leftover(tmp_path / "x", mark, 0.0) is Found.REMOVED
    assert (tmp_path / "x").read_bytes() == b"own"
    assert not partial_path(tmp_path / "x").exists()
    mark = leftover(tmp_path)
    os.replace(partial_path(tmp_path / "x"), tmp_path / "x")
    assert remove_leftover(tmp_path / "x", None, 0.0) is Found.NOTHING
    (tmp_path / "y").symlink_to(tmp_path / "x")  # links of the host are followed
    assert remove_leftover(tmp_path / "y", mark, 0.0) is Found.REMOVED
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


def test_a_writer_that_is_about_to_end_is_waited_for(tmp_path):
    final = tmp_path / "x"
    with open(partial_path(final), "wb") as dying:
        fcntl.flock(dying, fcntl.LOCK_EX)
        with pytest.raises(GGUFError, match="another run is writing it now"):
            PartialFile(final, 3)
        threading.Timer(0.4, fcntl.flock, (dying, fcntl.LOCK_UN)).start()
        with PartialFile(final, 3, patience=20.0) as file:
            file.finish()
    assert final.stat().st_size == 3
