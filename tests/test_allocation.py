"""What a type costs a tensor: prefix walks, exchanged blocks, errors of weights, curves; and the command."""

import json
import math
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from quantmill import cli
from quantmill.calibrate.allocation import Sensitivity
from quantmill.calibrate.weights import Subject, quantized, sampled_errors
from quantmill.commands.allocation import find_target
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.imatrix import store
from quantmill.imatrix.reading import read_texts
from quantmill.imatrix.text import Text
from quantmill.jobs import allocate, quantize
from quantmill.measure import compare
from quantmill.models.exchange import Exchange
from quantmill.models.model import load
from quantmill.models.prefix import Prefix
from quantmill.models.scoring import scored_logits
from quantmill.models.workers import Workers
from quantmill.qkernels.engines import choose_engines
from quantmill.qkernels.rows import row_quantizers
from quantmill.recipe import Recipe
from quantmill.recipe.budget import Target
from tests.support.measure_models import EXAMPLE, one_by_one, tiny

IMATRIX = str(EXAMPLE / "imatrix.gguf")
TEXT = EXAMPLE / "calibration.txt"


@pytest.fixture(scope="module")
def loaded():
    model = load(tiny("F16"))
    yield model
    model.close()


@pytest.fixture(scope="module")
def chunks(loaded):
    tokens = loaded.tokenizer.encode(TEXT.read_text()[:4000])
    return np.array(tokens[: 3 * 64], np.int32).reshape(3, 64)


@pytest.fixture(scope="module")
def quantizer():
    return row_quantizers(choose_engines("cpu")[0], 1)[0]


def subject(source, name, weighed=True):
    spec = next(spec for spec in source.specs() if spec.name == name)
    matrices = math.prod(spec.shape[2:])
    columns = store.load(IMATRIX).columns(name, spec.n_cols, matrices) if weighed else None
    return Subject(spec, columns)


def joined(prefix):
    with torch.inference_mode():
        return torch.cat(prefix.map(lambda batch, logits: logits))


def whole_logits(loaded, chunks):
    """Chunk by chunk, as a prefix walk groups so few of them."""
    with torch.inference_mode():
        return torch.cat([scored_logits(loaded, chunk[None]) for chunk in chunks])


def test_a_prefix_walk_gives_the_logits_of_the_whole_model(loaded, chunks):
    """From every layer, and from behind the last: the bits of a run from the beginning."""
    whole = whole_logits(loaded, chunks)
    prefix = Prefix(loaded, chunks, 32, one_by_one)
    for layer in range(prefix.n_layers + 1):
        prefix.move_to(layer)
        assert torch.equal(joined(prefix), whole)
    assert prefix.position("token_embd.weight") == 0
    assert prefix.position("blk.2.ffn_down_exps.weight") == 2
    assert prefix.position("no.such.tensor") is None


@pytest.mark.parametrize("name", ["blk.2.attn_q.weight", "blk.1.ffn_up_exps.weight", "token_embd.weight"])
def test_exchanged_blocks_are_those_of_a_file_that_has_them(loaded, chunks, quantizer, tmp_path, name):
    """One tensor in Q4_K: walked from its layer, and loaded from a GGUF that was written with it."""
    source = open_source(tiny("F16"))
    rows = quantized(source, subject(source, name), "Q4_K", quantizer)
    tensors = [OutputTensor(s.name, s.shape, "Q4_K" if s.name == name else s.type) for s in source.specs()]
    with GGUFSink(tmp_path / "one.gguf", source.metadata, tensors) as sink:
        for spec in source.specs():
            sink.write(spec.name, rows if spec.name == name else source.read(spec.name))
        sink.commit()
    other = load(tmp_path / "one.gguf")
    wanted, before = whole_logits(other, chunks), whole_logits(loaded, chunks)
    prefix, exchange = Prefix(loaded, chunks, 32, one_by_one), Exchange(loaded)
    prefix.move_to(prefix.position(name))
    with exchange.instead(name, "Q4_K", rows):
        assert torch.equal(joined(prefix), wanted)
    assert torch.equal(joined(prefix), before)
    assert not torch.equal(wanted, before)
    other.close()


def test_divergence_is_the_formula(loaded, chunks, quantizer):
    source = open_source(tiny("F16"))
    name = "blk.3.ffn_down_exps.weight"
    rows = quantized(source, subject(source, name), "Q2_K", quantizer)
    found = {}
    sensitivity = Sensitivity(loaded, chunks, Workers(1))
    sensitivity.measure({name: ["Q2_K"]}, lambda *_: rows, lambda n, t, loss: found.update({(n, t): loss}))
    assert sensitivity.kld() == pytest.approx(0.0, abs=1e-9)
    with torch.inference_mode():
        p = torch.log_softmax(joined(Prefix(loaded, chunks, 16, one_by_one)).double(), -1).numpy()
        with Exchange(loaded).instead(name, "Q2_K", rows):
            q = torch.log_softmax(joined(Prefix(loaded, chunks, 16, one_by_one)).double(), -1).numpy()
    assert found == {(name, "Q2_K"): pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-3)}


def test_layers_that_are_left_out_are_not_run(tmp_path, quantizer):
    """A loss is that of the model without them: of a file that was pruned before."""
    path, name = tmp_path / "pruned.gguf", "blk.3.ffn_down_exps.weight"
    source = open_source(tiny("F16"))
    rows = quantized(source, subject(source, name), "Q2_K", quantizer)
    job = quantize.Job(str(tiny("F16")), path, Recipe("COPY", prune_layers=(1,)), device="cpu", threads=1)
    quantize.run(job)
    losses = []
    for one, named in (
        (job, name),
        (replace(job, source=str(path), recipe=Recipe("COPY")), name.replace("3", "2")),
    ):
        request = allocate.Request(one, Target(None, 4.5), TEXT, 2)
        text = Text(TEXT)
        with allocate._sensitivity(request, text, read_texts([text]), None, print) as sensitivity:
            assert sensitivity.in_order([named, "blk.1.attn_q.weight"]) in (
                [named],
                ["blk.1.attn_q.weight", named],
            )
            assert sensitivity.kld() == pytest.approx(0, abs=1e-9)
            sensitivity.measure({named: ["Q2_K"]}, lambda *_: rows, lambda n, t, loss: losses.append(loss))
            if one is job:
                assert sensitivity.in_order(["blk.1.attn_q.weight"]) == []
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize("weighed", [True, False])
def test_errors_are_the_formula(quantizer, weighed):
    """All rows of a small tensor, decoded by the gguf package."""
    source = open_source(tiny("F16"))
    given = subject(source, "blk.0.attn_q.weight", weighed)
    found = sampled_errors(source, given, ["Q4_K", "F16"], quantizer)
    w = source.read(given.spec.name).view(np.float16).astype(np.float64)
    raw = quantized(source, given, "Q4_K", quantizer)
    q = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_K).astype(np.float64)
    h = given.importance[0].astype(np.float64) if weighed else np.ones(w.shape[1])
    assert found["F16"] == 0.0
    assert found["Q4_K"] == pytest.approx(((w - q) ** 2 @ h).sum() / (w**2 @ h).sum(), rel=1e-5)


def run(capsys, *words):
    capsys.readouterr()
    code = cli.main(["quantize", *map(str, words)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Measurements of these tests only; compiled code where it always is."""
    monkeypatch.setattr("quantmill.jobs.measurements.cache_dir", lambda kind: tmp_path / "cache" / kind)
    return tmp_path / "cache" / "measurements"


def kld(model, base):
    """Mean KL divergence from `base` over a text that no calibration saw, by the evaluation's own pass."""
    quant = load(model)
    tokens = base.tokenizer.encode((EXAMPLE / "evaluation.txt").read_text())
    chunks = np.array(tokens[: 8 * 512], np.int32).reshape(8, 512)
    found = compare.run(base, [quant], chunks).scores[0].kld.mean()
    quant.close()
    return found


def test_the_best_of_a_size(loaded, capsys, tmp_path, cache, monkeypatch):
    """At the bytes of Q3_K_M: measured types lose less on another text; twice the same bytes, and from the recipe; a
    second size measures no single tensor again."""
    theirs = tmp_path / "Q3_K_M.gguf"
    assert run(capsys, "--imatrix", IMATRIX, tiny("F16"), theirs, "Q3_K_M")[0] == 0
    size = theirs.stat().st_size
    words = ["--imatrix", IMATRIX, "--calibration", TEXT, "--measure-chunks", "2", "--min-type", "Q2_K"]
    words += ["--target-size", size, "--json"]
    monkeypatch.setattr("quantmill.jobs.held_predictions._MUCH", 1)
    code, out, err = run(capsys, *words, tiny("F16"), tmp_path / "ours.gguf")
    assert code == 0
    assert "predictions take 0.0 GiB of memory while types are measured; fewer --measure-chunks" in err
    found = json.loads(out)
    assert (tmp_path / "ours.gguf").stat().st_size == found["file_bytes"]
    assert size - 4096 < found["file_bytes"] <= size
    assert found["measured_loss"] == pytest.approx(found["predicted_loss"], rel=0.3)
    ours, preset = (kld(path, loaded) for path in (tmp_path / "ours.gguf", theirs))
    assert ours < 0.9 * preset
    recipe = tmp_path / "ours.recipe.toml"
    code, _, err = run(capsys, "--imatrix", IMATRIX, "--recipe", recipe, tiny("F16"), tmp_path / "again.gguf")
    assert code == 0
    assert "warning" not in err
    assert (
        "importance imatrix.gguf; none was given"
        in run(capsys, "--recipe", recipe, "--dry-run", tiny("F16"), tmp_path / "again.gguf")[2]
    )
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "ours.gguf").read_bytes()

    with monkeypatch.context() as patched:  # the same size again runs no model
        patched.setattr(Sensitivity, "__init__", None)
        same = json.loads(run(capsys, *words, "--dry-run", tiny("F16"), tmp_path / "x.gguf")[1])
    assert same["tensors"] == found["tensors"]
    assert same["losses"] == found["losses"]

    def refuse(self, wanted, *others):
        assert all(len(types) == 1 for types in wanted.values())  # in company one measurement a tensor
        return measure(self, wanted, *others)

    measure = Sensitivity.measure
    before = json.loads(next(cache.iterdir()).read_text())["losses"]
    monkeypatch.setattr(Sensitivity, "measure", refuse)
    words[words.index("--target-size") + 1] = size + 400_000
    assert run(capsys, *words, tiny("F16"), tmp_path / "second.gguf")[0] == 0
    assert json.loads(next(cache.iterdir()).read_text())["losses"] == before


def test_without_a_text_it_is_an_estimate_and_says_so(capsys, tmp_path, cache):
    words = ["--imatrix", IMATRIX, "--target-bpw", "4.5", "--min-type", "Q3_K", "--max-type", "Q6_K"]
    code, out, err = run(capsys, *words, "--dry-run", "--json", tiny("F16"), tmp_path / "out.gguf")
    assert code == 0
    assert "no calibration text" in err
    found = json.loads(out)
    assert 4.4 < found["bpw"] <= 4.5
    assert found["measured_loss"] is None
    assert {t["type"] for t in found["tensors"]} <= {
        "Q3_K",
        "IQ4_XS",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "F32",
        "IQ3_S",
        "F16",
    }
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--target-size", "20K"], 1, "20000 bytes: cannot be reached; this model can have"),
        (["--target-size", "4,6G"], 2, "expected a size such as"),
        (["--target-size", "4M", "--target-bpw", "4"], 2, "cannot be used together"),
        (["--target-bpw", "-1"], 2, "expected bits per weight"),
        (["--target-bpw", "4.5", "Q4_K_M"], 2, "TYPE is left out"),
        (["--target-bpw", "4.5", "--min-type", "Q9"], 2, "unknown tensor type"),
        (["--target-bpw", "4.5", "--pure"], 1, "--pure"),
        (["--target-bpw", "4.5", "--calibration", "no-such.txt"], 1, "No such file"),
        (
            ["--target-bpw", "4.5", "--calibration", str(TEXT), "--measure-chunks", "99999"],
            1,
            "give a longer text",
        ),
        (["--target-bpw", "4.5", "--recipe", "r.toml"], 2, "--recipe says all types"),
        (["--calibration", str(TEXT)], 2, "only names a text"),
    ],
)
def test_sizes_that_cannot_be(capsys, tmp_path, cache, words, code, why):
    output = tmp_path / "out.gguf"
    found = run(capsys, tiny("F16"), output, *words)
    assert found[0] == code
    assert why in " ".join(found[2].replace("│", "").split())
    assert not output.exists()


def test_room_is_left_for_the_keys_of_polish_and_compensation():
    """tests/test_polish.py holds that these keys are below 4096 bytes."""
    assert find_target(5_000_000, None, adds_keys=True) == Target(5_000_000 - 4096)
    assert find_target(5_000_000, None, adds_keys=False) == Target(5_000_000)
    assert find_target(None, 4.5, adds_keys=True) == Target(bpw=4.5)


def test_outputs_are_checked_before_the_measuring(capsys, tmp_path, cache):
    (tmp_path / "out.recipe.toml").write_text("my notes")
    words = ["--target-bpw", "4.5", tiny("F16"), tmp_path / "out.gguf"]
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "is there already and is not a recipe but a text" in err
    assert (tmp_path / "out.recipe.toml").read_text() == "my notes"
    assert not cache.exists()
