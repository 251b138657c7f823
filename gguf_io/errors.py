"""The one exception of gguf_io: bad input or a failed write, in one line a user can act on."""

from __future__ import annotations

from quantmill.errors import QuantmillError

_MAX_SHOWN = 80


class GGUFError(QuantmillError):
    """A file cannot be read or written. The message names file, tensor or key, the value and the way out."""


def shown(name: str) -> str:
    """A name from a file, for a message: as it is, or quoted when it would break the line or the terminal."""
    return name if name.isprintable() and len(name) <= _MAX_SHOWN else quoted(name)


def quoted(name: str) -> str:
    """A name from a file in quotes, its odd characters escaped, cut when a damaged length made it endless."""
    return repr(name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "…")
