"""What `quantmill imatrix` prints: statistics, suggestions, differences, coverage; as text, JSON or CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from quantmill.commands.console import show, table_text
from quantmill.errors import counted
from quantmill.imatrix.compare import Difference
from quantmill.imatrix.coverage import FEW, Gap
from quantmill.imatrix.statistics import LayerStatistics, TensorStatistics, layer_statistics
from quantmill.imatrix.suggest import suggest
from quantmill.jobs.statistics import statistics_json
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from pathlib import Path

    from quantmill.imatrix.matrix import ImportanceMatrix
    from quantmill.jobs import collect as collecting
    from quantmill.jobs import merge as merging

TENSOR_HEAD = (
    "Layer", "Tensor", "Σ(Act²)", "Min", "Max", "μ", "σ", "% Active", "N", "Entropy", "E (norm)", "ZD", "CosSim",
)  # fmt: skip
MEAN_HEAD = ("Layer", "Tensor", "Mean", "StdDev", "Skew", "Kurtosis", "Gain", "L2 dist", "PCC", "Cov")
LAYER_HEAD = ("Layer", "μΣ(Act²)", "μZD", "μCosSim")


def tensor_cells(row: TensorStatistics) -> list[str]:
    """The digits that llama-imatrix prints."""
    return [
        row.layer, row.kind, f"{row.total:.2f}", f"{row.minimum:.4f}", f"{row.maximum:.4f}", f"{row.mean:.2f}",
        f"{row.std:.2f}", f"{100 * row.active:.2f}%", str(row.n), f"{row.entropy:.4f}", f"{row.entropy_norm:.2f}%",
        f"{100 * row.zd:.2f}%", f"{row.cossim:.4f}",
    ]  # fmt: skip


def layer_cells(row: LayerStatistics) -> list[str]:
    return [str(row.layer), f"{row.total:.2f}", f"{100 * row.zd:.4f}%", f"{row.cossim:.4f}"]


def _mean_cells(row: TensorStatistics) -> list[str]:
    means = row.means
    if means is None:
        return [row.layer, row.kind]
    numbers = (
        means.mean, means.std, means.skew, means.kurtosis,
        means.gain, means.l2_distance, means.correlation, means.covariance,
    )  # fmt: skip
    return [row.layer, row.kind, *("-" if number is None else f"{number:.4f}" for number in numbers)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """A head, a rule and rows; numbers to the right, `left` lists the columns of words."""
    padded = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    lines = table_text([head, *padded], right=[i for i in range(len(head)) if i not in left]).split("\n")
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def show_statistics(rows: Sequence[TensorStatistics], is_json: bool) -> None:
    if is_json:
        show(statistics_json(rows))
        return
    layers = layer_statistics(rows)
    show(_table(TENSOR_HEAD, [tensor_cells(row) for row in rows], left=(1,)))
    if any(row.means is not None for row in rows):
        show("\nFrom the means of the activations (Σx):\n")
        show(_table(MEAN_HEAD, [_mean_cells(row) for row in rows], left=(1,)))
    if layers:
        show(f"\nWeighted average statistics per layer ({counted(len(layers), 'layer')}):\n")
        show(_table(LAYER_HEAD, [layer_cells(row) for row in layers]))


def show_collected(job: collecting.Job, result: collecting.Result, is_json: bool) -> None:
    """What was collected, and which tensors saw too little text."""
    matrix, perplexity, speed = result.matrix, result.perplexity, result.tokens_per_second
    if is_json:
        facts = {
            "output": str(job.output),
            "tensors": len(matrix.entries),
            "chunks": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            "tokens_per_second": speed,
            "arithmetic": result.arithmetic,
            "perplexity": perplexity and {"value": perplexity[0], "error": perplexity[1]},
            "gaps": [vars(gap) for gap in result.gaps],
        }
        show(json_text(facts))
        return
    if perplexity is not None:
        show(f"Final estimate: PPL = {perplexity[0]:.4f} +/- {perplexity[1]:.5f}")
    rate = f", {speed:.0f} tokens/s" if speed else ""
    show(f"{_written(job.output, matrix)}{rate}, {result.arithmetic}")
    if result.gaps:
        show(f"\nToo little text for {counted(len(result.gaps), 'tensor')} (below {FEW} tokens a matrix):\n")
        show(coverage_table(result.gaps))
        show("\n" + _ways_out(job, result.gaps))


def _written(output: Path, matrix: ImportanceMatrix) -> str:
    chunks = counted(matrix.chunk_count, "chunk")
    return f"{output}: {counted(len(matrix.entries), 'tensor')}, {chunks} of {matrix.chunk_size}"


def _ways_out(job: collecting.Job, found: Sequence[Gap]) -> str:
    ways = ["a longer text"]
    if any(gap.n_mat > 1 for gap in found):
        ways += [] if job.route_all else ["--route-all-experts"]
        ways += [] if job.shrink else [f"--shrink-experts {FEW}"]
    return f"What helps: {', '.join(ways)}."


def show_merged(job: merging.Job, result: merging.Result, is_json: bool) -> None:
    matrix = result.matrix
    if is_json:
        facts = {
            "output": str(job.output),
            "tensors": len(matrix.entries),
            "chunks": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            "lost": list(result.lost),
        }
        show(json_text(facts))
        return
    lost = f"; the .dat format does not keep {', '.join(result.lost)}" if result.lost else ""
    show(f"{_written(job.output, matrix)}{lost}")


def show_suggestions(rows: Sequence[TensorStatistics], share: float, more: str, fewer: str) -> None:
    """Lines as a --tensor-type-file holds them; what is explained stands in comments."""
    found = suggest(rows, share)
    show(
        "# A heuristic: Σ(Act²) and 1 − CosSim, ranked within each kind of tensor. Nothing was measured on the"
    )
    show("# model's output; compare the result with `quantmill evaluate` before keeping it.")
    for one in found:
        show(f"# {one.kind}: most important layers {_numbers(one.more)}; least {_numbers(one.fewer)}")
        for line in one.lines(more, fewer):
            show(line)
    if not found:
        show("# Fewer than four layers: nothing to rank.")


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(str(layer) for layer in layers)


def show_difference(found: Difference, n_rows: int, is_json: bool) -> None:
    if is_json:
        show(json_text(asdict(found)))
        return
    cells = [
        [row.name, f"{row.relative:.3e}", f"{row.total:+.3e}", f"{row.cosine:.8f}", f"{row.counts:.3e}"]
        for row in found.tensors[:n_rows]
    ]
    show(_table(("Tensor", "‖b−a‖/‖a‖", "Σb/Σa−1", "Cosine", "Counts"), cells, left=(0,)))
    if len(found.tensors) > n_rows:
        show(f"… and {len(found.tensors) - n_rows} tensors that differ less")
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            show(f"only in the {which}: {', '.join(names)}")


def coverage_table(found: Sequence[Gap], n_rows: int = 30) -> str:
    cells = [
        [
            gap.name,
            str(gap.n_mat),
            str(len(gap.unseen)),
            str(len(gap.few)),
            str(gap.smallest),
            gap.consequence,
        ]
        for gap in found[:n_rows]
    ]
    head = ("Tensor", "Matrices", "Unseen", "Few", "Fewest tokens", "When quantizing")
    table = _table(head, cells, left=(0, 5))
    return table if len(found) <= n_rows else f"{table}\n… and {len(found) - n_rows} more"
