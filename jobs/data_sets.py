"""Data sets of the hub as plain text: one file of a repository, one column of it, row after row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from quantmill.errors import one_line
from quantmill.jobs.errors import JobError
from quantmill.jobs.hub import Hub
from quantmill.jobs.texts import HubText
from quantmill.models.text import json_lines, read_text

READABLE = (".parquet", ".jsonl", ".txt", ".raw", ".md")
MOST_CHARACTERS = 64 << 20  # of a text: some 16 million tokens
_USUAL = ("text", "content", "sentence", "prompt")  # columns that are text where several hold strings
_LISTED = 8  # names in an error


def found_file(text: HubText, hub: Hub) -> str:
    """Which file of the repository is meant; asks the hub what is there. Raises JobError, listing what could be."""
    there = hub.files(text.repo, "dataset")
    readable = [
        name for name in there if name.endswith(READABLE) and PurePosixPath(name).name.lower() != "readme.md"
    ]
    if text.file is not None:
        if text.file not in there:
            raise JobError(f"{text}: the data set has no file {text.file}; it has {_listed(readable)}")
        if not text.file.endswith(READABLE):
            raise JobError(f"{text}: {text.file} is none of {', '.join(READABLE)}")
        return text.file
    if len(readable) != 1:
        what = f"{_listed(readable)}: name one, {text.repo}:FILE" if readable else f"none of {READABLE}"
        raise JobError(f"{text}: the data set has {what}")
    return readable[0]


def text_of(path: Path, name: str, text: HubText) -> str:
    """The text in a file of a data set; `name` as it is called there. Raises JobError where no column is text."""
    kind = PurePosixPath(name).suffix
    if kind not in (".parquet", ".jsonl"):
        if text.column is not None:
            raise JobError(f"{text}: {name} is plain text and has no column {text.column}")
        return read_text(path)[:MOST_CHARACTERS]
    rows = _parquet_rows(path, text) if kind == ".parquet" else _json_rows(path, text)
    parts, n = [], 0
    for row in rows:
        # Data sets that are cut into lines have them end so; what is a document is set apart.
        parts.append(row if row.endswith("\n") else f"{row}\n")
        n += len(parts[-1])
        if n >= MOST_CHARACTERS:
            break
    found = "".join(parts)
    if not found.strip():
        raise JobError(f"{text}: {name} holds no text")
    return found


def _parquet_rows(path: Path, text: HubText) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise JobError(f"{text}: {path.name} is no parquet file ({one_line(error)})") from None
    kinds = {field.name: field.type for field in file.schema_arrow}
    strings = [name for name, kind in kinds.items() if kind in (pyarrow.string(), pyarrow.large_string())]
    column = _column(text, list(kinds), strings)
    for batch in file.iter_batches(batch_size=1024, columns=[column]):
        yield from (value for value in batch.column(0).to_pylist() if value is not None)


def _json_rows(path: Path, text: HubText) -> Iterator[str]:
    column: str | None = None
    for number, row in json_lines(path):
        if not isinstance(row, Mapping):
            raise JobError(f"{text}: line {number} of {path.name} is no object with columns")
        if column is None:
            column = _column(text, list(row), [name for name, value in row.items() if isinstance(value, str)])
        value: Any = row.get(column)
        if value is not None and not isinstance(value, str):
            raise JobError(f"{text}: line {number}: {column} is {json.dumps(value)[:40]}, no text")
        if value is not None:
            yield value


def _column(text: HubText, columns: list[str], strings: list[str]) -> str:
    """The column that is text. Raises JobError, listing what there is."""
    there = f"its columns are {_listed(columns)}"
    if text.column is not None:
        if text.column not in columns:
            raise JobError(f"{text}: has no column {text.column}; {there}")
        if text.column not in strings:
            raise JobError(f"{text}: the column {text.column} is no text; {there}")
        return text.column
    usual = [name for name in _USUAL if name in strings]
    if usual:
        return usual[0]
    if len(strings) == 1:
        return strings[0]
    if not strings:
        raise JobError(f"{text}: has no text column; {there}")
    raise JobError(
        f"{text}: several columns are text ({_listed(strings)}); name one, {text.repo}:FILE#COLUMN"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
