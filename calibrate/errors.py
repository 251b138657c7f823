"""The error of a calibration that cannot be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantmill.errors import QuantmillError
from quantmill.qkernels.types import NotFiniteError, QuantizeError


class CalibrationError(QuantmillError):
    """A model, a base or a text that calibration cannot use; the message names it and the way out."""


@contextmanager
def naming(*tensors: str) -> Iterator[None]:
    """What an engine, which knows rows alone, cannot do inside is an error that names the tensors."""
    try:
        yield
    except NotFiniteError as error:
        raise CalibrationError(
            f"{', '.join(tensors)}: holds values that are not finite; the model is damaged: convert or fetch it again"
        ) from error
    except QuantizeError as error:
        raise CalibrationError(f"{', '.join(tensors)}: {error}") from error
