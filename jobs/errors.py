"""The errors of a job that cannot be done."""

from __future__ import annotations

from quantmill.errors import ProblemsError, QuantmillError


class JobError(QuantmillError):
    """A job that cannot be done; the message names the tensor and the way out."""


class ClusterError(JobError):
    """A Ray cluster that cannot be used, or a host of it: nothing that is said of the model or of the job."""


class HeadLost(ClusterError):
    """The head of a Ray cluster does not answer any more. What was finished stays, to be gone on with."""


class KeptError(JobError):
    """What an earlier run has left beside an output cannot be gone on with; it stays as it is."""


class PlanError(ProblemsError, JobError):
    """What planning found: nothing has been written, and `problems` says all of it."""
