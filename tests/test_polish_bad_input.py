"""What polish refuses, on the example model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantmill.errors import QuantmillError
from quantmill.gguf_io.source import open_source
from quantmill.imatrix.text import Text
from quantmill.jobs import quantize
from quantmill.jobs.polish import Job, plan_job, run
from quantmill.jobs.polish_checks import check_base
from quantmill.recipe import Recipe
from tests.support.convert_models import write_f32, write_model
from tests.support.measure_models import EXAMPLE, tiny, written_again
from tests.support.polishing import CHUNKS, TEXT, job, quantmill


def rewritten(path: Path, change) -> Path:
    """The quantized example with `change(name, values)` done to its F32 tensors."""

    def changed(spec, raw: np.ndarray) -> np.ndarray:
        return change(spec.name, raw.view("<f4")).view("u1") if spec.type == "F32" else raw

    return written_again(tiny("Q4_0"), path, changed)


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


def test_a_cpu_has_nothing_to_visit(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="--stream is for a GPU whose memory is too small; cpu computes"):
        plan_job(job(tmp_path / "out.gguf", stream=True, device="cpu"))


def test_another_models_base(tmp_path: Path) -> None:
    from tests.support.measure_families import FAMILIES, random_model

    random_model(tmp_path, *FAMILIES["qwen3, yarn"])
    with pytest.raises(QuantmillError, match="different models: architecture"):
        plan_job(Job(tiny("Q4_0"), tmp_path, (Text(TEXT),), tmp_path / "out.gguf"))


def test_the_first_tensor_that_differs(tmp_path: Path) -> None:

    def turned(spec, raw: np.ndarray) -> np.ndarray:
        return raw[::-1].copy() if spec.name == "blk.1.attn_k.weight" else raw

    written_again(tiny("F16"), tmp_path / "base.gguf", turned)
    with pytest.raises(QuantmillError, match=r"blk\.1\.attn_k\.weight"):
        plan_job(Job(tiny("Q4_0"), tmp_path / "base.gguf", (Text(TEXT),), tmp_path / "out.gguf"))


def test_tables_of_whole_numbers_are_compared(tmp_path: Path) -> None:
    """Of the experts of each token, in DeepSeek V4."""
    base = write_f32(write_model("deepseek-v4", tmp_path / "model"), tmp_path / "base.gguf")
    quantize.run(quantize.Job(str(base), tmp_path / "quant.gguf", Recipe("Q4_0", allow_requantize=True)))
    with open_source(base) as of_base, open_source(tmp_path / "quant.gguf") as of_quant:
        check_base(of_quant, of_base)

    def turned(spec, raw: np.ndarray) -> np.ndarray:
        return raw[::-1].copy() if spec.type == "I32" else raw

    other = written_again(base, tmp_path / "other.gguf", turned)
    with (
        open_source(other) as of_other,
        open_source(tmp_path / "quant.gguf") as of_quant,
        pytest.raises(QuantmillError, match=r"first rows of blk\.\d\.ffn_gate_tid2eid\.weight are others"),
    ):
        check_base(of_quant, of_other)


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="nothing to learn"):
        plan_job(Job(tiny("Q4_0"), tiny("Q4_0"), (Text(TEXT),), tmp_path / "out.gguf"))
    plan = plan_job(Job(tiny("Q4_0"), tiny("Q8_0"), (Text(TEXT),), tmp_path / "out.gguf"))
    assert "quantized itself (Q8_0)" in plan.warnings[0]


def test_a_base_that_is_worse(tmp_path: Path) -> None:
    """The roles exchanged: the original stands as the quant's base with its norms spoiled."""

    def spoiled(spec, raw: np.ndarray) -> np.ndarray:
        is_norm = spec.name.startswith("blk.1") and spec.type == "F32" and len(spec.shape) == 1
        return (raw.view("<f4") * np.float32(0.2)).view("u1") if is_norm else raw

    written_again(tiny("F16"), tmp_path / "base.gguf", spoiled)
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


def test_polish_needs_a_text(tmp_path: Path) -> None:
    done = quantmill("quantize", EXAMPLE, tmp_path / "out.gguf", "Q4_0", "--polish")
    assert done.returncode == 2
    assert "--calibration" in done.stderr


@pytest.mark.parametrize("type", ["F16", "bf16", "COPY"])
def test_what_has_nothing_to_learn_is_said_before_the_work(type: str, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    done = quantmill("quantize", "--polish", "--calibration", TEXT, EXAMPLE, output, type)
    assert done.returncode == 1
    assert "there is nothing to learn; leave --polish out" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not output.exists()
