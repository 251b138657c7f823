"""Experts that leave go into those that stay (after REAM, arXiv 2604.04356): the router's choice still finds them.

An expert goes into the one whose router row is most like its own. Its hidden neurons are put in the order of that
expert's, and both are averaged by how strong they were on the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Read = Callable[[str], np.ndarray]  # a part of the experts → f32 [n_experts, n_rows, n_cols]


def partners(router: np.ndarray, kept: Sequence[int]) -> dict[int, int]:
    """router f32 [n_experts, n_hidden] → expert that leaves → the one that stays whose row is most like it."""
    centred = router - router.mean(0)
    units = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30)
    likeness = units @ units.T
    return {
        gone: max(kept, key=lambda stays: (likeness[gone, stays], -stays))
        for gone in range(len(router))
        if gone not in kept
    }


def matched(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Which of `theirs` [n, d] stands in the place of each of `ours` [n, d]: [n] i64, each once, most alike first."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (ours, theirs))
    order = np.argsort(-(a @ b.T), axis=None, kind="stable")
    found = np.full(len(ours), -1, np.int64)
    used = np.zeros(len(theirs), bool)
    for place in order:
        i, j = divmod(int(place), len(theirs))
        if found[i] < 0 and not used[j]:
            found[i], used[j] = j, True
    return found


def merged(
    parts: Mapping[str, np.ndarray], router: np.ndarray, kept: Sequence[int], strength: Sequence[float]
) -> dict[str, np.ndarray]:
    """parts: the matrices of one layer's experts by name, f32 [n_experts, n_ff, n_hidden]: rows of gate and up, the
    columns of down. strength: of each expert, ≥ 0. Gives the parts of the experts that stay, in their order.
    """
    groups: dict[int, list[int]] = {stays: [] for stays in kept}
    for gone, stays in partners(router, kept).items():
        if strength[gone] > 0:
            groups[stays].append(gone)
    out = {name: values[list(kept)].copy() for name, values in parts.items()}
    for at, stays in enumerate(kept):
        if not groups[stays]:
            continue
        total = strength[stays] + sum(strength[gone] for gone in groups[stays])
        ours = np.concatenate([values[stays] for values in parts.values()], axis=1)
        for values in out.values():
            values[at] *= strength[stays] / total
        for gone in groups[stays]:
            order = matched(ours, np.concatenate([values[gone] for values in parts.values()], axis=1))
            for name, values in out.items():
                values[at] += (strength[gone] / total) * parts[name][gone][order]
    return out
