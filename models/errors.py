"""The one exception of this package that is meant for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantmill.errors import QuantmillError
from quantmill.qkernels.torch_errors import in_words


class ModelError(QuantmillError):
    """A model that cannot be built or run: one plain sentence with the value, the limit and the way out."""


@contextmanager
def said_of_transformers(words: str) -> Iterator[None]:
    """Raises ModelError with these words in place of what transformers and torch raise for files that make no model.

    Want of memory and a device that fails are not the files' fault, and go on as they are.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except QuantmillError:
        raise
    except (
        StrictDataclassError,
        OSError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
    ) as error:
        if in_words(error):
            raise
        line = " ".join((str(error) or error.__class__.__name__).split())
        raise ModelError(f"{words} ({line[:300]})") from error
