"""What a compensation costs, by formula, from the shapes of a model: operations, steps in a row, memory.

layer = layer_of({"attn_q.weight": (4096, 4096), …}, used=8)
work = work_of(layer, Setting(n_tokens=24576, n_ctx=512, hidden=4096), EFFORTS["normal"])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantmill.calibrate.columns import COLUMNS
from quantmill.calibrate.solver import ROWS, ROWS_ON_DEVICE, WEIGHTS, WEIGHTS_ON_DEVICE, Effort
from quantmill.models.summing import SUM_BYTES
from quantmill.models.walk import BATCH_TOKENS, BATCH_TOKENS_ON_DEVICE

# Tensors that are given what another one is given.
_SAME_INPUT = {
    "attn_k": "attn_q",
    "attn_v": "attn_q",
    "ffn_up": "ffn_gate",
    "ffn_up_exps": "ffn_gate_exps",
    "ffn_up_shexp": "ffn_gate_shexp",
}
# A block of feedback, a block of descent: a kernel and matmuls. A group of a refit of Q4_K: torch operations; types
# without minimums take 33 to 50.
_LAUNCHES = (2, 3, 163)
_SWEPT = (6, 8)  # how often a weight's numbers are read or written by the kernel of feedback, of descent
_TOGETHER = 8192  # rows whose columns are gone through at a time: 132 x 4 programs of 16 rows
_GROUP = 32  # weights that share a scale, of most types
_FRAGMENTED = 1.15  # memory of hidden states on a CPU over their bytes, as measured with SmolLM2
_COPIES = 12  # arrays of a piece's size that the solver holds


@dataclass(frozen=True)
class Entrance:
    """One place of a layer: rows of all matrices that take it together, columns, matrices; experts: a stack's."""

    kind: str
    n_rows: int
    n_cols: int
    n_mat: int
    used: int

    @property
    def weights(self) -> int:
        return self.n_rows * self.n_cols * self.n_mat

    def tokens(self, n_tokens: int) -> int:
        """Rows that enter, of all matrices together."""
        return n_tokens * self.used

    @property
    def is_down(self) -> bool:
        return "down" in self.kind


@dataclass(frozen=True)
class Setting:
    """Tokens of the text and of a chunk, width of the hidden states; kind of device, threads that share the work.

    states: numbers that a token is between two layers, 0: as wide as they are; beside: bytes a token of what layers are
    given beside them, in both streams together.
    """

    n_tokens: int
    n_ctx: int
    hidden: int
    device: str = "cpu"
    threads: int = 1
    widest: int = 16384
    states: int = 0
    beside: int = 0


@dataclass(frozen=True)
class Work:
    """Floating point operations of passes, of second moments, of codes (float32) and of factors (float64).

    launches: what is started one after another, block by block; chain: columns that follow each other inside kernels;
    swept: bytes that these read and write.
    """

    passes: float = 0
    sums: float = 0
    codes: float = 0
    factors: float = 0
    launches: float = 0
    chain: float = 0
    swept: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.fields(), other.fields(), strict=True)))

    def fields(self) -> tuple[float, ...]:
        return (self.passes, self.sums, self.codes, self.factors, self.launches, self.chain, self.swept)

    @property
    def operations(self) -> float:
        return self.passes + self.sums + self.codes + self.factors


@dataclass(frozen=True)
class Machine:
    """What a machine sustains: operations a second in float32 and float64, bytes a second; seconds a launch, and a
    column within a kernel."""

    name: str
    single: float
    double: float
    bandwidth: float
    launch: float
    column: float

    def matmuls_s(self, work: Work) -> float:
        return (work.passes + work.sums + work.codes) / self.single + work.factors / self.double

    def seconds(self, work: Work) -> float:
        inside = max(work.chain * self.column, work.swept / self.bandwidth)
        return self.matmuls_s(work) + work.launches * self.launch + inside


# About two thirds of what the data sheet gives for float32 without tensor cores; Cholesky factors reach far less.
# A launch is measured (7 to 10 µs of the host); a column within a kernel is not: two trips to memory.
H100 = Machine("H100", 40e12, 8e12, 2.4e12, 8e-6, 1e-6)


def layer_of(shapes: Mapping[str, Sequence[int]], used: int) -> list[Entrance]:
    """Kind of tensor → shape in ggml order (columns first), of one layer; used: experts a token is routed to."""
    found: dict[str, Entrance] = {}
    for name, shape in shapes.items():
        kind = name.removesuffix(".weight")
        n_cols, n_rows, n_mat = (*shape, 1)[:3]
        key = _SAME_INPUT.get(kind, kind)
        before = found[key].n_rows if key in found else 0
        found[key] = Entrance(key, before + n_rows, n_cols, n_mat, used if n_mat > 1 else 1)
    return list(found.values())


def work_of(layer: Sequence[Entrance], setting: Setting, effort: Effort, two_streams: bool = True) -> Work:
    """Of one layer. Each stream passes it once: what lies before a place is not run again to come there."""
    total = Work()
    streams = 2 if two_streams else 1
    for one in layer:
        n, rows, tokens = min(one.n_cols, setting.widest), one.n_rows, one.tokens(setting.n_tokens)
        parts = one.n_cols / n
        product = 2.0 * one.weights * n
        descents = effort.sweeps * (1 + effort.rounds)
        made = 1 + 1 + descents + 2 * effort.rounds + 4  # feedback, slopes, sweeps, refits, errors
        columns = one.n_cols * _turns(one, n, setting.device)
        per_block = _LAUNCHES[0] + _LAUNCHES[1] * descents
        total += Work(
            passes=2.0 * streams * setting.n_tokens * one.used * rows * one.n_cols,
            sums=2.0 * streams * tokens * n * n * parts,
            codes=product * (made + (4 if two_streams else 0)),
            factors=one.n_mat * parts * n**3 * (2 + 1 / 3) + (product if two_streams else 0),
            launches=columns / COLUMNS * per_block + columns / _GROUP * _LAUNCHES[2] * effort.rounds,
            chain=one.n_cols * -(-rows * one.n_mat // _TOGETHER) * (1 + descents),
            swept=one.weights * 4.0 * (_SWEPT[0] + _SWEPT[1] * descents),
        )
    attention = 2.0 * streams * setting.n_tokens * setting.n_ctx * setting.hidden
    return total + Work(passes=attention)


def _turns(one: Entrance, n_cols: int, device: str) -> int:
    """How many times the solver goes through the columns of a place, matrices and rows being cut into pieces."""
    rows = min(one.n_rows, ROWS.get(device, ROWS_ON_DEVICE))
    together = max(1, WEIGHTS.get(device, WEIGHTS_ON_DEVICE) // (rows * n_cols))
    return -(-one.n_rows // rows) * -(-one.n_mat // together)


def memory_of(layer: Sequence[Entrance], setting: Setting, two_streams: bool = True) -> int:
    """Bytes that a layer holds at most, beside the model: hidden states, sums, the solver's arrays, decoded weights."""
    return kept_of(layer, setting, two_streams) + used_of(layer, setting)


def kept_of(layer: Sequence[Entrance], setting: Setting, two_streams: bool = True) -> int:
    """Those of what is kept of all tokens: hidden states, what enters matrices."""
    states = 4 * setting.n_tokens * (setting.states or setting.hidden) * (6 if two_streams else 3)
    states += setting.n_tokens * setting.beside
    dense = [one for one in layer if one.n_mat == 1]
    entering = 4 * setting.n_tokens * sum(one.n_cols for one in layer if one.n_mat == 1 or not one.is_down)
    if two_streams and dense:
        entering += 4 * setting.n_tokens * max(one.n_cols for one in dense)
    return int((states + entering) * (_FRAGMENTED if setting.device == "cpu" else 1))


def used_of(layer: Sequence[Entrance], setting: Setting) -> int:
    """Those of the rest: a batch that passes, sums, the solver's arrays, decoded weights."""
    batch = min(BATCH_TOKENS.get(setting.device, BATCH_TOKENS_ON_DEVICE), setting.n_tokens)
    widest = max((one.n_rows * one.used for one in layer), default=0)
    passing = 4 * batch * (10 * setting.hidden + 2 * widest) * setting.threads
    decoded = 8 * sum(one.weights for one in layer)
    return passing + decoded + max(_solving(one, setting) for one in layer)


def _solving(one: Entrance, setting: Setting) -> int:
    n = min(one.n_cols, setting.widest)
    square = one.n_mat * n * n
    groups = 1 if setting.device != "cpu" else max(1, min(8, SUM_BYTES // (16 * square)))
    sums = 16 * square * min(groups, setting.threads + 2)  # joined in order, as they are finished
    weights = one.n_mat * one.n_rows * n
    target = 12 * square + 16 * square + 16 * weights + 20 * weights
    rows = min(one.n_rows, ROWS.get(setting.device, ROWS_ON_DEVICE))
    piece = min(weights, max(rows * n, WEIGHTS.get(setting.device, WEIGHTS_ON_DEVICE)))
    together = max(1, piece // (rows * n))
    codes = 12 * square + 24 * n * n * min(together, one.n_mat)
    codes += 4 * _COPIES * piece * setting.threads + 12 * weights
    return max(sums, 16 * square + max(target, codes))


def text_of(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


def total(works: Sequence[Work]) -> Work:
    return Work(*(math.fsum(values) for values in zip(*(work.fields() for work in works), strict=True)))
