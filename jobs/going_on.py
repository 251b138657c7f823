"""What ends a long run before its time, and what is said of the part that is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quantmill.errors import QuantmillError
from quantmill.gguf_io.errors import GGUFError
from quantmill.jobs.errors import ClusterError, HeadLost, JobError, KeptError
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


@contextmanager
def keeping(advice: Callable[[], str], remove: Callable[[], None]) -> Iterator[None]:
    """Inside, an error that another time may not have (a disk's, a cluster's) takes the advice with it. Behind one of
    the job itself, which would come again, nothing stays to be gone on with."""
    try:
        yield
    except (StoppedError, HeadLost, KeptError):  # their words have it, or get it from `telling`
        raise
    except (GGUFError, ClusterError) as error:
        raise type(error)(f"{error}; {advice()}") from error
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; {advice()}", error.filename) from error
    except QuantmillError:
        remove()
        raise
