"""Texts as an argument names them: a file, a data set of the hub, or `self`, what the model writes itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from quantmill.jobs.errors import JobError

SELF = "self"
# What is taken where nothing is named, and the files of these data sets where only the data set is.
CALIBRATION = "eaddario/imatrix-calibration"
EVALUATION = "Salesforce/wikitext"
DEFAULT_FILES = MappingProxyType(
    {
        CALIBRATION: "combined_en_small.parquet",
        EVALUATION: "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    }
)
_HUB_TEXT = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[^#]+))?(?:#(?P<column>.+))?"
)


@dataclass(frozen=True)
class HubText:
    """A file of a data set on the hub, and the column of it that is text; None: found out."""

    repo: str
    file: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        return self.repo + file + (f"#{self.column}" if self.column else "")


@dataclass(frozen=True)
class SelfText:
    """What the model itself writes."""

    def __str__(self) -> str:
        return SELF


TextSource = Path | HubText | SelfText


def text_source(argument: str) -> TextSource:
    """What a --calibration or --evaluation means; a path that is there is a path. Raises JobError for neither."""
    if argument == SELF:
        return SelfText()
    path = Path(argument)
    match = _HUB_TEXT.fullmatch(argument)
    if path.exists() or match is None:
        if not path.exists():
            raise JobError(f"{argument}: no such file, and no data set of the hub (org/name:file#column)")
        return path
    return HubText(match["repo"], match["file"] or DEFAULT_FILES.get(match["repo"]), match["column"])
