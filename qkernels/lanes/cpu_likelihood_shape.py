"""How rows of logits are read: what the code (cpu_likelihood_driver) and who calls it must agree on."""

from __future__ import annotations

LANES = 16
KINDS = ("f32", "u16")
