"""What was made of a layer as arrays under names, and back: what finished layers are kept as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from quantmill.calibrate.layer import Made

# Behind the tensor's name; the second is followed by the norm's.
_NUMBERS, _FACTORS, _SCALES = "?", ":", "*"


def arrays_of(made: Sequence[Made]) -> dict[str, np.ndarray]:
    """Blocks u8 [n_mat, n_rows, row_bytes] under the tensor's name, all else under longer names."""
    arrays = {}
    for one in made:
        arrays[one.name] = one.blocks
        shares = (one.shares.input, one.shares.residual)
        arrays[one.name + _NUMBERS] = np.array([float(one.compensated), *shares, *one.fitted, *one.held])
        if one.factors is not None:
            arrays[f"{one.name}{_FACTORS}{one.norm}"] = one.factors
        if one.scales is not None:
            arrays[one.name + _SCALES] = one.scales
    return arrays


def made_of(arrays: Mapping[str, np.ndarray], types: Mapping[str, str]) -> list[Made]:
    """types: of the tensors."""
    from quantmill.calibrate.layer import Made
    from quantmill.calibrate.targets import Shares

    balanced = {
        name: (norm, arrays[name + _FACTORS + norm])
        for name, mark, norm in (key.partition(_FACTORS) for key in arrays)
        if mark
    }
    made = []
    for name, blocks in arrays.items():
        if name.endswith((_NUMBERS, _SCALES)) or _FACTORS in name:
            continue
        compensated, a, b, *errors = arrays[name + _NUMBERS].tolist()
        pairs = (errors[0], errors[1]), (errors[2], errors[3])
        norm, factors = balanced.get(name, (None, None))
        made.append(
            Made(
                name,
                blocks,
                types[name],
                bool(compensated),
                Shares(a, b),
                *pairs,
                norm=norm,
                factors=factors,
                scales=arrays.get(name + _SCALES),
            )
        )
    return made
