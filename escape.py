"""Text from files for people's eyes: whatever could steer a terminal or reorder a line is shown by its number."""

from __future__ import annotations

import re

# Control characters (C0, DEL, C1), line and paragraph separators, marks that turn the direction of text, and the halves
# of surrogate pairs as which Python carries the bytes of file names that are no UTF-8.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = range(0xDC80, 0xDD00)  # PEP 383


def escaped(text: str, keep: str = "") -> str:
    """`text` with such characters as `\\x1b`, `\\u202e`; those of `keep` stay (a document keeps its line ends)."""
    return _UNSHOWABLE.sub(lambda found: found[0] if found[0] in keep else _number(found[0]), text)


def _number(char: str) -> str:
    code = ord(char)
    if code in _BYTES:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
