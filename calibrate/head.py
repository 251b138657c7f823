"""From final hidden states to the divergence of two models, over the whole vocabulary, and its gradient.

The logits of a chunk never exist at once: a slab of positions is turned into both models' probabilities, and what
is kept of it is a few numbers a position, and the gradient of the hidden state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from quantmill.calibrate.errors import CalibrationError
from quantmill.calibrate.modules import ScaledLinear
from quantmill.calibrate.scales import Scratch
from quantmill.calibrate.tensors import ScaledTensor
from quantmill.models.workers import Workers

SLAB = 3 << 20  # logits of one model at a time, in the head's dtype
PART = 1 << 19  # of them at a time in float32
COMPARED = 1 << 19  # the same where nothing but comparisons is made of them

Compare = Callable[[torch.Tensor, torch.Tensor, slice], Any]


@dataclass(frozen=True)
class Head:
    """logits = cap · tanh(scale (W h + bias) / cap), the parts that a model has."""

    n_vocab: int
    bias: torch.Tensor | None
    scale: float
    cap: float | None
    dtype: torch.dtype

    def logits(self, hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """hidden [n, n_hidden] → [n, n_vocab] f32."""
        return self.finished(hidden.to(self.dtype) @ matrix.T)

    def finished(self, products: torch.Tensor) -> torch.Tensor:
        """W h [n, n_vocab] in any dtype → logits f32."""
        out = products.float()
        if self.bias is not None:
            out += self.bias.float()
        if self.scale != 1.0:
            out *= self.scale
        if self.cap is not None:
            out = self.cap * torch.tanh(out / self.cap)
        return out

    def back(self, gradient: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of logits [n, n_vocab] f32, as that of W h, in the head's dtype."""
        if self.cap is not None:
            gradient = gradient * (1 - (logits / self.cap).square())
        return (gradient * self.scale if self.scale != 1.0 else gradient).to(self.dtype)


def head_of(model: Any, dtype: torch.dtype) -> tuple[Head, ScaledTensor]:
    """The head of transformers' model after make_trainable, and its W. Its settings say what is done to logits."""
    module = model.get_output_embeddings()
    assert isinstance(module, ScaledLinear)
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    scale = (1.0 / divisor if divisor else 1.0) * (factor or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(module.out_features, module.bias, scale, cap, dtype), module.weight


def check_head(model: Any, head: Head, matrix: torch.Tensor, ids: torch.Tensor) -> None:
    """Raises CalibrationError unless `head` computes what the model's own class does, for ids [1, n_tokens]."""
    with torch.no_grad():
        hidden = final_hidden(model, ids)
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            arguments["logits_to_keep"] = 1
        wanted = model(**arguments).logits[0, -1].float()
        found = head.logits(hidden[0, -1:], matrix)[0]
    error = float((wanted - found).abs().max())
    if not error <= 0.02 * float(wanted.abs().max()) + 1e-3:
        raise CalibrationError(
            f"{type(model).__name__} does more to its logits than quantmill knows (off by {error:.3g}); "
            "this architecture cannot be polished"
        )


def final_hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """ids [n_seq, n_tokens] → the hidden states that enter the head, [n_seq, n_tokens, n_hidden]."""
    return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state


class Divergence:
    """KL divergence of a student from a teacher, both given by their hidden states and heads.

    teacher_matrix: [n_vocab, n_hidden] in the head's dtype; the student's is decoded anew when its scales have moved.
    """

    def __init__(
        self,
        teacher: Head,
        teacher_matrix: torch.Tensor,
        student: Head,
        weight: ScaledTensor,
        workers: Workers,
    ) -> None:
        self.teacher, self.student, self.weight, self.workers = teacher, student, weight, workers
        self._teacher_matrix = teacher_matrix
        self._student_matrix: torch.Tensor | None = None
        self._stale = False
        self._kept = Scratch()

    def _slabs(self, n: int, most: int) -> list[slice]:
        step = max(1, most // self.student.n_vocab)
        return [slice(first, min(first + step, n)) for first in range(0, n, step)]

    def _matrix(self) -> torch.Tensor:
        if self._student_matrix is None or self._stale:
            self._student_matrix = self.weight.matrix(0, self._student_matrix)
            self._stale = False
        return self._student_matrix

    def prepare(self) -> None:
        """Decode the student's matrix, if it is not there: before several threads ask for it."""
        self._matrix()

    def moved(self) -> None:
        """The student's scales are others now."""
        if self.weight.moves:
            self._stale = True

    def loss_and_gradient(self, wanted: torch.Tensor, hidden: torch.Tensor) -> tuple[float, torch.Tensor]:
        """wanted (the teacher's), hidden [n, n_hidden] → mean KL in nats over all positions, and dL/dhidden.

        What the loss says of the head's own scales is added to them.
        """
        n, matrix = len(hidden), self._matrix()
        narrow, wanted = hidden.to(self.student.dtype), wanted.to(self.teacher.dtype)
        back = torch.empty(n, hidden.shape[1], dtype=torch.float32, device=hidden.device)
        moves = self.weight.moves
        every = self._kept.of("every", narrow, n, self.student.n_vocab) if moves else None

        def one(rows: slice) -> float:
            found = (
                narrow[rows] @ matrix.T
                if every is None
                else torch.mm(narrow[rows], matrix.T, out=every[rows])
            )
            room = self._kept.of("wanted", wanted, len(found), self.teacher.n_vocab)
            kl = self._into_gradient(found, torch.mm(wanted[rows], self._teacher_matrix.T, out=room), n)
            back[rows] = found @ matrix
            return kl

        kl = sum(self.workers.map(one, self._slabs(n, SLAB))) / n
        if every is not None:
            self.weight.add_product_gradient(0, matrix, every, narrow, n)
        return kl, back

    def _into_gradient(self, found: torch.Tensor, wanted: torch.Tensor, n: int) -> float:
        """Both heads' products [n_rows, n_vocab] → the sum of the rows' KL, and into `found` its gradient over n."""
        total = 0.0
        for rows in self._slabs(len(found), PART):
            logits, asked = self.student.finished(found[rows]), self.teacher.finished(wanted[rows])
            q, p = torch.softmax(logits, -1), torch.softmax(asked, -1)
            best = asked.argmax(-1, keepdim=True)
            # log p − log q at one place is the same as everywhere, less the difference of logits
            shift = (p.gather(-1, best) / q.gather(-1, best)).log()
            difference = asked.sub_(logits)
            kl = torch.linalg.vecdot(p, difference) + (shift - difference.gather(-1, best)).squeeze(-1)
            total += float(kl.double().sum())
            found[rows] = self.student.back(q.sub_(p).div_(n), logits)
        return total

    def compared(self, wanted: torch.Tensor, hidden: torch.Tensor, compare: Compare) -> list[Any]:
        """compare(teacher's log p, student's logits, rows) of each slab of positions, [n, n_vocab] f32."""
        matrix = self._matrix()

        def one(rows: slice) -> Any:
            log_p = torch.log_softmax(self.teacher.logits(wanted[rows], self._teacher_matrix), -1)
            return compare(log_p, self.student.logits(hidden[rows], matrix), rows)

        return self.workers.map(one, self._slabs(len(hidden), COMPARED))
