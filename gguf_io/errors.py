"""The one exception of gguf_io: bad input or a failed write, in one line a user can act on."""


class GGUFError(ValueError):
    """A file cannot be read or written. The message names file, tensor or key, the value and the way out."""
