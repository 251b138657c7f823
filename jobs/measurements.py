"""What was measured of a model, kept between runs: a second size measures nothing again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from quantmill.qkernels.cache import cache_dir, write_atomically

VERSION = 1  # of what the numbers mean; another one is another file
Numbers = dict[str, dict[str, float]]  # tensor → type → number


class Measurements:
    """errors: relative errors of weights. losses: KL divergence with one tensor changed, in nats a token."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: Numbers = {}
        self.losses: Numbers = {}
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):  # not there yet, or cut off: measured again
            return
        self.errors, self.losses = found["errors"], found["losses"]

    def keep(self) -> None:
        """Write what there is. A cache that cannot be written is none; the run goes on."""
        text = json.dumps({"errors": self.errors, "losses": self.losses}, indent=1)
        try:
            write_atomically(self.path, text.encode())
        except OSError:
            return


def measurements_of(*made_from: str) -> Measurements:
    """The measurements under the hash of all they were made from."""
    key = hashlib.sha256("\0".join((str(VERSION), *made_from)).encode(errors="surrogateescape")).hexdigest()
    return Measurements(cache_dir("measurements") / f"{key[:32]}.json")
