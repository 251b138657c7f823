"""What the code of an encoder (cpu_driver) says of what it went through, and who calls it understands."""

from __future__ import annotations

BAD_WEIGHT = 1  # a weight is NaN or infinite
BAD_SCALE = 2  # a scale that was written is
