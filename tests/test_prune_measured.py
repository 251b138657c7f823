"""Pruning that is measured on a text: influence, damage, the choice of layers and experts, healing, limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from quantmill.calibrate.prune_influence import influence_of
from quantmill.cli import main
from quantmill.gguf_io import open_source
from quantmill.imatrix.text import Text
from quantmill.jobs.edited import pruned_model
from quantmill.jobs.edits import NO_EDITS
from quantmill.jobs.prune import run, scan
from quantmill.jobs.prune_request import Request
from quantmill.jobs.watcher import Silent
from quantmill.measure.damage import Damage, scored_prefix
from quantmill.models.model import from_source, load
from quantmill.recipe.prune_experts import Share
from tests.support.llama_model import LlamaModel
from tests.support.measure_models import EXAMPLE, one_by_one, tiny

MODEL = str(tiny("F16"))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes((EXAMPLE / "calibration.txt").read_bytes()[:30_000])
    return path


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory) -> Iterator[None]:
    """Measurements are kept here, and only here."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


def request(text: Path, **options) -> Request:
    return Request(MODEL, (Text(text),), n_chunks=10, threads=1, **options)


class Counting(Silent):
    """What was measured, by stage."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def began(self, what, total, unit):
        self.stages.append(what)

    def note(self, line):
        self.notes.append(line)


# The arithmetic


# What is measured


def test_influence_saliency_and_damage_against_transformers(text):
    """transformers' own hidden states and experts; and the damage is that of the model that is cut."""
    torch.set_num_threads(1)
    loaded = load(MODEL)
    chunks = np.array(loaded.tokenizer.encode(text.read_text())[:1024], np.int32).reshape(4, 256)
    found = influence_of(loaded, chunks)
    ids = torch.from_numpy(chunks.astype(np.int64))
    inside: dict[int, tuple[torch.Tensor, ...]] = {}
    states: list[torch.Tensor] = []
    layers = loaded.model.model.layers
    handles = []
    for number, layer in enumerate(layers):
        handles.append(
            layer.mlp.experts.register_forward_pre_hook(
                lambda module, inputs, number=number: inside.__setitem__(number, inputs)
            )
        )
        handles.append(layer.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0])))
    handles.append(layers[-1].register_forward_hook(lambda module, inputs, out: states.append(out)))
    with torch.no_grad():
        loaded.model(input_ids=ids)
        for handle in handles:
            handle.remove()
        for first, n in ((0, 1), (2, 1), (1, 3)):
            cosine = torch.cosine_similarity(states[first], states[first + n], dim=-1).mean()
            assert found.of_run(first, n) == pytest.approx(1 - float(cosine), abs=1e-5)
        hidden, index, weights = inside[1]
        experts = layers[1].mlp.experts
        for expert in range(8):
            at, slot = (index == expert).nonzero(as_tuple=True)
            assert found.routed[1][expert] == len(at)
            if len(at):
                only = torch.full((len(at), 1), expert)
                out = experts(hidden[at], only, torch.ones(len(at), 1))
                shares = weights[at, slot] / weights[at].sum(-1)
                wanted = float((shares * out.norm(dim=-1)).mean())
                assert found.saliency[1][expert] == pytest.approx(wanted, rel=1e-4)
    damage = Damage(loaded, chunks, one_by_one)
    measured = {layers: float(s.kld.mean()) for layers, s in damage.measure([(2,), (1, 3), (1,)])}
    for gone, kld in measured.items():
        cut = from_source(
            pruned_model(open_source(MODEL), NO_EDITS, gone), Path(MODEL), torch.device("cpu"), torch.float32
        )
        scores = damage.predictions.scores(scored_prefix(cut, chunks, one_by_one))
        assert kld == pytest.approx(float(scores.kld.mean()), rel=1e-5)
        assert damage.predictions.nll.mean() == pytest.approx(float(scores.nll_base.mean()), rel=1e-6)


def test_scan_measures_each_set_once(text, capsys, tmp_path):
    watcher = Counting()
    found = scan(request(text, n_layers=2, breadth=3), watcher)
    assert watcher.stages == ["influence", "original", "sets of 1", "sets of 2"]
    singles = [one for one in found.sets if len(one.layers) == 1]
    assert [one.layers for one in singles] == [(0,), (1,), (2,), (3,)]
    assert [one.layers for one in singles if one.kld is None] == [(0,)]  # the one of most influence
    for size in (1, 2):
        klds = [one.kld for one in found.sets if len(one.layers) == size and one.kld is not None]
        assert found.best[size - 1].kld == min(klds)
    assert len(found.experts) == 32
    again = Counting()
    assert scan(request(text, n_layers=2, breadth=3), again) == found
    assert again.stages == []
    plot = tmp_path / "scan.png"
    command = [
        "prune",
        "scan",
        MODEL,
        "--calibration",
        str(text),
        "--chunks",
        "10",
        "--breadth",
        "3",
        "-t",
        "1",
    ]
    assert main([*command, "--plot", str(plot), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["best"][1]["layers"] == list(found.best[1].layers)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(command) == 0
    assert "the best of its size" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_scan_goes_on(text):
    class Stopping(Counting):
        def progressed(self, amount, what=""):
            if "without 2" in what:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(Request(MODEL, (Text(text),), n_chunks=11, threads=1, n_layers=1), Stopping())
    watcher, told = Counting(), []
    watcher.progressed = lambda amount, what="": told.append(what)  # type: ignore[method-assign]
    scan(Request(MODEL, (Text(text),), n_chunks=11, threads=1, n_layers=1), watcher)
    assert "influence" not in watcher.stages
    assert [what.partition(":")[0] for what in told if what] == ["without 3"]


# What is made


def test_experts_are_chosen_and_refitted(text):
    """The best of the criteria; healed it loses at most 0.7 of what it did, and the file says what was measured."""
    watcher = Counting()
    pruned = run(request(text, experts=Share(0.25)), watcher)
    assert pruned.kld <= 0.7 * pruned.cut.kld.value
    assert pruned.refitted[0].name == "blk.0.ffn_down_exps.weight"
    assert any("experts chosen by" in note for note in watcher.notes)
    assert all(len(gone) == 2 for gone in pruned.experts.values())
    with_edits = from_source(
        pruned_model(open_source(MODEL), pruned.edits, ()), Path(MODEL), torch.device("cpu"), torch.float32
    )
    loaded = load(MODEL)
    held = pruned.chunks[: pruned.n_held]
    damage = Damage(loaded, held, one_by_one)
    scores = damage.predictions.scores(scored_prefix(with_edits, held, one_by_one))
    assert float(scores.kld.mean()) == pytest.approx(pruned.kld, rel=1e-5)


@pytest.mark.slow
def test_layers_by_measurement_into_a_file(text, tmp_path, capsys):
    """auto:1 takes the layer that scan found best; the healed file runs in llama.cpp, and says what went."""
    output = tmp_path / "cut.gguf"
    command = ["quantize", "--prune-layers", "auto:1", "--calibration", str(text), "-t", "1", "--json"]
    assert main([*command, MODEL, str(output), "Q8_0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    said = printed["pruning"]
    assert said["kld"] < said["kld_unhealed"]
    assert printed["file_bytes"] == output.stat().st_size
    metadata = open_source(output).metadata
    assert list(metadata.value("quantmill.pruned.layers")) == said["layers"]
    assert metadata.value("quantmill.pruned.kld") == pytest.approx(said["kld"])
    assert metadata.value("qwen3moe.block_count") == 3
    with LlamaModel(output) as model:
        assert np.isfinite(model.logits(list(range(3, 40)))).all()


def test_the_first_layer_leaves(text):
    """Nothing is before the cut: the layers behind it are refitted on the pruned model's own stream."""
    pruned = run(request(text, layers=(0,), max_damage=None))
    assert pruned.kld < pruned.cut.kld.value
    assert {int(one.name.split(".")[1]) for one in pruned.refitted} <= {1, 2, 3}


def test_too_much_damage_is_refused(text, tmp_path, capsys):
    output = tmp_path / "cut.gguf"
    command = ["quantize", "--prune-layers", "0", "--calibration", str(text), "--no-heal", "-t", "1"]
    command += [MODEL, str(output), "COPY"]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "nats a token of KL divergence away from the original" in error
    assert "--max-damage none" in error
    assert not output.exists()
    assert main([*command[:1], "--max-damage", "none", *command[1:]]) == 0
    assert "damage as cut" in capsys.readouterr().out
    assert open_source(output).metadata.value("quantmill.pruned.kld") > 0.5


def test_layers_by_number_stay_as_they_are_without_a_text(tmp_path):
    output = tmp_path / "cut.gguf"
    assert main(["quantize", "--prune-layers", "0", MODEL, str(output), "COPY"]) == 0
    assert not [key for key in open_source(output).metadata if key.startswith("quantmill")]
