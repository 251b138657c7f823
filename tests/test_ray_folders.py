"""Workers run in other folders than the command: what it names from its own on, they find."""

import shutil

import pytest

from quantmill import cli
from quantmill.jobs import cluster
from tests.support.fake_ray import Cluster
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.ray_jobs import calls, done


@pytest.mark.parametrize(
    "name",
    [
        "quantize",
        "splits",
        "imatrix",
        "evaluate",
        "squeeze",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("convert", "evaluate, no base", "compensate")
        ),
    ],
)
def test_nothing_is_sent_that_counts_from_a_folder(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cluster, "ray_module", lambda: Cluster(1))  # it takes nothing else
    assert done(calls()[name], tmp_path / "out", cluster.AUTO) == 0


def test_own_copies_of_a_model_in_a_folder_above(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "ray_module", lambda: Cluster(1))
    (tmp_path / "here").mkdir()
    for name in ("models", "copies"):
        shutil.copytree(EXAMPLE, tmp_path / name / "model")
        shutil.copyfile(tiny("F16"), tmp_path / name / "f16.gguf")
    monkeypatch.chdir(tmp_path / "here")
    for model, copies in (("../models/model", "copies/model"), ("../models/f16.gguf", "copies")):
        on = ["--ray", "--source-on", f"workers:{tmp_path / copies}", "--force"]
        assert cli.main(["quantize", model, "x.gguf", "Q4_0", "--threads", "1", *on]) == 0
