"""Pieces of work for carriers that are lost, slow or wrong, on a stand-in for Ray."""

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from quantmill.jobs.crew import Crew
from quantmill.jobs.errors import JobError
from quantmill.jobs.pieces import Outcome, Patience
from quantmill.jobs.watcher import Silent
from tests.support.fake_ray import Cluster

QUICK = Patience(begin=5.0, finish=0.3, slow=0.2, times=2.0)


@dataclass(frozen=True)
class Square:
    n: int


class Carrier:
    def __init__(self, task):
        self.node = task

    def ready(self, version):
        return Outcome(self.node)

    def carry(self, piece):
        if piece.n < 0:
            return Outcome(self.node, error=f"{self.node}: no square of {piece.n}")
        said = ("is a lucky number",) if piece.n == 7 else ()
        return Outcome(self.node, piece.n**2, said)

    def finish(self):
        return Outcome(self.node, "safe")


class Listening(Silent):
    def __init__(self):
        self.lines = []

    def warn(self, line):
        self.lines.append(line)


def crew_on(fake, watcher, each=1):
    return Crew(fake, Carrier, lambda node: node.name, watcher, lambda node: each, QUICK)


def test_every_piece_is_done_once_however_many_carriers_are_lost():
    fake, watcher = Cluster(3, losses=(1, 4, 5, 11)), Listening()
    with crew_on(fake, watcher) as crew:
        found = [crew.submit(Square(n)) for n in range(30)]
        assert [one.result(20)[1] for one in found] == [n * n for n in range(30)]
    assert sum("a worker was lost" in line for line in watcher.lines) == 4
    assert all(actor.dead.is_set() for actor in fake.actors)


def test_a_replacement_that_has_not_begun_is_not_left():
    fake = Cluster(2, losses=(1,))
    with ExitStack() as later:
        with crew_on(fake, Silent()) as crew:
            later.enter_context(fake.loading)  # who comes now does not begin
            assert crew.submit(Square(3)).result(20)[1] == 9
        assert len(fake.actors) == 3
        assert all(actor.dead.is_set() for actor in fake.actors)


def test_what_workers_say_is_said_here_with_their_names():
    watcher = Listening()
    with crew_on(Cluster(2), watcher) as crew:
        hands = [crew.submit(Square(n)) for n in (6, 7, 8)]
        named = hands[1].result(20)[0].node.name
    assert watcher.lines == [f"{named}: is a lucky number"]


def test_no_hand_has_more_than_it_can_do():
    fake = Cluster(2)
    with crew_on(fake, Silent(), each=3) as crew:
        found = [crew.submit(Square(n)) for n in range(40)]
        assert max(hand.busy for hand in crew.hands) <= 3
        assert len([one.result(20) for one in found]) == 40


def test_a_piece_goes_to_the_hand_that_is_wished_for():
    with crew_on(Cluster(3), Silent()) as crew:
        for hand in (*crew.hands, *crew.hands):
            assert crew.submit(Square(2), hand).result(20) == (hand, 4)


def test_hosts_that_offer_too_little_memory_are_left_out():
    watcher = Listening()
    with crew_on(Cluster(3, memory={"n1": 100 << 20}), watcher) as crew:
        assert {hand.node.name for hand in crew.hands} == {"host0", "host2"}
    assert watcher.lines == [
        "host1: offers 100 MiB to Ray, and a worker takes 512; the others go on without it (`ray start --memory BYTES` "
        "offers more)"
    ]
    with (
        pytest.raises(JobError, match="has no host that has the memory for a worker"),
        crew_on(Cluster(1, memory={"n0": 0}), Silent()),
    ):
        pass


def test_what_is_slow_is_done_by_another_too():
    fake, watcher = Cluster(2, slow={"n1": 3.0}), Listening()
    began = time.monotonic()
    with crew_on(fake, watcher) as crew:
        found = [crew.submit(Square(n)) for n in range(8)]
        assert [one.result(20)[1] for one in found] == [n * n for n in range(8)]
        assert time.monotonic() - began < 2.9
    assert any("host1: takes" in line and line.endswith("host0 does it too") for line in watcher.lines)


def test_a_carrier_that_does_not_finish_is_taken_for_lost():
    fake, watcher, lost = Cluster(2), Listening(), threading.Event()
    with crew_on(fake, watcher) as crew:
        crew.when_lost = lambda hand: lost.set()
        first = crew.hands[0]
        assert crew.finish(first) == "safe"
        first.actor.dead.set()  # it is there, and never answers
        assert crew.finish(first) is None
        assert lost.wait(5)
        assert crew.submit(Square(3)).result(20)[1] == 9


def test_the_first_error_ends_all():
    with crew_on(Cluster(2), Silent()) as crew:
        found = [crew.submit(Square(n)) for n in (1, -2, 3, 4)]
        with pytest.raises(JobError, match=r"host\d: no square of -2"):
            found[1].result(20)
        with pytest.raises(JobError, match="no square of -2"):
            crew.submit(Square(1)).result(20)


def test_an_interrupt_leaves_nothing_running():
    fake = Cluster(3, slow={"n0": 0.2, "n1": 0.2, "n2": 0.2})
    found = []

    def interrupted():
        with crew_on(fake, Silent(), each=2) as crew:
            found.extend(crew.submit(Square(n)) for n in range(20))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(actor.dead.is_set() for actor in fake.actors)
    assert all(one.done() for one in found)
    with pytest.raises(JobError, match="the run is over"):
        found[-1].result()
