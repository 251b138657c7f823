"""Score choices as llama-perplexity does: mean log-probability of the tokens that tell the choices apart.

HellaSwag and multiple choice join stem and choice with a space and score from the first token that differs;
WinoGrande puts the choice into the sentence and scores what follows it (tools/perplexity/perplexity.cpp:
hellaswag_score, winogrande_score, multiple_choice_score). Every sequence runs alone or padded on the right,
so scores do not depend on which tasks share a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quantmill.measure.errors import MeasureError
from quantmill.measure.perplexity import Estimate
from quantmill.measure.task_files import Kind, Task
from quantmill.models.model import LoadedModel
from quantmill.models.scoring import BATCH_TOKENS, LOGIT_BYTES
from quantmill.models.workers import ALONE, Tell, Workers

MIN_TRAILING = 3  # tokens after the choice from which on WinoGrande leaves the choice itself out


@dataclass(frozen=True)
class Scored:
    """One task: the mean log-probability of each choice, the choice taken, whether it is right."""

    means: tuple[float, ...]
    taken: int
    right: bool


@dataclass(frozen=True)
class TaskResult:
    kind: Kind
    scored: tuple[Scored, ...]
    chance: float

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers and its standard error, sqrt(p (1 − p) / (n − 1))."""
        n = len(self.scored)
        share = sum(s.right for s in self.scored) / n
        return Estimate(share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, as llama-perplexity prints for HellaSwag."""
        n, share, z = len(self.scored), self.accuracy.value, 1.95996398454
        ratio = z * z / n
        half = ratio * math.sqrt(n * (4 * share * (1 - share) + ratio)) / (2 * z)
        centre = share + ratio / 2
        return (centre - half) / (1 + ratio), (centre + half) / (1 + ratio)


@dataclass(frozen=True)
class _Sequence:
    """tokens to run; the mean is over the log-probabilities of tokens[first:last].

    borrows: tokens[first] is predicted by the end of the sequence before. llama.cpp does so for WinoGrande's
    second choice when it scores the choice itself (a FIXME there); kept, so that scores can be compared.
    """

    tokens: tuple[int, ...]
    first: int
    last: int
    borrows: bool = False


def score(
    loaded: LoadedModel,
    kind: Kind,
    tasks: Sequence[Task],
    n_ctx: int = 512,
    advance: Callable[[int], None] = lambda tasks: None,
    workers: Workers = ALONE,
) -> TaskResult:
    """Score all tasks. n_ctx: the longest task in tokens, shared prefix counted once, as llama.cpp counts.

    workers: run batches side by side; that does not show in the scores.

    Raises MeasureError for a task that does not fit, naming it.
    """
    scored: list[Scored] = []

    def one(group: list[list[_Sequence]], tell: Tell) -> tuple[list[list[_Sequence]], list[float]]:
        means = _means(loaded, [sequence for sequences in group for sequence in sequences])
        tell(len(group))
        return group, means

    groups = _groups(loaded, prepared(loaded, kind, tasks, n_ctx))
    for group, means in workers.in_order(one, groups, advance):
        at = 0
        for sequences in group:
            choices = means[at : at + len(sequences)]
            at += len(sequences)
            task = tasks[len(scored)]
            taken = _take(kind, choices)
            scored.append(Scored(tuple(choices), taken, taken in task.right))
    chance = len(tasks) / sum(len(task.choices) for task in tasks)
    return TaskResult(kind, tuple(scored), chance)


def prepared(loaded: LoadedModel, kind: Kind, tasks: Sequence[Task], n_ctx: int) -> list[list[_Sequence]]:
    """The token sequences of all tasks. Raises MeasureError as `score` does, before anything runs."""
    prepare = _winogrande if kind == "winogrande" else _choices
    return [prepare(loaded, task, i, n_ctx) for i, task in enumerate(tasks)]


def _take(kind: Kind, means: Sequence[float]) -> int:
    # The first of equal scores wins, but WinoGrande's second does (score_1st > score_2nd).
    if kind == "winogrande":
        return 0 if means[0] > means[1] else 1
    return int(np.argmax(means))


def _choices(loaded: LoadedModel, task: Task, number: int, n_ctx: int) -> list[_Sequence]:
    """Log-probabilities from the first token that differs to the end, the end included."""
    encoded = [loaded.tokenizer.encode(f"{task.stem} {choice}") for choice in task.choices]
    same = _common(encoded)
    _check_room(number, encoded, same, n_ctx)
    if same == 0:
        raise MeasureError(f"task {number}: its choices differ from the first token on, nothing predicts it")
    return [_Sequence(tuple(tokens), same, len(tokens)) for tokens in encoded]


def _winogrande(loaded: LoadedModel, task: Task, number: int, n_ctx: int) -> list[_Sequence]:
    """Log-probabilities of the tokens after the choice, without the last; of the choice too if little follows."""
    encode = loaded.tokenizer.encode
    encoded = [encode(task.stem + choice + task.tail) for choice in task.choices]
    same = _common(encoded)
    _check_room(number, encoded, same, n_ctx)
    skip_choice = all(len(tokens) - same > MIN_TRAILING for tokens in encoded)
    out: list[_Sequence] = []
    for tokens, choice in zip(encoded, task.choices, strict=True):
        first = len(encode(task.stem + choice)) if skip_choice else same
        if first == 0:
            raise MeasureError(f"task {number}: nothing stands before the choice to predict it")
        last = len(tokens) - (1 if len(tokens) - first > 1 else 0)
        out.append(_Sequence(tuple(tokens), first, last, borrows=bool(out) and not skip_choice))
    return out


def _common(encoded: Sequence[Sequence[int]]) -> int:
    same = 0
    for tokens in zip(*encoded, strict=False):
        if len(set(tokens)) > 1:
            break
        same += 1
    return same


def _check_room(number: int, encoded: Sequence[Sequence[int]], same: int, n_ctx: int) -> None:
    needed = same + sum(len(tokens) - same for tokens in encoded)
    if needed > n_ctx:
        raise MeasureError(f"task {number} needs {needed} tokens, the context is {n_ctx}; raise --ctx")
    if any(len(tokens) == same for tokens in encoded):
        raise MeasureError(
            f"task {number}: one choice is the beginning of another and has no token of its own"
        )


def _groups(loaded: LoadedModel, tasks: Sequence[list[_Sequence]]) -> list[list[list[_Sequence]]]:
    """Consecutive tasks that run as one padded batch."""
    groups: list[list[list[_Sequence]]] = []
    room = min(BATCH_TOKENS, max(1, LOGIT_BYTES // (4 * loaded.n_vocab)))
    longest = count = 0
    for sequences in tasks:
        length = max(len(s.tokens) for s in sequences)
        if not groups or max(longest, length) * (count + len(sequences)) > room:
            groups.append([])
            longest = count = 0
        groups[-1].append(sequences)
        longest, count = max(longest, length), count + len(sequences)
    return groups


def _means(loaded: LoadedModel, sequences: Sequence[_Sequence]) -> list[float]:
    length = max(len(s.tokens) for s in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, s in enumerate(sequences):
        ids[row, : len(s.tokens)] = torch.tensor(s.tokens)
    start = max(0, min(s.first for s in sequences) - 1)
    logits = loaded.logits(ids, first=start)
    out = []
    for row, s in enumerate(sequences):
        predicting = logits[row, s.first - 1 - start : s.last - 1 - start].float()
        if s.borrows:
            end = len(sequences[row - 1].tokens) - 1
            predicting = torch.cat([logits[row - 1, end - start, None].float(), predicting[1:]])
        target = torch.tensor(s.tokens[s.first : s.last], dtype=torch.int64, device=predicting.device)
        log_p = torch.log_softmax(predicting, dim=-1).gather(-1, target[:, None])
        out.append(float(log_p.mean()))
    return out


@dataclass(frozen=True)
class McNemar:
    """Tasks only one of two models got right, and the exact two-sided chance of a split as uneven."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(a: TaskResult, b: TaskResult) -> McNemar:
    """Compare two models on the same tasks."""
    only_a = sum(x.right and not y.right for x, y in zip(a.scored, b.scored, strict=True))
    only_b = sum(y.right and not x.right for x, y in zip(a.scored, b.scored, strict=True))
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))
