"""How sums over rows are taken: what the code (cpu_column_driver) and who calls it must agree on."""

from __future__ import annotations

LANES = 16
