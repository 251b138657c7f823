"""What was measured of a model, kept between runs: another size measures no single tensor again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from quantmill.qkernels.cache import cache_dir, write_atomically

VERSION = 2  # of what the numbers mean; another one is another file
Numbers = dict[str, dict[str, float]]  # tensor → type → number
TOGETHER = ""  # beside names of tensors


class Measurements:
    """errors: relative errors of weights. losses: KL divergence with one tensor changed, in nats a token. unused:
    tensors that the model does not use. company: of all types of a model (`types_key`) → TOGETHER → the divergence,
    and tensor → the divergence when that one is as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: Numbers = {}
        self.losses: Numbers = {}
        self.company: Numbers = {}
        self.unused: list[str] = []
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):  # not there yet, or cut off: measured again
            return
        self.errors, self.losses = found["errors"], found["losses"]
        self.company, self.unused = found["company"], found["unused"]

    def keep(self) -> None:
        """Write what there is. A cache that cannot be written is none; the run goes on."""
        fields = ("errors", "losses", "company", "unused")
        text = json.dumps({field: getattr(self, field) for field in fields}, indent=1)
        try:
            write_atomically(self.path, text.encode())
        except OSError:
            return


def measurements_of(*made_from: str, folder: Path | None = None) -> Measurements:
    """The measurements under the hash of all they were made from, in `folder` or in the cache."""
    name = f"{_key((str(VERSION), *made_from))}.json"
    return Measurements(cache_dir("measurements") / name if folder is None else folder / f"losses-{name}")


def types_key(types: Mapping[str, str]) -> str:
    """For tensors of the source and their types."""
    return _key(part for pair in sorted(types.items()) for part in pair)


def _key(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]
