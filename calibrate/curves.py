"""From two measured types of a tensor to the loss of every type, along the error of its weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

# Loss against error, both as logarithms: small errors add to the loss in proportion (KL divergence is a square form
# around the original), large ones less or more so. What lies outside comes from noise.
_SLOPES = (0.6, 1.6)
_LEAST = 1e-9  # nats; below it a measurement is rounding


def loss_curve(errors: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """type → loss, for every type of `errors` (type → relative error of the weights).

    measured: type → loss, of at least one of these types. Between two measured types the logarithms are joined by a
    line, finer types than the finest measured lose in proportion to their error, coarser ones go on along the line.
    """
    points = sorted((errors[type], max(loss, _LEAST)) for type, loss in measured.items() if errors[type] > 0)
    if not points:
        return dict.fromkeys(errors, 0.0)
    # The coarser of two points is measured better, for it is further above the noise: it holds the line.
    line = [points[-1]]
    for error, loss in reversed(points[:-1]):
        coarse_error, coarse_loss = line[0]
        if error >= coarse_error:
            continue
        wide = math.log(coarse_error / error)
        slope = min(max(math.log(coarse_loss / loss) / wide, _SLOPES[0]), _SLOPES[1])
        line.insert(0, (error, coarse_loss * math.exp(-slope * wide)))
    return {type: _at(line, error) for type, error in errors.items()}


def _at(line: list[tuple[float, float]], error: float) -> float:
    if error <= line[0][0]:
        return line[0][1] * error / line[0][0]
    pairs = list(itertools.pairwise(line)) or [((line[0][0] / 2, line[0][1] / 2), line[0])]
    for (fine, fine_loss), (coarse, coarse_loss) in pairs:
        slope = math.log(coarse_loss / fine_loss) / math.log(coarse / fine)
        if error <= coarse:
            break
    return fine_loss * math.exp(slope * math.log(error / fine))
