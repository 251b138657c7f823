"""--profile: tokens a second, and the share of time in matrix multiplications."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from quantmill.cli import main
from quantmill.models.profile import Profile
from quantmill.qkernels import products

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny-qwen3-moe"


def test_time_is_counted_where_it_is_spent() -> None:
    left = torch.randn(512, 512)
    start = time.perf_counter()
    with torch.inference_mode(), Profile() as profile:
        for _ in range(20):
            left @ left
        time.sleep(0.05)
    assert max(profile.seconds, key=profile.seconds.__getitem__) in {"mm", "matmul"}
    assert 0 < profile.matmuls <= sum(profile.seconds.values()) <= time.perf_counter() - start - 0.05
    before = dict(profile.seconds)
    left.exp()
    assert dict(profile.seconds) == before


@pytest.mark.skipif(not products.served(), reason="this processor has no AVX512-VNNI")
def test_short_products_are_multiplications() -> None:
    known = products.multiplied
    rows = products.entered(np.ones((96, 320), np.float32), products.served()[0])
    matrix = np.ones((640, 320), np.float32)
    with Profile() as profile:
        for _ in range(20):
            products.multiplied(rows, matrix, np.empty((96, 640), np.float32))
    assert 0 < profile.seconds["multiplied"] == profile.matmuls
    assert products.multiplied is known


@pytest.mark.parametrize("command", ["imatrix", "evaluate"])
def test_a_run_says_what_its_time_went_to(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, str(EXAMPLE), "-f", str(EXAMPLE / "evaluation.txt"), "-c", "64", "--chunks", "4"]
    outputs = {name: [*words, "-o", str(tmp_path / name)] for name in ("plain.gguf", "profiled.gguf")}
    if command == "evaluate":
        outputs = {name: [*words, "--json"] for name in outputs}
    assert main(outputs["plain.gguf"]) == 0
    plain = capsys.readouterr()
    assert "matrix multiplications" not in plain.err
    assert main([*outputs["profiled.gguf"], "--profile"]) == 0
    printed = capsys.readouterr()
    rate, tokens, seconds, share = _numbers(
        r"(\d+) tokens/s: (\d+) in ([\d.]+) s, of which matrix multiplications took ([\d.]+) %", printed.err
    )
    assert tokens == 256
    assert seconds == pytest.approx(256 / rate, abs=0.006 + 128 / rate**2)  # both are rounded
    assert 0 < share < 100
    assert re.search(r"\n\w+ +[\d.]+ s\n", printed.err)


def _numbers(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    assert match is not None, text
    return [float(group) for group in match.groups()]
