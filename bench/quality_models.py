"""What bench.quality measures on: a model, its texts, llama.cpp's programs, and the plain file of a type."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import materials, padding

_ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = _ROOT / "examples" / "tiny-qwen3-moe"
SMOLLM2_TYPES = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_S")
# Every type whose blocks keep scales, on all matrices of the layers.
ALL_TYPES = (
    *("Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)


@dataclass(frozen=True)
class Bench:
    """A model with its texts, and where the work lies. base: what methods learn from; f16: the same for llama.cpp.

    presets: types are file types, which llama-quantize makes; otherwise one type for all matrices of the layers.
    learn_chunks: what a method learns from; None: as many as it does by default.
    """

    name: str
    base: Path
    f16: Path
    imatrix: Path
    calibration: Path
    evaluation: Path
    other: Path | None
    presets: bool
    llama: Path
    work: Path
    n_chunks: int
    threads: int
    learn_chunks: int | None = None

    def tool(self, name: str, *arguments: object) -> str:
        """Run one of llama.cpp's programs; what it wrote to both streams. Raises RuntimeError when it fails."""
        command = [str(self.llama / name), *map(str, arguments)]
        with tempfile.TemporaryFile() as said:  # into a pipe its last lines are lost now and then
            done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=False)
            said.seek(0)
            text = said.read().decode(errors="replace")
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {text[-2000:]}")
        return text

    def learning(self) -> list[str]:
        """The options of every method: the text, how much of it, with how many threads."""
        chunks = [] if self.learn_chunks is None else ["--chunks", str(self.learn_chunks)]
        return ["--calibration", str(self.calibration), *chunks, "--threads", str(self.threads)]

    def quantize(self, type: str, output: Path, *options: object) -> list[str]:
        """The command by which quantmill writes a file of the layout that `type` stands for."""
        layout = [] if self.presets else ["--tensor-type", f"^blk.*={type}"]
        command = [sys.executable, "-m", "quantmill", "quantize", *layout, *map(str, options)]
        return [*command, str(self.f16), str(output), type if self.presets else "Q8_0"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every bench on these models takes: folders, texts, how much of them, where the rows go."""
    parser.add_argument("--llama", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--chunks", type=int, default=32, help="of 512 tokens, of each text that judges")
    parser.add_argument("--imatrix-chunks", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--calibration", type=Path, help="a text instead of the one that is made")
    parser.add_argument("--evaluation", type=Path, help="likewise")
    parser.add_argument("--other", type=Path, help="likewise")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json, after every row")


def smollm2(options: argparse.Namespace) -> Bench:
    return _of_smollm2(options, "SmolLM2-135M, noise 1.0", materials.smollm2(options.work), presets=True)


def padded(options: argparse.Namespace) -> Bench:
    """SmolLM2 with rows of 768 in place of 576: no type falls back to one with smaller blocks."""
    plain = materials.smollm2(options.work)
    path = plain.with_name(f"{plain.stem}-padded.gguf")
    if not path.exists():
        padding.pad_llama(plain, path)
    return _of_smollm2(options, "SmolLM2-135M, noise 1.0, padded", path, presets=False)


def _of_smollm2(options: argparse.Namespace, name: str, f16: Path, presets: bool) -> Bench:
    made = materials.texts(options.work)
    imatrix = options.work / f"smollm2-imatrix{'' if presets else '-padded'}.gguf"
    texts = (
        options.calibration or made["calibration"],
        options.evaluation or made["evaluation"],
        options.other or made["other"],
    )
    place = (options.llama, options.work, options.chunks, options.threads)
    bench = Bench(name, f16, f16, imatrix, *texts, presets, *place)
    if not imatrix.exists():
        how = ("-c", 512, "--chunks", options.imatrix_chunks, "-t", options.threads)
        bench.tool("llama-imatrix", "-m", f16, "-f", bench.calibration, *how, "-o", imatrix)
    return bench


def moe(options: argparse.Namespace) -> Bench:
    f16 = options.work / "tiny-qwen3-moe-f16.gguf"
    if not f16.exists():
        command = [sys.executable, "-m", "quantmill", "convert", str(EXAMPLE), str(f16), "--type", "f16"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    texts = (EXAMPLE / "calibration.txt", EXAMPLE / "evaluation.txt")
    place = (options.llama, options.work, options.chunks, options.threads)
    return Bench("tiny Qwen3-MoE", EXAMPLE, f16, EXAMPLE / "imatrix.gguf", *texts, None, False, *place)


# Where a model's file and texts come from, and the types that are measured of it where none is named.
MODELS = {
    "smollm2": (smollm2, SMOLLM2_TYPES),
    "padded": (padded, ("Q4_K", "Q3_K", "Q2_K", "IQ3_S", "IQ2_S")),
    "moe": (moe, ALL_TYPES),
}


def plain_file(bench: Bench, type: str) -> Path:
    """llama-quantize's file of a type; quantmill's (the same bytes) where llama-quantize has no such file type."""
    output = bench.work / f"{bench.f16.stem}-{type}.gguf"
    if output.exists():
        return output
    if bench.presets:
        bench.tool("llama-quantize", "--imatrix", bench.imatrix, bench.f16, output, type, bench.threads)
    else:
        command = bench.quantize(type, output, "--imatrix", bench.imatrix)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return output
