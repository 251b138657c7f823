"""Every comparison that this machine can run: `python -m bench.all --llama FOLDER --work FOLDER [--base COMMIT]`.

Types, the phases of searches, decoders, whole files, requantizing, the disk, imatrix, evaluate and whole commands,
each by its own module of this folder against llama.cpp's programs in FOLDER (the disk against cp), which compare bytes
before they print a number. Models and texts are made in `--work`; the disk takes three files of 4.5 GB there. One page
is written, `--out` (bench/results/README.md), with a section a comparison; one that fails says so there, the others go
on, and the exit code is 1. `--only` names the comparisons to run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import machine, materials, tables

_ROOT = Path(__file__).resolve().parent.parent
_IMATRIX_CHUNKS = 16
_LARGE = ("--layers", "9")  # of bench.synthetic: 4.5 GB


@dataclass(frozen=True)
class Comparison:
    """A module of this folder and the words it is given."""

    name: str
    module: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """What a comparison left. page: Markdown, or why there is none."""

    name: str
    ok: bool
    page: str


def made(options: argparse.Namespace) -> dict[str, Path]:
    """The models and texts of all comparisons, in the work folder; what is missing is made, the large one when it is
    wanted."""
    options.work.mkdir(parents=True, exist_ok=True)
    f16, texts = materials.smollm2(options.work), materials.texts(options.work)
    files = {"f16": f16, "text": texts["evaluation"], "imatrix": options.work / "smollm2-imatrix.gguf"}
    if not files["imatrix"].exists():
        how = ["-c", "512", "--chunks", str(_IMATRIX_CHUNKS), "-t", str(options.threads)]
        tool = [str(options.llama / "llama-imatrix"), "-m", str(f16), "-f", str(texts["calibration"])]
        subprocess.run([*tool, *how, "-o", str(files["imatrix"])], check=True, capture_output=True)
    for type in ("Q8_0", "Q4_K_M", "Q6_K", "IQ3_S"):
        files[type] = options.work / f"{f16.stem}-{type}.gguf"
        if not files[type].exists():
            tool = [str(options.llama / "llama-quantize"), "--imatrix", str(files["imatrix"])]
            line = [*tool, str(f16), str(files[type]), type, str(options.threads)]
            subprocess.run(line, check=True, capture_output=True)
    files["large"] = options.work / "large.gguf"
    if not (files["large"].exists() or options.quick or (options.only and "disk" not in options.only)):
        line = [sys.executable, "-m", "bench.synthetic", str(files["large"]), *_LARGE]
        subprocess.run(line, cwd=_ROOT, check=True, capture_output=True)
    return files


def comparisons(options: argparse.Namespace, files: dict[str, Path]) -> list[Comparison]:
    """In the order of the page. quick: a few types and rounds, to see that all of it runs."""
    threads, llama = ("--threads", str(options.threads)), options.llama
    rounds = ("--rounds", "1") if options.quick else ()
    few = ("--types", "Q8_0", "Q4_K") if options.quick else ()
    presets = (
        "--types",
        *(("Q8_0",) if options.quick else ("Q8_0", "Q6_K", "Q4_0", "Q4_K_M", "IQ4_XS", "IQ3_S")),
    )
    chunks = ("--chunks", "5" if options.quick else "10")
    disk = str(files["f16"] if options.quick else files["large"])
    quantize = ("--llama-quantize", str(llama / "llama-quantize"), *threads, *rounds)
    f16, text = str(files["f16"]), str(files["text"])
    evaluated = [
        str(files[name]) for name in (("Q8_0",) if options.quick else ("Q8_0", "Q4_K_M", "Q6_K", "IQ3_S"))
    ]
    again = ("--allow-requantize", *quantize)
    base = ("--base", options.base) if options.base else ()
    collected = ("--llama-imatrix", str(llama / "llama-imatrix"), *threads, *chunks, *rounds)
    short = ("--types", "Q8_0", "--chunks", "2") if options.quick else ()
    judge = ("--llama-perplexity", str(llama / "llama-perplexity"))
    return [
        Comparison("types", "quantize", ("--engines", "cpu", "--threads", "1", *few, *rounds)),
        Comparison("phases", "phases", (*few, *rounds)),
        Comparison("decoders", "decode", (*few, *rounds)),
        Comparison("files", "files", (f16, "--imatrix", str(files["imatrix"]), *presets, *quantize)),
        Comparison("from Q4_K_M", "files", (str(files["Q4_K_M"]), "--types", "Q8_0", "Q4_0", *again)),
        Comparison("from Q8_0", "files", (str(files["Q8_0"]), "--types", "Q4_K_M", *again)),
        Comparison("disk", "disk", (disk, "--work", str(options.work), *threads, *rounds)),
        Comparison("imatrix", "imatrix", (f16, text, *collected)),
        Comparison("evaluate", "evaluate", (f16, text, *evaluated, *judge, *threads, *chunks)),
        Comparison("commands", "commands", (f16, text, *threads, *rounds, *short, *base)),
    ]  # fmt: skip


def run(comparison: Comparison, work: Path) -> Section:
    """One comparison in a process of its own; what it printed, or its last line of complaint."""
    prefix = work / "results" / comparison.name.replace(" ", "-")
    line = [sys.executable, "-m", f"bench.{comparison.module}", *comparison.words, "--out", str(prefix)]
    done = subprocess.run(line, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return Section(
            comparison.name, False, f"Failed with {done.returncode}: {said[-1] if said else 'silently'}"
        )
    page = prefix.with_name(prefix.name + ".md").read_text(encoding="utf-8")
    return Section(comparison.name, True, _tables(page, line[1:]))


def _tables(page: str, line: list[str]) -> str:
    """The command and the tables of a page whose circumstances stand at the top of ours."""
    short = [os.path.basename(word) if os.sep in word else word for word in line]
    body = "\n".join(row for row in page.splitlines() if row.startswith(("|", "## ")) or not row.strip())
    return f"    python {shlex.join(short)}\n\n{body.strip()}".replace("\n## ", "\n### ")


def page(facts: machine.Machine, sections: Iterable[Section]) -> str:
    parts = [tables.heading("quantmill beside llama.cpp", facts)]
    for section in sections:
        parts.append(f"\n## {section.name}\n\n{section.page}\n")
    return "".join(parts)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.all", description=__doc__)
    parser.add_argument("--llama", type=Path, required=True, metavar="FOLDER", help="of llama.cpp's programs")
    parser.add_argument(
        "--work", type=Path, required=True, metavar="FOLDER", help="for models, texts and results"
    )
    parser.add_argument(
        "--base", metavar="COMMIT", help="measure whole commands of this commit in turns with ours"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="few types and one round: does all of it run?")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=_ROOT / "bench" / "results" / "README.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    options.work, options.llama = options.work.resolve(), options.llama.resolve()
    facts = machine.describe("bench.all", [os.path.basename(a) if os.sep in a else a for a in arguments])
    wanted = comparisons(options, made(options))
    names = [one.name for one in wanted]
    unknown = sorted(set(options.only or ()) - set(names))
    if unknown:
        print(f"--only {' '.join(unknown)}: not among {', '.join(names)}.", file=sys.stderr)
        return 2
    (options.work / "results").mkdir(exist_ok=True)
    sections: list[Section] = []
    for comparison in wanted:
        if options.only and comparison.name not in options.only:
            continue
        print(f"{comparison.name} …", file=sys.stderr, flush=True)
        sections.append(run(comparison, options.work))
        options.out.write_text(page(facts, sections), encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))
    return 0 if all(section.ok for section in sections) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
