"""Statistics against what llama-imatrix --show-statistics printed, digit by digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantmill.imatrix import plot, store
from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix
from quantmill.imatrix.statistics import layer_statistics, split_name, tensor_statistics
from quantmill.imatrix.suggest import suggest

DATA = Path(__file__).parent / "data" / "imatrix"


def printed(path: Path, n_columns: int) -> list[list[str]]:
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows if len(row) == n_columns]
    return [row for row in cells if row[0] != "Layer"]


@pytest.mark.parametrize("name", ["a.gguf", "a.dat"])
def test_digits_and_order_are_llama_imatrix_s(name: str) -> None:
    expected = DATA / f"{name.replace('.', '-')}-statistics.txt"
    rows = tensor_statistics(store.load(DATA / name))
    assert len(rows) == 24
    ours = [
        [
            r.layer, r.kind, f"{r.total:.2f}", f"{r.minimum:.4f}", f"{r.maximum:.4f}", f"{r.mean:.2f}",
            f"{r.std:.2f}", f"{100 * r.active:.2f}%", str(r.n), f"{r.entropy:.4f}", f"{r.entropy_norm:.2f}%",
            f"{100 * r.zd:.2f}%", f"{r.cossim:.4f}",
        ]
        for r in rows
    ]  # fmt: skip
    assert ours == printed(expected, 13)
    layers = [
        [str(r.layer), f"{r.total:.2f}", f"{100 * r.zd:.4f}%", f"{r.cossim:.4f}"]
        for r in layer_statistics(rows)
    ]
    assert layers == printed(expected, 4)


def test_names_are_split_as_llama_imatrix_does() -> None:
    assert split_name("blk.3.ffn_down.weight") == ("3", "ffn_down")
    assert split_name("output.weight") == ("-", "output")
    assert split_name("dec.blk.7.attn_q.weight") == ("7", "attn_q")
    assert split_name("strange") == ("-", "strange")


def made(sums: dict[str, np.ndarray], count: int) -> ImportanceMatrix:
    return ImportanceMatrix(
        {
            name: Entry((x * x).sum(0, keepdims=True).astype(np.float32), np.array([count]),
                        x.sum(0, keepdims=True).astype(np.float32))
            for name, x in sums.items()
        }
    )  # fmt: skip


def test_mean_based_statistics_against_the_activations_themselves() -> None:
    rng = np.random.default_rng(5)
    first = rng.standard_normal((400, 16)) + rng.standard_normal(16)
    second = 2 * first + 0.1 * rng.standard_normal((400, 16))
    rows = tensor_statistics(made({"blk.0.attn_q.weight": first, "blk.1.attn_q.weight": second}, 400))
    zero, one = sorted(rows, key=lambda row: row.layer)
    assert zero.means is not None
    assert zero.means.gain is None
    assert one.means is not None
    a, b = first.mean(0), second.mean(0)
    assert one.means.mean == pytest.approx(b.mean(), rel=1e-5)
    assert one.means.std == pytest.approx(b.std(), rel=1e-5)
    assert one.means.correlation == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-5)
    assert one.means.covariance == pytest.approx(np.cov(a, b, bias=True)[0, 1], rel=1e-4)
    assert one.means.l2_distance == pytest.approx(np.linalg.norm(b - a), rel=1e-5)
    assert one.means.gain == pytest.approx(((second**2).mean() / (first**2).mean()) ** 0.5, rel=1e-5)


def test_a_matrix_that_saw_nothing_has_no_statistics() -> None:
    empty = ImportanceMatrix({"w": Entry(np.zeros((1, 4), np.float32), np.array([0]))})
    with pytest.raises(ImatrixError, match="seen any text"):
        tensor_statistics(empty)


def test_suggestions_rank_layers_of_one_kind() -> None:
    rng = np.random.default_rng(6)
    x = np.abs(rng.standard_normal((8, 16))) + 0.5
    scale = [1, 2, 3, 4, 5, 6, 7, 8]
    x[5] = x[5][::-1]  # layer 5 looks at other columns than its neighbours
    entries = {
        f"blk.{i}.ffn_down.weight": Entry((scale[i] * x[i])[None].astype(np.float32), np.array([1]))
        for i in range(8)
    }
    (found,) = suggest(tensor_statistics(ImportanceMatrix(entries)))
    assert len(found.more) == len(found.fewer) == 2
    assert not set(found.more) & set(found.fewer)
    more, fewer = found.lines("Q6_K", "Q3_K")
    assert more == f"blk\\.({min(found.more)}|{max(found.more)})\\.ffn_down\\.weight=q6_k"
    assert fewer.endswith("ffn_down\\.weight=q3_k")


def test_heat_maps() -> None:
    rows = tensor_statistics(store.load(DATA / "a.gguf"))
    layers, kinds, values = plot.grid(rows, "total")
    assert (len(layers), len(kinds)) == values.shape == (3, 8)
    row = next(r for r in rows if r.name == "blk.1.attn_v.weight")
    assert values[1, kinds.index("attn_v")] == pytest.approx(np.log10(row.total))
    page = plot.plot(rows, ".html", "a <b>", "zd").decode("utf-8")
    assert "a &lt;b&gt;" in page
    assert page.count("<td") == 24
    assert "http" not in page
    pytest.importorskip("matplotlib")
    assert plot.plot(rows, ".png", "a").startswith(b"\x89PNG")
    with pytest.raises(ImatrixError, match=r"\.html"):
        plot.require_plot(Path("map.gif"), "total")
