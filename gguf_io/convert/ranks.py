"""Files of tiktoken: base64 of a token and its rank a line."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path


def ranks_of(path: Path) -> dict[bytes, int] | None:
    """Token → rank, None where the file is not of this form."""
    ranks = {}
    try:
        for line in path.read_bytes().split(b"\n"):
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        return None
    return ranks or None
