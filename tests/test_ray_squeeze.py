"""Candidates made side by side: the files of the same call without Ray."""

import pytest

from quantmill import cli
from quantmill.jobs import cluster
from tests.support.fake_ray import Cluster
from tests.test_squeeze import results, squeezed


def made(folder, *words):
    assert cli.main([*squeezed(folder, "--types", "Q4_K_M,Q8_0", *words)]) == 0
    return results(folder)


def test_the_same_files_and_nothing_done_twice(tmp_path, monkeypatch):
    fake = Cluster(2, losses=(3,))
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    there, here = tmp_path / "there", tmp_path / "here"
    found = made(there, "--ray")
    names = {type(actor.made.result()).__name__ for actor in fake.actors}
    assert names == {"CollectCarrier", "CandidateCarrier"}
    assert not list((there / ".quantmill").glob("aside-*"))
    assert found == made(here)
    before = fake.carried
    assert made(there, "--ray") == found
    assert fake.carried == before


@pytest.mark.slow
def test_sizes_and_better_codes_are_the_same(tmp_path, monkeypatch):
    fake = Cluster(3, losses=(9, 15))
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    words = ["--size", "3MiB", "--compensate", "--learn-chunks", "10"]
    found = []
    for name, more in (("there", ["--ray"]), ("here", [])):
        call = squeezed(tmp_path / name, "--types", "Q4_K_M", *words, *more, plain=False)
        assert cli.main(call) == 0
        found.append(results(tmp_path / name))
    assert found[0] == found[1]
    assert len(found[0]) == 4  # two files, a recipe, the importance
