"""Codes that move to a neighbour while scales are trained.

Where a quantizer has rounded, many weights lie almost as near to the next code as to their own. Of each weight is kept
how far it wants to be from where its code is, in parts of the step to the next one: it begins where the original's
weight lies and follows the gradient. Beyond half a step the next code is the nearer one, and the weight goes there.
Gradients are taken relative to their size in the row and in the column, whose mean squares are followed as Adam
follows those of single numbers (Shazeer and Stern, Adafactor, 2018): two bytes a weight are all that is kept.
"""

from __future__ import annotations

import torch

from quantmill.calibrate.adam import BETAS
from quantmill.calibrate.steps import steps_of
from quantmill.models.workers import tiles
from quantmill.qkernels import get_type
from quantmill.qkernels.pulls import HALF, LIMIT, STEP, TINY, Pull, wished

KEPT = ("blocks", "wishes", "row_squares", "column_squares", "counts")  # what later steps depend on
_AT_FIRST = HALF - 16  # no code moves before it was trained
_FARTHEST = 3.0  # times its usual size: what one gradient may count
_ROWS = 256  # looked at together in the beginning
_WEIGHTS = 1 << 18  # of blocks in which codes move together: what stays in a processor's cache
_WEIGHTS_ON_DEVICE = 1 << 23  # a GPU takes as long for a few as for many: 700 MB


def can_move(type: str) -> bool:
    """Whether codes of this type can go to a neighbour."""
    return steps_of(type) is not None


class MovingCodes:
    """The wishes of one tensor's codes.

    blocks: [n_matrices, n_rows, row_bytes] u8, in which codes are changed. wishes: [n_matrices, n_rows, n_cols] i16, in
    parts of STEP, upwards where the weight wants to be greater. row_squares [n_matrices, n_rows], column_squares
    [n_matrices, n_cols] f32: means of squared gradients. counts [n_matrices]: gradients each matrix has had.
    """

    def __init__(self, type: str, blocks: torch.Tensor) -> None:
        steps = steps_of(type)
        assert steps is not None
        row = get_type(type)
        n_matrices, n_rows, row_bytes = blocks.shape
        n_cols = row_bytes // row.bytes * row.block
        self.blocks, self._steps, self._row = blocks, steps, row
        device = blocks.device
        self.wishes = torch.zeros(n_matrices, n_rows, n_cols, dtype=torch.int16, device=device)
        self.row_squares = torch.zeros(n_matrices, n_rows, device=device)
        self.column_squares = torch.zeros(n_matrices, n_cols, device=device)
        self.counts = torch.zeros(n_matrices, dtype=torch.int64)
        self._sizes = torch.zeros(n_matrices, n_rows, device=device)  # of a row's steps, their mean
        # Of a step, by matrix, whose moves do not look at others, and by first row: sums of squares, and which blocks
        # have a wish beyond half a step; and by matrix what is made of the sums of the steps before.
        self._columns: list[dict[int, torch.Tensor]] = [{} for _ in range(n_matrices)]
        self._beyond: list[dict[int, torch.Tensor]] = [{} for _ in range(n_matrices)]
        self._columns_known: list[torch.Tensor | None] = [None] * n_matrices
        self._pulled: set[int] = set()

    def begin(self, matrix: int, original: torch.Tensor) -> None:
        """Let the weights of a matrix want to be where `original` [n_rows, n_cols] f32 has them."""
        for rows in tiles(len(original), _ROWS):
            values, step = self._steps.sizes(self.blocks[matrix][rows])
            self._sizes[matrix][rows] = step.mean(1)
            missing = (original[rows] - values) / step
            wished = torch.where(step > 0, missing * STEP, 0.0).clamp_(-_AT_FIRST, _AT_FIRST)
            self.wishes[matrix][rows] = wished.round_().to(torch.int16)

    def pull(
        self, matrix: int, rows: slice, gradient: torch.Tensor, squares: torch.Tensor, rate: float, free: bool
    ) -> None:
        """Note dL/dW [n_rows, n_cols] of these rows. rate: how far the usual gradient moves a wish, in steps.

        squares: Σ (dL/dW)² of each row, [n_rows] f32. free: codes may move at the next `move`.
        """
        count = int(self.counts[matrix]) + 1
        pull = Pull(1 - BETAS[1], 1 - BETAS[1] ** count, rate * STEP, _FARTHEST * rate * STEP)
        wishes, seen = self.wishes[matrix][rows], self.row_squares[matrix][rows]
        along = self._along(matrix)
        columns, beyond = wished(wishes, gradient, squares, seen, along, pull, self._row.block)
        self._columns[matrix][rows.start] = columns
        if free and count % self._steps.every == 0:
            self._beyond[matrix][rows.start] = beyond

    def _along(self, matrix: int) -> torch.Tensor:
        """How much less than others each column is moved, by what was seen in steps before: [n_cols] f32."""
        known = self._columns_known[matrix]
        if known is None:
            columns = self.column_squares[matrix]
            known = torch.ones_like(columns)
            if int(self.counts[matrix]) > 0:
                known = (columns.mean().clamp_min(TINY) / columns.clamp_min(TINY)).sqrt_()
            self._columns_known[matrix] = known
        return known

    def matrices(self) -> list[int]:
        """Those that gradients came for since the last `move`."""
        return sorted(self._pulled)

    def heard(self, matrix: int) -> None:
        """What `pull` noted of a matrix was all of one gradient."""
        sums = sum(_taken(self._columns[matrix]))
        assert isinstance(sums, torch.Tensor)
        self.column_squares[matrix].lerp_(sums / self.wishes.shape[1], 1 - BETAS[1])
        self.counts[matrix] += 1
        self._columns_known[matrix] = None
        self._pulled.add(matrix)

    def promised(self, matrix: int) -> float:
        """What a usual step of all wishes of a matrix by a whole step would take off the loss, were it linear."""
        usual = (self.row_squares[matrix] / (1 - BETAS[1] ** int(self.counts[matrix]))).sqrt_()
        return self.wishes.shape[2] * float((usual * self._sizes[matrix]).sum(dtype=torch.float64))

    def move(self, matrix: int) -> None:
        """Let every code of a matrix that wants to move go one step, where its type has one."""
        self._pulled.discard(matrix)
        beyond = _taken(self._beyond[matrix])
        if not beyond:
            return
        places = torch.nonzero(torch.cat(beyond).flatten()).squeeze(1)
        most = _WEIGHTS if self.blocks.device.type == "cpu" else _WEIGHTS_ON_DEVICE
        for which in places.split(most // self._row.block):
            if len(which):  # split gives an empty part of nothing
                self._move(matrix, which)

    def _move(self, matrix: int, which: torch.Tensor) -> None:
        """Of blocks with these numbers."""
        blocks = self.blocks[matrix].view(-1, self._row.bytes)
        all_wishes = self.wishes[matrix].view(-1, self._row.block)
        wishes = all_wishes[which].float() / STEP
        blocks[which], went = self._steps.taken(blocks[which], wishes)
        if self._steps.every == 1:  # the type has no further level
            wishes = torch.where(went == 0, wishes.clamp(-0.5, 0.5), wishes)
        left = ((wishes - went) * STEP).round_().clamp_(-LIMIT, LIMIT)
        all_wishes[which] = left.to(torch.int16)


def _taken(kept: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """What was kept, in the order of rows; nothing is left."""
    found = [kept[row] for row in sorted(kept)]
    kept.clear()
    return found
