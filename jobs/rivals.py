"""Files of other repositories that are of the same types as ours: their names and sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from quantmill.jobs.errors import JobError
from quantmill.jobs.hub import Hub
from quantmill.recipe.presets import find_file_type

_PARTS = re.compile(r"(?:-\d{5}-of-\d{5})?\.gguf$")
_TYPE = re.compile(r"(?:^|[-.])((?:UD-)?[A-Za-z0-9_]+)$")  # UD-Q4_K_M is another mixture than Q4_K_M
_OTHERS = ("mmproj", "imatrix")  # GGUF files that are no models


@dataclass(frozen=True)
class RivalFile:
    """files: all parts of it, in order."""

    repository: str
    type: str
    files: tuple[str, ...]
    n_bytes: int


def rival_files(repository: str, types: Sequence[str], hub: Hub) -> Mapping[str, RivalFile]:
    """The files of these types by type. Raises JobError for a repository that is not there or has no GGUF files."""
    by_type: dict[str, list[tuple[str, int]]] = {}
    listed = hub.files(repository, "model")
    for name, size in listed.items():
        type = _type_of(name)
        if type is not None:
            by_type.setdefault(type, []).append((name, size))
    if not by_type:
        raise JobError(f"--rivals {repository}: holds no GGUF file of a known type")
    return {
        type: RivalFile(
            repository,
            type,
            tuple(name for name, _ in sorted(parts)),
            sum(size for _, size in parts),
        )
        for type, parts in by_type.items()
        if type in types
    }


def _type_of(name: str) -> str | None:
    file = PurePosixPath(name).name
    if file.lower().startswith(_OTHERS):
        return None
    stem = _PARTS.sub("", file)
    match = _TYPE.search(stem) if stem != file else None
    return None if match is None or match[1].isdigit() else find_file_type(match[1])
