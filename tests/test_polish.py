"""Polish from command to file, on the example model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import quantmill as quantmill_api
from quantmill import cli
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.imatrix.text import Text
from quantmill.jobs import evaluate, polish_checks
from quantmill.jobs.polish import Job, run
from quantmill.jobs.polish_request import default_output
from quantmill.models.tokenizer import from_metadata
from quantmill.qkernels.types import TYPES
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.polishing import CHUNKS, TEXT, command, job, polished, quantmill


def test_only_scales_codes_and_vectors_change() -> None:
    before, after = open_source(tiny("Q4_0")), open_source(polished())
    kinds = [[(s.name, s.shape, s.type) for s in source.specs()] for source in (before, after)]
    assert kinds[0] == kinds[1]
    for spec in before.specs():
        old, new = before.read(spec.name), after.read(spec.name)
        assert not np.array_equal(old, new) or len(spec.shape) > 1, spec.name
        if spec.type == "Q4_0":
            changed = (old != new).reshape(-1, TYPES["Q4_0"].bytes)
            assert changed[:, :2].any(), spec.name
            # a step of a scale moves nearly all, a code here and there
            assert changed[:, 2:].mean() < 0.04, spec.name


def test_predicts_a_text_it_has_not_seen_better() -> None:
    text = EXAMPLE / "evaluation.txt"
    found = evaluate.run(evaluate.Job((tiny("Q4_0"), polished()), base=EXAMPLE, text=text, chunks=8))
    before, after = (model.divergence for model in found.models)
    assert before is not None
    assert after is not None
    assert after.kld.value < 0.95 * before.kld.value
    assert found.ranking[0] == "polished"
    assert found.comparisons[0].p_value < 0.05


def test_says_what_was_done() -> None:
    metadata = open_source(polished()).metadata
    facts = {
        key: metadata.value(f"quantmill.polish.{key}")
        for key in ("tokens", "rate", "kld_before", "kld_after")
    }
    assert facts["tokens"] == (CHUNKS - 6) * 512
    assert facts["rate"] == pytest.approx(2e-3)
    assert 0 < facts["kld_after"] < facts["kld_before"]
    assert len(metadata.value("quantmill.polish.base.sha256")) == 64
    assert metadata.value("quantmill.polish.text.sha256")
    old = open_source(tiny("Q4_0")).metadata
    assert all(metadata[key] == old[key] for key in old)


def test_conversations_and_weights_of_texts(tmp_path: Path) -> None:
    """A share of a text in chunks is what imatrix takes of it."""
    text = TEXT.read_text()
    (tmp_path / "a.txt").write_text(text[:60_000])
    lines = [
        {"messages": [{"role": "user", "content": text[i : i + 2000]}]} for i in range(60_000, 180_000, 2000)
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = (Text(tmp_path / "a.txt", 3), Text(tmp_path / "b.jsonl", 1))
    metadata = open_source(tiny("Q4_0")).metadata
    tokenizer = from_metadata(metadata)
    found = polish_checks.chunks_of(
        texts, tokenizer, lambda: lambda messages: f"<{messages[0]['content']}>", None
    )
    plain = tokenizer.encode(text[:60_000])
    first = sum(
        chunk.tolist() == plain[: 512 * 40][512 * i :][:512] for i in range(40) for chunk in found.all
    )
    assert len(found.all) > 16
    assert first == pytest.approx(0.75 * len(found.all), abs=1)


def test_chunks_to_train_on_are_halves_of_what_is_not_held_back(tmp_path: Path) -> None:
    """Twice as many, each whole and in the text's order, from all of it."""
    tokenizer = from_metadata(open_source(tiny("Q4_0")).metadata)
    arguments = (Text(TEXT),), tokenizer, lambda: None, 40
    whole, halves = polish_checks.chunks_of(*arguments), polish_checks.chunks_of(*arguments, n_ctx=256)
    ids = np.array(tokenizer.encode(TEXT.read_text()))
    text = ids[: len(ids) // 512 * 512].reshape(-1, 256).tolist()
    places = [text.index(chunk.tolist()) for chunk in halves.trained]
    held_back = {text.index(chunk[:256].tolist()) // 2 for chunk in halves.held_back}
    assert len(places) == len(set(places)) == 2 * len(whole.trained)
    assert places == sorted(places)
    assert not held_back & {place // 2 for place in places}
    assert places[0] < 4
    assert places[-1] >= len(text) - 6
    assert np.array_equal(halves.held_back, whole.held_back)


def test_polished_again_is_not_worse(tmp_path: Path) -> None:
    result = run(job(tmp_path / "again.gguf", quant=polished()))
    assert result.after.kld.value <= result.before.kld.value or not result.helped


def test_where_it_does_not_help_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(list(map(str, command(tmp_path / "out.gguf", "--lr", 0.5)))) == 3
    assert "not better" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_norms(tmp_path: Path) -> None:
    made = {"chunks": 36, "only": "norms", "threads": 2}  # of fewer, those held back cannot tell
    result = quantmill_api.polish(tiny("Q4_0"), EXAMPLE, TEXT, tmp_path / "out.gguf", **made)
    before, after = open_source(tiny("Q4_0")), open_source(tmp_path / "out.gguf")
    assert result.helped
    for spec in before.specs():
        same = np.array_equal(before.read(spec.name), after.read(spec.name))
        assert same == (len(spec.shape) > 1), spec.name


def test_a_split_model(tmp_path: Path) -> None:
    whole = open_source(tiny("Q4_0"))
    specs = whole.specs()
    tensors = [OutputTensor(s.name, s.shape, s.type, int(i > 20)) for i, s in enumerate(specs)]
    with GGUFSink(tmp_path / "model.gguf", whole.metadata, tensors, keep_split=True) as sink:
        for spec in specs:
            sink.write(spec.name, whole.read(spec.name))
        sink.commit()
    quant = tmp_path / "model-00001-of-00002.gguf"
    assert default_output(quant) == tmp_path / "model-polished"
    result = run(Job(quant, EXAMPLE, (Text(TEXT),), n_chunks=CHUNKS))
    assert [path.name for path in result.paths] == [f"model-polished-0000{i}-of-00002.gguf" for i in (1, 2)]
    one, two = open_source(polished()), open_source(result.paths[0])
    assert all(np.array_equal(one.read(s.name), two.read(s.name)) for s in specs)


def test_dry_run(tmp_path: Path) -> None:
    done = quantmill(*command(tmp_path / "out.gguf", "--dry-run", "--json"))
    plan = json.loads(done.stdout)
    assert plan["n_trained"] == 2 * (CHUNKS - 6)
    assert plan["n_ctx"] == 256
    assert plan["n_held_back"] == 6
    assert plan["memory_bytes"] > 100 << 20
    assert plan["kept_bytes"] == 4 * CHUNKS * 512 * 256 + 16 * plan["n_moving"] + 4 * plan["n_codes"]
    assert list(tmp_path.iterdir()) == []


def test_quantize_and_polish_in_one_go(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    made = ["quantize", EXAMPLE, output, "Q4_0", "--json", "--threads", 2]
    plain = quantmill(*made)
    assert plain.returncode == 0, plain.stderr
    size = output.stat().st_size
    (tmp_path / "text.txt").write_text(TEXT.read_text()[:26_000])
    own = default_output(output)
    own.write_bytes(tiny("Q8_0").read_bytes())
    done = quantmill(*made, "--calibration", tmp_path / "text.txt", "--polish")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["polish"]["written"] == [str(output)]
    assert found["polish"]["after"]["kld"]["value"] < found["polish"]["before"]["kld"]["value"]
    assert open_source(output).metadata.value("quantmill.polish.tokens")
    assert 0 <= output.stat().st_size - size < 4096  # the keys
    assert own.read_bytes() == tiny("Q8_0").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [own.name, "out.gguf", "text.txt"]


@pytest.mark.slow
def test_quantize_keeps_the_plain_file(tmp_path: Path) -> None:
    """Of Q8_0 there is little to win back: either way the file and the exit code are sound."""
    output = tmp_path / "out.gguf"
    (tmp_path / "text.txt").write_text(TEXT.read_text()[:26_000])
    more = ("--calibration", tmp_path / "text.txt", "--polish", "--threads", 2)
    done = quantmill("quantize", EXAMPLE, output, "Q8_0", *more)
    assert done.returncode == 0, done.stderr
    assert output.exists()
    kept = "the plain file is kept" in done.stdout
    assert kept != bool(open_source(output).metadata.value("quantmill.polish.tokens"))
