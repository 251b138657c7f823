"""How a gradient of weights is read: what the code (cpu_pull_driver) and who calls it must agree on."""

from __future__ import annotations

LANES = 16
KINDS = ("f32", "bf16")
STEP = 1 << 14  # what stands for a whole step in the 16 bits of a wish
HALF = STEP // 2
LIMIT = STEP + HALF  # a wish that cannot be met grows no further
TINY = 1e-30  # a mean square is not taken for less
