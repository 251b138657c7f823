"""Keeps transformers' log to itself while it works for us: it speaks of settings that we made, and of long texts that
are cut later."""

from __future__ import annotations

import gc
import logging as log
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# transformers' log, and where accelerate lets parameters of a model be made, belong to the process: of two threads that
# build at once the one that ends last would leave behind what the other had set.
_ALONE = threading.RLock()


def _is_of_use(record: log.LogRecord) -> bool:
    """Not: that a kernel for GPUs is not installed, said whenever a model of linear attention computes."""
    return "falling back to its reference PyTorch implementation" not in record.getMessage()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Modules of transformers make hundreds of thousands of objects that stay; to look through them for cycles again
    and again is a tenth of the time that they take to load."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """For one thread at a time."""
    with _ALONE, _no_collection():
        from transformers.utils import logging

        before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        for handler in log.getLogger("transformers").handlers:
            handler.addFilter(_is_of_use)  # once, however often
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(before)
            if bar:
                logging.enable_progress_bar()
