"""The picture of a scan: damage against bytes saved, layer sets by how many layers they are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from quantmill.gguf_io.kinds import containing
from quantmill.gguf_io.outputs import Output
from quantmill.gguf_io.partial import write_whole
from quantmill.imatrix.plot import as_file
from quantmill.jobs.errors import JobError
from quantmill.jobs.prune_request import Scan

SUFFIXES = (".png", ".svg")
MARK = "quantmill prune"
PLOT = containing("a plot of quantmill", MARK.encode())


def require_plot(path: Path) -> None:
    """Before the work. Raises JobError for a kind of picture that there is not, or when matplotlib is missing."""
    if path.suffix not in SUFFIXES:
        raise JobError(f"{path}: a plot is a .png or .svg file")
    if find_spec("matplotlib") is None:
        raise JobError("a picture needs matplotlib: pip install 'quantmill[report]'")


def picture(found: Scan, kind: str) -> bytes:
    """kind: png or svg, where require_plot has been asked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    above, below = figure.subplots(2)
    singles = [one for one in found.sets if len(one.layers) == 1]
    above.bar([one.layers[0] for one in singles], [one.influence for one in singles])
    above.set_xlabel("layer")
    above.set_ylabel("block influence, 1 − cosine")
    for size in sorted({len(one.layers) for one in found.sets}):
        sets = [one for one in found.sets if len(one.layers) == size and one.kld is not None]
        below.scatter(
            [100 * one.n_bytes / found.n_bytes for one in sets],
            [one.kld for one in sets],
            label=f"{size} left out",
        )
    for one in found.best:
        if one.kld is not None:
            below.annotate(",".join(map(str, one.layers)), (100 * one.n_bytes / found.n_bytes, one.kld))
    below.set_yscale("log")
    below.set_xlabel("bytes saved, % of the model")
    below.set_ylabel("mean KL divergence, nats a token")
    below.legend()
    return as_file(figure, kind, MARK)


def write(output: Output, content: bytes) -> None:
    write_whole(output.final, content)
