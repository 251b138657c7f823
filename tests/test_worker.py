"""How slabs are given to whoever carries them."""

from concurrent.futures import Future

from quantmill.jobs.quantize import Job, plan_job
from quantmill.jobs.watcher import Silent
from quantmill.jobs.worker import carry
from quantmill.recipe import Recipe
from quantmill.recipe.slabs import handfuls, slabs
from tests.support.measure_models import tiny


class Shrinking:
    """Takes four slabs at a time, and two from the sixth on, as a cluster that has lost a host. Done when looked at."""

    in_one_memory = 1
    handful = 0

    def __init__(self):
        self.given, self.under_way, self.most = 0, 0, []

    @property
    def at_once(self):
        return 4 if self.given < 6 else 2

    def submit(self, slabs):
        assert len(slabs) == 1
        self.given += 1
        self.under_way += 1
        self.most.append((self.under_way, self.at_once))
        worker = self

        class Done(Future):
            def result(self, timeout=None):
                worker.under_way -= 1

        return Done()

    def finish(self):
        assert self.under_way == 0
        self.is_finished = True


def test_no_more_is_under_way_than_a_worker_takes_also_when_it_takes_less(tmp_path):
    plan = plan_job(Job(str(tiny("F16")), tmp_path / "x.gguf", Recipe("Q8_0"), device="cpu"))
    worker = Shrinking()
    carry(worker, [plan.entries], 1 << 20, Silent())
    assert worker.is_finished
    assert max(n for n, _ in worker.most) == 4
    assert all(n <= at_once for n, at_once in worker.most[6:])


def test_small_slabs_go_together_as_far_as_the_memory_goes(tmp_path):
    plan = plan_job(Job(str(tiny("F16")), tmp_path / "x.gguf", Recipe("Q8_0"), device="cpu"))
    alone = list(slabs([plan.entries], 1 << 17))
    assert [[slab] for slab in alone] == [list(some) for some in handfuls(alone, 0, 1 << 30)]
    assert [[slab] for slab in alone] == [list(some) for some in handfuls(alone, 1 << 30, 0)]
    for source_bytes, memory in ((1 << 30, 1 << 18), (1 << 16, 1 << 30), (1 << 30, 1 << 30)):
        together = list(handfuls(alone, source_bytes, memory))
        assert [slab for some in together for slab in some] == alone
        assert len(together) < len(alone)
        for some, after in zip(together, [*together[1:], None], strict=True):
            assert sum(slab.memory for slab in some) <= memory
            assert sum(slab.source_bytes for slab in some[:-1]) < source_bytes
            ended = sum(slab.source_bytes for slab in some) >= source_bytes
            assert ended or after is None or sum(slab.memory for slab in (*some, after[0])) > memory
