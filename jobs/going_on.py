"""What ends a long run before its time, and what is said of the part that is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quantmill.jobs.errors import JobError
from quantmill.qkernels.torch_errors import in_words


class StoppedError(JobError):
    """A run that a device or want of memory ended: why, and how to go on."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(f"{why}; {advice}")
        self.why = why


@contextmanager
def telling(advice: Callable[[], str]) -> Iterator[None]:
    """Inside, an interrupt takes the advice with it, and so does what torch raises of a device that fails or of memory,
    as StoppedError. The outermost advice counts: it is about the command that was given."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice()) from None
    except StoppedError as error:
        raise StoppedError(error.why, advice()) from error
    except MemoryError as error:
        raise StoppedError("not enough memory", advice()) from error
    except RuntimeError as error:
        why = in_words(error)
        if not why:
            raise
        raise StoppedError(why, advice()) from error
