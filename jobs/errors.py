"""The error of a job that cannot be done."""

from __future__ import annotations

from quantmill.errors import QuantmillError


class JobError(QuantmillError):
    """A job that cannot be done; the message names the tensor and the way out."""
