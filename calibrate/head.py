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
from quantmill.calibrate.scales import ScaledTensor
from quantmill.calibrate.workers import Workers

SLAB = 1 << 21  # logits of one model at a time

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
        out = (hidden.to(self.dtype) @ matrix.T).float()
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

    def _slabs(self, n: int) -> list[slice]:
        step = max(1, SLAB // self.student.n_vocab)
        return [slice(first, min(first + step, n)) for first in range(0, n, step)]

    def _matrix(self) -> torch.Tensor:
        if self._student_matrix is None:
            self._student_matrix = self.weight.matrix(0, self.student.dtype)
        return self._student_matrix

    def moved(self) -> None:
        """The student's scales are others now."""
        if self.weight.moves:
            self._student_matrix = None

    def settled(self) -> None:
        """The student's blocks are others now."""
        self._student_matrix = None

    def loss_and_gradient(self, wanted: torch.Tensor, hidden: torch.Tensor) -> tuple[float, torch.Tensor]:
        """wanted (the teacher's), hidden [n, n_hidden] → mean KL in nats over all positions, and dL/dhidden.

        What the loss says of the head's own scales is added to them.
        """
        n, matrix = len(hidden), self._matrix()
        found = self.workers.map(
            lambda rows: self._one(wanted[rows], hidden[rows], matrix, n), self._slabs(n)
        )
        if self.weight.moves:
            logits = torch.cat([gradient for _, _, gradient in found if gradient is not None])
            self.weight.add_product_gradient(0, matrix, logits, hidden.to(self.student.dtype), n)
        return sum(kl for kl, _, _ in found) / n, torch.cat([back for _, back, _ in found])

    def _one(
        self, wanted: torch.Tensor, hidden: torch.Tensor, matrix: torch.Tensor, n: int
    ) -> tuple[float, torch.Tensor, torch.Tensor | None]:
        logits = self.student.logits(hidden, matrix)
        q = torch.log_softmax(logits, -1)
        p = torch.log_softmax(self.teacher.logits(wanted, self._teacher_matrix), -1)
        difference = p - q
        kl = float(torch.linalg.vecdot(p.exp_(), difference).double().sum())
        gradient = q.exp_().sub_(p).div_(n)  # of the logits: softmax(student) − softmax(teacher)
        small = self.student.back(gradient, logits)
        return kl, (small @ matrix).float(), small if self.weight.moves else None

    def compared(self, wanted: torch.Tensor, hidden: torch.Tensor, compare: Compare) -> list[Any]:
        """compare(teacher's log p, student's logits, rows) of each slab of positions, [n, n_vocab] f32."""
        matrix = self._matrix()

        def one(rows: slice) -> Any:
            log_p = torch.log_softmax(self.teacher.logits(wanted[rows], self._teacher_matrix), -1)
            return compare(log_p, self.student.logits(hidden[rows], matrix), rows)

        return self.workers.map(one, self._slabs(len(hidden)))
