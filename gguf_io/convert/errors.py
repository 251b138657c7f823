"""The one exception of the conversion: bad input, in one line a user can act on."""


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message names the file or tensor, the value and the way out."""
