"""Same input, same bytes: the number of threads changes the time of what runs a model, and nothing else.

torch splits a long sum by the number of its threads, and one that is split otherwise rounds otherwise; what runs a
model goes through quantmill.models.workers, which leaves no trace of them.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantmill.calibrate.allocation import Sensitivity
from quantmill.calibrate.prune_influence import influence_of
from quantmill.imatrix.text import Cutting, Text
from quantmill.jobs import collect, compensate, evaluate, polish, self_text
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.quantize import Job
from quantmill.jobs.watcher import Silent
from quantmill.measure.damage import Damage
from quantmill.models.model import load
from quantmill.models.scoring import cut
from quantmill.models.workers import working
from quantmill.recipe import Recipe
from tests.support.measure_models import DATA, EXAMPLE, tiny

TEXT = EXAMPLE / "calibration.txt"
Found = Mapping[str, Any]  # bytes and numbers that are to be the same


@pytest.fixture(autouse=True)
def several_threads() -> Any:
    """torch's own are more than one, as they are where nobody limits them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def importance(threads: int, folder: Path) -> Found:
    output = folder / "imatrix.gguf"
    cutting = Cutting(512, 4)
    job = collect.Job(tiny("F16"), "m", (Text(TEXT),), output, cutting, with_means=True, threads=threads)
    found = collect.run(job)
    return {"file": output.read_bytes(), "perplexity": found.perplexity}


def evaluation(threads: int, folder: Path) -> Found:
    """Divergences, both kinds of saved predictions, tasks."""
    job = evaluate.Job(
        models=(tiny("Q4_0"),),
        base=tiny("F16"),
        text=EXAMPLE / "evaluation.txt",
        chunks=3,
        save_logits=folder / "logits",
        save_base=folder / "base",
        tasks=(
            evaluate.TaskJob("hellaswag", DATA / "hs.txt"),
            evaluate.TaskJob("winogrande", DATA / "wg.csv"),
        ),
        n_tasks=3,
        threads=threads,
    )
    record = dataclasses.replace(evaluate.run(job), date="")
    files = {name: (folder / name).read_bytes() for name in ("logits", "base")}
    return {"record": dataclasses.asdict(record), **files}


def perplexity(threads: int, folder: Path) -> Found:
    job = evaluate.Job((tiny("Q4_0"),), text=EXAMPLE / "evaluation.txt", chunks=3, threads=threads)
    return {"record": dataclasses.asdict(dataclasses.replace(evaluate.run(job), date=""))}


def chunks(n: int, n_ctx: int) -> np.ndarray:
    loaded = load(tiny("F16"))
    tokens = loaded.tokenizer.encode(TEXT.read_text()[: 8 * n * n_ctx])
    loaded.close()
    return cut(tokens, n_ctx, n)


def allocation(threads: int, folder: Path) -> Found:
    """What types are chosen by: the divergence with one tensor changed."""
    other = load(tiny("Q4_0"))
    name, losses = "blk.2.attn_output.weight", []
    assert other.source is not None
    rows = other.source.read(name)
    with working(threads, "cpu") as workers:
        sensitivity = Sensitivity(load(tiny("F16")), chunks(4, 256), workers)
        sensitivity.measure({name: ["Q4_0"]}, lambda *_: rows, lambda n, t, loss: losses.append(loss))
    assert losses[0] > 0
    return {"losses": losses}


def pruning(threads: int, folder: Path) -> Found:
    text, loaded = chunks(4, 256), load(tiny("F16"))
    with working(threads, "cpu") as workers:
        influence = influence_of(loaded, text)
        damage = {
            str(layers): s.kld.tobytes()
            for layers, s in Damage(loaded, text, workers.map).measure([(1,), (2,)])
        }
    saliency = {layer: values.tobytes() for layer, values in influence.saliency.items()}
    return {"cosines": influence.cosines.tobytes(), "saliency": saliency, "damage": damage}


def own_text(threads: int, folder: Path) -> Found:
    return {"text": self_text.self_text(EXAMPLE, "cpu", 32 * self_text.SEQUENCE, folder, Silent())}


def compensated(threads: int, folder: Path) -> Found:
    output = folder / "out.gguf"
    job = Job(str(tiny("F16")), output, Recipe("Q4_0"), device="cpu", threads=threads)
    compensate.run(job, Calibration((str(TEXT),), n_chunks=4))
    return {"file": output.read_bytes()}


def polished(threads: int, folder: Path) -> Found:
    output = folder / "out.gguf"
    job = polish.Job(tiny("Q4_0"), EXAMPLE, (Text(TEXT),), output, n_chunks=10, threads=threads)
    polish.run(job)
    return {"file": output.read_bytes() if output.exists() else None}


WORK = [importance, evaluation, perplexity, allocation, pruning, own_text, polished]
# test_compensate.py goes on with two threads where one stopped, and wants the bytes of one.
LONG = [pytest.param(compensated, marks=pytest.mark.slow)]


@pytest.mark.parametrize("work", WORK + LONG, ids=lambda work: work.__name__)
def test_the_number_of_threads_does_not_show(
    work: Callable[[int, Path], Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_text, "SEQUENCE", 16)
    found = []
    for threads in (1, 2):
        folder = tmp_path / str(threads)
        folder.mkdir()
        torch.set_num_threads(threads)  # what is not told how many takes these
        found.append(work(threads, folder))
    assert json.dumps(found[0], default=repr) == json.dumps(found[1], default=repr)
    assert torch.get_num_threads() == 2


def test_results_come_in_order_and_what_they_tell_on_the_caller_s_thread() -> None:
    begun, told = [threading.Event() for _ in range(6)], []

    def one(item: int, tell: Callable[[int], None]) -> int:
        begun[item].set()
        if item % 2 == 0:  # the later one of a pair is ready first
            assert begun[item + 1].wait(20)
        tell(item)
        return item * item

    def tell(amount: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(amount)

    with working(2, "cpu") as workers:
        assert list(workers.in_order(one, range(6), tell)) == [0, 1, 4, 9, 16, 25]
    assert sorted(told) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_comes_when_it_is_its_turn(threads: int) -> None:
    def one(item: int, tell: Callable[[int], None]) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    with working(threads, "cpu") as workers:
        found = workers.in_order(one, range(50))
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(found)


def test_an_interrupt_does_not_wait_for_the_end_of_a_text() -> None:
    """Threads whose results nobody wants stop before the next layer."""
    loaded = load(tiny("F16"))
    ids = torch.zeros(1, 16, dtype=torch.int64)

    def one(item: int, tell: Callable[[int], None]) -> int:
        while item:  # until it is stopped
            loaded.logits(ids)
        return item

    with working(2, "cpu") as workers, workers.ending(loaded.model):
        for _ in workers.in_order(one, range(4)):
            break
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())
    loaded.close()
