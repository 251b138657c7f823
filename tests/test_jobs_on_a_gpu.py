"""Jobs that run a model, on the GPU that is here: what comes out is as good as the CPU's, by the CPU's own measure."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import quantmill
from quantmill.imatrix.gguf_format import read_gguf
from tests.support.measure_models import EXAMPLE, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.accelerator.is_available(), reason="no GPU here: the CPU runs these jobs elsewhere"
    ),
]
CALIBRATION, UNSEEN = EXAMPLE / "calibration.txt", EXAMPLE / "evaluation.txt"
GPU = str(torch.accelerator.current_accelerator())


def quantmill_says(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantmill", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def lost(*files):
    """Mean KL divergence of each file from the example, on a text that nobody has learned from."""
    run = quantmill.evaluate(files, base=EXAMPLE, text=UNSEEN, chunks=8, device="cpu")
    return [model.divergence.kld.value for model in run.models]


def test_importance(tmp_path):
    found = []
    for device, dtype in (("cpu", "float32"), (GPU, "float32"), (GPU, "bfloat16")):
        path = tmp_path / f"{len(found)}.gguf"
        quantmill.collect_imatrix(tiny("F16"), CALIBRATION, path, chunks=8, device=device, dtype=dtype)
        found.append(read_gguf(path))
    for name, expected in found[0].entries.items():
        for other, most in ((found[1], 1e-3), (found[2], 3e-2)):  # a token near a tie goes to another expert
            apart = np.linalg.norm(other.entries[name].in_sum2 - expected.in_sum2) / np.linalg.norm(
                expected.in_sum2
            )
            assert apart < most, name


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_file_has_lost(streamed, tmp_path):
    words = ["--stream"] if streamed else []
    found = []
    for device in ("cpu", GPU):
        record = tmp_path / f"{device}.json".replace(":", "")
        files = ["--base", tiny("F16"), "-f", UNSEEN, "--chunks", 4, tiny("Q4_0")]
        quantmill_says("evaluate", *files, "-o", record, "--device", device, "--dtype", "float32", *words)
        (model,) = json.loads(record.read_text())["models"]
        found.append(model["divergence"]["kld"]["value"])
    assert found[1] == pytest.approx(found[0], rel=0.02)


def plain(folder, type):
    path = folder / f"plain-{type}.gguf"
    quantmill.quantize_model(tiny("F16"), path, type, device="cpu")
    return path


@pytest.mark.parametrize("type", ["Q4_0", "Q2_K"])
def test_polish(type, tmp_path):
    """Scales, vectors, and for Q2_K codes too."""
    files, start = [], plain(tmp_path, type)
    for device in ("cpu", GPU):
        files.append(tmp_path / f"{device.replace(':', '')}.gguf")
        assert quantmill.polish(start, EXAMPLE, CALIBRATION, files[-1], chunks=48, device=device).helped
    before, by_cpu, by_gpu = lost(start, *files)
    assert by_gpu < before
    assert by_gpu == pytest.approx(by_cpu, rel=0.1)


def test_polish_gives_the_same_bytes_again(tmp_path):
    files, start = [tmp_path / "a.gguf", tmp_path / "b.gguf"], plain(tmp_path, "Q2_K")
    for file in files:
        quantmill.polish(start, EXAMPLE, CALIBRATION, file, chunks=48, device=GPU)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("type", ["Q4_K", "Q2_K"])
def test_polish_of_weights_that_stay_in_main_memory(type, tmp_path):
    """As good, whatever threads keep them, and less of the GPU's memory."""
    start, files = plain(tmp_path, type), []
    for words in ([], ["--stream", "--threads", 1], ["--stream", "--threads", 4]):
        files.append(tmp_path / f"{len(files)}.gguf")
        learned = ["--base", EXAMPLE, "--calibration", CALIBRATION, "--chunks", 48, "--device", GPU]
        quantmill_says("polish", start, *learned, "-o", files[-1], *words)
    assert files[1].read_bytes() == files[2].read_bytes()
    held, streamed = lost(*files[:2])
    assert streamed == pytest.approx(held, rel=0.03)


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ2_S"])
def test_compensation(type, tmp_path):
    """And the memory that was said before."""
    files, texts, results = [], [], []
    for device in ("cpu", GPU, GPU):
        files.append(tmp_path / f"{len(files)}.gguf")
        words = ["--compensate", "--calibration", CALIBRATION, "--chunks", 16, "--device", device, "--json"]
        done = quantmill_says("quantize", tiny("F16"), files[-1], type, *words)
        results.append(json.loads(done.stdout))
        texts.append(done.stderr)
    assert files[1].read_bytes() == files[2].read_bytes()
    by_cpu, by_gpu = lost(*files[:2])
    assert by_gpu == pytest.approx(by_cpu, rel=0.1)
    said = re.search(r"([\d.]+) GiB in all on cuda", texts[1])
    assert said is not None
    assert float(said[1]) * 2**30 > 0.8 * results[1]["device_peak_bytes"] > 0


@pytest.mark.parametrize("words", [("--prune-layers", "auto:1"), ("--prune-experts", "0.25")])
def test_pruning(words, tmp_path):
    files = []
    for device in ("cpu", GPU):
        files.append(tmp_path / f"{device.replace(':', '')}.gguf")
        learned = ["--calibration", CALIBRATION, "--max-damage", "none", "--device", device]
        quantmill_says("quantize", tiny("F16"), files[-1], "Q8_0", *words, *learned)
    by_cpu, by_gpu = lost(*files)
    assert by_gpu == pytest.approx(by_cpu, rel=0.1)


def test_squeeze(tmp_path):
    words = [
        "--calibration",
        CALIBRATION,
        "--evaluation",
        UNSEEN,
        "--chunks",
        6,
        "--no-speed",
        "--device",
        GPU,
    ]
    done = quantmill_says("squeeze", tiny("F16"), "--types", "Q4_K_M", "-o", tmp_path / "out", *words)
    (file,) = (tmp_path / "out").glob("*Q4_K_M*.gguf")
    assert "Q4_K_M" in done.stdout
    start, made = lost(plain(tmp_path, "Q4_K_M"), file)
    assert made < start
