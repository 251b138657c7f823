"""What pruning costs: `python -m bench.pruning --llama FOLDER --work FOLDER [--model moe] [--out PREFIX]`.

SmolLM2 without 1, 2 and 4 of its layers: fixed ones, as the pruned models that are published have; those of the least
block influence; those that are measured to lose least; the same, healed. The small mixture of experts without a quarter
of its experts: those that are routed to least; by REAP; by REAP, refitted; by REAP, merged; by the best of all
criteria, refitted. The files are in the types of the original (COPY), made by the commands that users have; they are
judged by stock llama-perplexity against the original, SmolLM2 on a text of another genre. `--llama`: the folder of
llama.cpp's binaries; materials stay in `--work`; rows already in PREFIX.json are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import machine, process, tables
from bench.quality import judged
from bench.quality_models import EXAMPLE, MODELS, Bench, add_options
from quantmill.gguf_io import open_source

FIXED = {1: "3", 2: "3,24", 4: "3,10,17,24"}
QUARTER = "0.25"


@dataclass(frozen=True)
class Row:
    """A pruned file. what: how many leave; said: KL divergence on the held-back part of the calibration text."""

    model: str
    what: str
    way: str
    gone: str
    bytes: int
    said: float | None
    kld: float
    ppl: float
    same_top: float
    cpu_min: float


_COLUMNS = (
    tables.Column("model", "model"),
    tables.Column("without", "what"),
    tables.Column("way", "way"),
    tables.Column("which", "gone"),
    tables.Column("bytes", "bytes", "{:d}"),
    tables.Column("KLD said", "said", "{:.4f}"),
    tables.Column("KLD", "kld", "{:.4f}"),
    tables.Column("PPL", "ppl", "{:.3f}"),
    tables.Column("same top, %", "same_top", "{:.2f}"),
    tables.Column("CPU min", "cpu_min", "{:.1f}"),
)

Options = Callable[[Bench, dict[str, object]], list[str]]  # of `quantize … COPY`, given what a scan has found


def layer_ways(n: int) -> dict[str, Options]:
    measured = ["--prune-layers", f"auto:{n}", "--max-damage", "none"]

    def by_influence(bench: Bench, scanned: dict[str, object]) -> list[str]:
        sets = [one for one in scanned["sets"] if len(one["layers"]) == 1]  # type: ignore[attr-defined]
        chosen = sorted(sets, key=lambda one: one["influence"])[:n]
        return ["--prune-layers", ",".join(str(one["layers"][0]) for one in chosen)]

    return {
        "fixed": lambda bench, scanned: ["--prune-layers", FIXED[n]],
        "block influence": by_influence,
        "measured": lambda bench, scanned: [*measured, "--no-heal", *_text(bench)],
        "measured, healed": lambda bench, scanned: [*measured, *_text(bench)],
    }


def expert_ways() -> dict[str, Options]:
    def by(criterion: str, *more: str) -> Options:
        return lambda bench, scanned: [
            *("--prune-experts", QUARTER, "--expert-criterion", criterion, "--max-damage", "none"),
            *more,
            *_text(bench),
        ]

    return {
        "count": by("count", "--no-heal"),
        "REAP": by("REAP", "--no-heal"),
        "REAP, refitted": by("REAP"),
        "REAP, merged": by("REAP", "--no-heal", "--merge"),
        "best criterion": by("best", "--no-heal"),
        "best criterion, refitted": by("best"),
    }


def _text(bench: Bench) -> list[str]:
    return ["--calibration", str(bench.calibration), "--threads", str(bench.threads)]


def measure(bench: Bench, done: set[tuple[str, str]], layers: list[int]) -> Iterator[Row]:
    wanted = {f"{n} layers" if n > 1 else "1 layer": layer_ways(n) for n in layers}
    if bench.base == EXAMPLE:
        wanted = {"25 % of the experts": expert_ways()}
    scanned: dict[str, object] = {}
    for what, ways in wanted.items():
        for way, options in ways.items():
            if (what, way) in done:
                continue
            if way == "block influence" and not scanned:
                scanned = _scan(bench)
            output = bench.work / f"{bench.f16.stem}-pruned.gguf"
            command = [sys.executable, "-m", "quantmill", "quantize", *options(bench, scanned)]
            used = process.run([*command, str(bench.f16), str(output), "COPY"])
            found = judged(bench, output, bench.other or bench.evaluation)
            size, cost = output.stat().st_size, used.cpu_s / 60
            gone, said = _said(command, output)
            yield Row(bench.name, what, way, gone, size, said, found.kld, found.ppl, found.same_top, cost)
            output.unlink()


def _said(command: list[str], output: Path) -> tuple[str, float | None]:
    """Which went, and what the file itself says that it costs."""
    metadata = open_source(output).metadata
    kld, layers = (metadata.value(f"quantmill.pruned.{key}") for key in ("kld", "layers"))
    if kld is None:
        return command[command.index("--prune-layers") + 1], None
    return ",".join(map(str, layers or ())) or str(metadata.value("quantmill.pruned.chosen_by")), kld


def _scan(bench: Bench) -> dict[str, object]:
    command = [sys.executable, "-m", "quantmill", "prune", "scan", str(bench.f16), *_text(bench), "--json"]
    done = subprocess.run([*command, "--most", "1"], check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.pruning", description=__doc__)
    add_options(parser)
    parser.add_argument("--model", choices=("smollm2", "moe"), default="smollm2")
    parser.add_argument("--layers", type=int, nargs="+", choices=tuple(FIXED), default=list(FIXED))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    facts = machine.describe("bench.pruning", [Path(one).name if os.sep in one else one for one in arguments])
    bench = MODELS[options.model][0](options)
    results: list[Row] = []
    if options.out and options.out.with_suffix(".json").exists():
        found = json.loads(options.out.with_suffix(".json").read_text(encoding="utf-8"))
        results = [Row(**row) for row in found["rows"]]
    done = {(row.what, row.way) for row in results if row.model == bench.name}
    for row in measure(bench, done, options.layers):
        print(tables.markdown(_COLUMNS, [row]), flush=True)
        results.append(row)
        tables.keep(options.out, "What pruning costs", facts, _COLUMNS, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
