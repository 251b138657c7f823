"""Polish from command to file, on the example model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import quantmill as quantmill_api
from quantmill import cli
from quantmill.calibrate.polish import Training
from quantmill.errors import QuantmillError
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.partial import PartialFile
from quantmill.imatrix.text import Text
from quantmill.jobs import evaluate, polish, polish_checks
from quantmill.jobs.polish import Job, plan_job, run
from quantmill.jobs.polish_request import default_output
from quantmill.jobs.polish_state import Kept
from quantmill.jobs.watcher import Silent
from quantmill.models.tokenizer import from_metadata
from quantmill.qkernels.types import TYPES
from tests.support.measure_models import EXAMPLE, tiny

TEXT = EXAMPLE / "calibration.txt"
CHUNKS = 14


def job(output: Path, quant: Path | None = None, **settings) -> Job:
    return Job(quant or tiny("Q4_0"), EXAMPLE, (Text(TEXT),), output, n_chunks=CHUNKS, threads=2, **settings)


@pytest.fixture(scope="session")
def polished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("polish") / "polished.gguf"
    assert run(job(path)).helped
    return path


def quantmill(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "quantmill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def command(output: Path, *more: object) -> list[object]:
    files = ["--base", EXAMPLE, "--calibration", TEXT, "--chunks", CHUNKS, "--threads", 2]
    return ["polish", tiny("Q4_0"), *files, "-o", output, *more]


def test_only_scales_and_vectors_change(polished: Path) -> None:
    before, after = open_source(tiny("Q4_0")), open_source(polished)
    kinds = [[(s.name, s.shape, s.type) for s in source.specs()] for source in (before, after)]
    assert kinds[0] == kinds[1]
    for spec in before.specs():
        old, new = before.read(spec.name), after.read(spec.name)
        assert not np.array_equal(old, new) or len(spec.shape) > 1, spec.name
        if spec.type == "Q4_0":
            changed = (old != new).reshape(-1, TYPES["Q4_0"].bytes).any(axis=0)
            assert changed[:2].any(), spec.name
            assert not changed[2:].any(), spec.name


def test_predicts_a_text_it_has_not_seen_better(polished: Path) -> None:
    text = EXAMPLE / "evaluation.txt"
    found = evaluate.run(evaluate.Job((tiny("Q4_0"), polished), base=EXAMPLE, text=text, chunks=8))
    before, after = (model.divergence for model in found.models)
    assert before is not None
    assert after is not None
    assert after.kld.value < 0.95 * before.kld.value
    assert found.ranking[0] == "polished"
    assert found.comparisons[0].p_value < 0.05


def test_says_what_was_done(polished: Path) -> None:
    metadata = open_source(polished).metadata
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


def test_threads_do_not_change_the_bytes(polished: Path, tmp_path: Path) -> None:
    one = Job(tiny("Q4_0"), EXAMPLE, (Text(TEXT),), tmp_path / "one.gguf", n_chunks=CHUNKS, threads=1)
    run(one)
    assert (tmp_path / "one.gguf").read_bytes() == polished.read_bytes()


def test_a_killed_run_goes_on_to_the_same_bytes(polished: Path, tmp_path: Path) -> None:
    """Killed while the original listens, and again in training; an interrupt saves the last step."""
    output = tmp_path / "out.gguf"
    arguments = [sys.executable, "-m", "quantmill", *map(str, command(output))]
    kept = Path(f"{output}.quantmill-polish") / "teacher.f32"
    listening, listened = (lambda: _n_bytes(kept) > 0), (lambda: _n_bytes(kept) == CHUNKS * 512 * 256 * 4)
    for resume, moment, sent in (([], listening, signal.SIGKILL), (["--resume"], listened, signal.SIGINT)):
        process = subprocess.Popen([*arguments, *resume], stderr=subprocess.PIPE)
        _wait_for(moment)
        time.sleep(0 if sent == signal.SIGKILL else 3)  # into the training
        process.send_signal(sent)
        process.wait()
        assert not output.exists()
        assert process.returncode in (-signal.SIGKILL, 130)
    assert quantmill(*command(output)).stderr.count("go on with --resume") == 1
    done = quantmill(*command(output, "--resume"))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == polished.read_bytes()
    assert not kept.parent.exists()


def _n_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait_for(true) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Stops(Silent):
    """Interrupts when so many chunks have been trained on."""

    def __init__(self, after: int) -> None:
        self._left = after
        self._trains = False

    def began(self, what: str, total: int, unit: str) -> None:
        self._trains = what == "training"

    def progressed(self, n: int, note: str = "") -> None:
        self._left -= bool(note) and self._trains
        if not self._left:
            raise KeyboardInterrupt


def test_looks_at_held_back_chunks_do_not_change_the_bytes(
    polished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking every three steps, stopped in between and gone on with."""
    monkeypatch.setattr(polish, "LOOK_STEPS", 3)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run(job(tmp_path / "out.gguf"), Stops(5))
    run(job(tmp_path / "out.gguf", resume=True))
    assert (tmp_path / "out.gguf").read_bytes() == polished.read_bytes()


def test_training_ends_when_held_back_chunks_no_longer_improve(monkeypatch: pytest.MonkeyPatch) -> None:
    class Some(Training):
        def __init__(self) -> None:
            self.knobs = [SimpleNamespace(change=torch.zeros(1))]
            self.student = self.divergence = SimpleNamespace(apply=lambda: None, moved=lambda: None)
            self.order, self.losses, self.looks, self.best = np.arange(20), [], [], []

        def step(self, *arguments: object) -> float:
            self.losses.append(0.0)
            self.knobs[0].change += 1
            return 0.0

    monkeypatch.setattr(polish, "LOOK_STEPS", 2)
    training, kept = Some(), SimpleNamespace(save=lambda training, soon=False: None)
    chunks = SimpleNamespace(held_back=[], trained=[])
    found = iter([0.9, 0.5, 0.7, 0.6, 0.1])
    for _ in range(2):  # gone on with, it stays ended
        polish._train(training, chunks, None, kept, Silent(), lambda: next(found))  # type: ignore[arg-type]
        assert training.n_done == 8
        assert training.looks == [0.9, 0.5, 0.7, 0.6]
    training.back_to_best()
    assert training.knobs[0].change == 4


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


def test_polished_again_is_not_worse(polished: Path, tmp_path: Path) -> None:
    result = run(job(tmp_path / "again.gguf", quant=polished))
    assert result.after.kld.value <= result.before.kld.value or not result.helped


def test_where_it_does_not_help_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(list(map(str, command(tmp_path / "out.gguf", "--lr", 0.5)))) == 3
    assert "not better" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_norms(tmp_path: Path) -> None:
    made = {"chunks": CHUNKS, "only": "norms", "threads": 2}
    result = quantmill_api.polish(tiny("Q4_0"), EXAMPLE, TEXT, tmp_path / "out.gguf", **made)
    before, after = open_source(tiny("Q4_0")), open_source(tmp_path / "out.gguf")
    assert result.helped
    for spec in before.specs():
        same = np.array_equal(before.read(spec.name), after.read(spec.name))
        assert same == (len(spec.shape) > 1), spec.name


def test_a_split_model(polished: Path, tmp_path: Path) -> None:
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
    one, two = open_source(polished), open_source(result.paths[0])
    assert all(np.array_equal(one.read(s.name), two.read(s.name)) for s in specs)


def test_dry_run(tmp_path: Path) -> None:
    done = quantmill(*command(tmp_path / "out.gguf", "--dry-run", "--json"))
    plan = json.loads(done.stdout)
    assert plan["n_trained"] == CHUNKS - 6
    assert plan["n_held_back"] == 6
    assert plan["memory_bytes"] > 100 << 20
    assert plan["kept_bytes"] == 4 * CHUNKS * 512 * 256 + 16 * plan["n_moving"]
    assert list(tmp_path.iterdir()) == []


def rewritten(path: Path, change) -> Path:
    """The quantized example with `change(name, values)` done to its F32 tensors."""
    source = open_source(tiny("Q4_0"))
    with GGUFSink(
        path, source.metadata, [OutputTensor(s.name, s.shape, s.type) for s in source.specs()]
    ) as sink:
        for spec in source.specs():
            raw = np.array(source.read(spec.name))
            sink.write(
                spec.name, change(spec.name, raw.view("<f4")).view("u1") if spec.type == "F32" else raw
            )
        sink.commit()
    return path


def test_bad_numbers_in_the_quant(tmp_path: Path) -> None:
    def change(name: str, values: np.ndarray) -> np.ndarray:
        return np.full_like(values, np.nan) if name == "blk.2.attn_norm.weight" else values

    quant = rewritten(tmp_path / "nan.gguf", change)
    with pytest.raises(QuantmillError, match="predictions are not finite"):
        run(job(tmp_path / "out.gguf", quant=quant))
    assert [path.name for path in tmp_path.iterdir()] == ["nan.gguf"]


def test_a_rate_too_high_is_said(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match=r"--lr 1\.5"):
        job(tmp_path / "out.gguf", rate=1.5)


def test_another_models_base(tmp_path: Path) -> None:
    from tests.support.measure_families import FAMILIES, random_model

    random_model(tmp_path, *FAMILIES["qwen3, yarn"])
    with pytest.raises(QuantmillError, match="different models: architecture"):
        plan_job(Job(tiny("Q4_0"), tmp_path, (Text(TEXT),), tmp_path / "out.gguf"))


def test_the_first_tensor_that_differs(tmp_path: Path) -> None:
    source = open_source(tiny("F16"))
    with GGUFSink(
        tmp_path / "base.gguf",
        source.metadata,
        [OutputTensor(s.name, s.shape, s.type) for s in source.specs()],
    ) as sink:
        for spec in source.specs():
            raw = np.array(source.read(spec.name))
            sink.write(spec.name, raw[::-1].copy() if spec.name == "blk.1.attn_k.weight" else raw)
        sink.commit()
    with pytest.raises(QuantmillError, match=r"blk\.1\.attn_k\.weight"):
        plan_job(Job(tiny("Q4_0"), tmp_path / "base.gguf", (Text(TEXT),), tmp_path / "out.gguf"))


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="nothing to learn"):
        plan_job(Job(tiny("Q4_0"), tiny("Q4_0"), (Text(TEXT),), tmp_path / "out.gguf"))
    plan = plan_job(Job(tiny("Q4_0"), tiny("Q8_0"), (Text(TEXT),), tmp_path / "out.gguf"))
    assert "quantized itself (Q8_0)" in plan.warnings[0]


def test_a_base_that_is_worse(tmp_path: Path) -> None:
    """The roles exchanged: the original stands as the quant's base with its norms spoiled."""
    source = open_source(tiny("F16"))
    with GGUFSink(
        tmp_path / "base.gguf",
        source.metadata,
        [OutputTensor(s.name, s.shape, s.type) for s in source.specs()],
    ) as sink:
        for spec in source.specs():
            raw = np.array(source.read(spec.name))
            spoiled = spec.name.startswith("blk.1") and spec.type == "F32" and len(spec.shape) == 1
            sink.write(spec.name, (raw.view("<f4") * np.float32(0.2)).view("u1") if spoiled else raw)
        sink.commit()
    with pytest.raises(QuantmillError, match="predicts the held-back text worse"):
        run(Job(tiny("Q4_0"), tmp_path / "base.gguf", (Text(TEXT),), tmp_path / "out.gguf", n_chunks=CHUNKS))
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_a_short_text(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("It is a truth universally acknowledged. " * 40)
    done = quantmill(
        "polish",
        tiny("Q4_0"),
        "--base",
        EXAMPLE,
        "--calibration",
        tmp_path / "short.txt",
        "-o",
        tmp_path / "o.gguf",
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "at least 10 chunks of 512, 5120 tokens" in done.stderr


def test_an_output_is_no_input(tmp_path: Path) -> None:
    quant = tmp_path / "q.gguf"
    quant.write_bytes(tiny("Q4_0").read_bytes())
    with pytest.raises(QuantmillError, match="is an input"):
        plan_job(Job(quant, EXAMPLE, (Text(TEXT),), quant))


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


def test_polish_needs_a_text(tmp_path: Path) -> None:
    done = quantmill("quantize", EXAMPLE, tmp_path / "out.gguf", "Q4_0", "--polish")
    assert done.returncode == 2
    assert "--calibration" in done.stderr


def test_a_full_disk_keeps_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of writing leaves the state for --resume; any other would come again, and its state goes."""
    kept = tmp_path / "out.gguf.quantmill-polish"
    errors = (GGUFError("no space"), True), (KeyboardInterrupt(), True), (QuantmillError("not finite"), False)
    for error, stays in errors:

        def fail(*arguments: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("quantmill.jobs.polish._polished", fail)
        with pytest.raises(type(error), match="--resume" if isinstance(error, KeyboardInterrupt) else None):
            run(job(tmp_path / "out.gguf", resume=True))
        assert kept.exists() == stays


def test_a_state_that_cannot_be_saved_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Training:
        def state(self) -> dict[str, torch.Tensor]:
            return {"moved": torch.ones(3)}

    warnings: list[str] = []
    kept = Kept(tmp_path / "out.gguf", "one", False, warnings.append)
    kept.save(Training(), soon=True)
    saved = (kept.directory / "training.pt").read_bytes()

    def full(*arguments: object) -> None:
        raise GGUFError("no space")

    monkeypatch.setattr(PartialFile, "write_at", full)
    kept.save(Training(), soon=True)
    assert warnings == ["what is finished could not be saved: no space"]
    assert [path.name for path in sorted(kept.directory.iterdir())] == ["run.json", "training.pt"]
    assert (kept.directory / "training.pt").read_bytes() == saved


@pytest.mark.parametrize("between_steps", [True, False])
def test_an_interrupt_inside_a_step_saves_no_half_step(between_steps: bool) -> None:
    """A state that is half one step's and half the next one's would go on to other bytes."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    training = SimpleNamespace(
        n_done=0,
        order=[0],
        losses=[],
        looks=[],
        improves=True,
        step=interrupted,
        between_steps=between_steps,
    )
    saved: list[bool] = []
    kept = SimpleNamespace(save=lambda training, soon=False: saved.append(soon))
    chunks = SimpleNamespace(held_back=[], trained=[])
    with pytest.raises(KeyboardInterrupt):
        polish._train(training, chunks, None, kept, Silent(), lambda: 0.0)  # type: ignore[arg-type]
    assert saved == [True] * between_steps
