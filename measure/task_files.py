"""Task files: HellaSwag, WinoGrande and multiple choice as llama-perplexity reads them, and the same as JSONL.

Every kind becomes a `Task`: a stem, its choices, which of them are right. Choosing N tasks of a file follows
llama.cpp draw for draw (tools/perplexity/perplexity.cpp), so that scores of N tasks can be compared.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantmill.gguf_io.filesystem import open_regular
from quantmill.measure.errors import MeasureError
from quantmill.measure.task_rows import KINDS, Kind, Task, task_of
from quantmill.models.text import BYTE_ORDER_MARK, json_lines

__all__ = ["KINDS", "Kind", "Task", "read_tasks", "unasked"]

MAX_ANSWERS = 100
HEADER = ("sentence", "option1", "option2", "answer")


def read_tasks(path: Path, kind: Kind, n_tasks: int | None = None) -> list[Task]:
    """All tasks of a file in order, or the n_tasks that llama-perplexity would draw, in its order.

    `.jsonl` files hold one object a line, as task_rows reads it. Raises MeasureError for a file that is not of
    its kind, ModelError for one that is not UTF-8 or JSON; both name the line.
    """
    with open_regular(path) as file:
        raw = file.read()
    if n_tasks is not None and n_tasks < 1:
        raise MeasureError(f"--tasks {n_tasks}: at least one task must be scored")
    if path.suffix == ".jsonl":
        tasks = _read_jsonl(path, kind)
    elif kind == "hellaswag":
        tasks = _read_hellaswag(path, _text(path, raw))
    elif kind == "winogrande":
        tasks = _read_winogrande(path, _text(path, raw))
    else:
        tasks = _read_multiple_choice(path, raw)
    if not tasks:
        raise MeasureError(f"{path}: holds no {kind} task")
    if n_tasks is None or (n_tasks >= len(tasks) and kind != "hellaswag"):
        return tasks
    draw = hellaswag_order if kind == "hellaswag" else scaled_order
    return [tasks[i] for i in draw(len(tasks), min(n_tasks, len(tasks)))]


class _Draws:
    """Outputs of std::mt19937(1), u32."""

    def __init__(self) -> None:
        self._bits = np.random.MT19937()
        # numpy's legacy seeding is the generator's own; the newer one hashes the seed first.
        self._bits.state = np.random.RandomState(1).get_state(legacy=False)  # type: ignore[assignment]

    def next(self) -> int:
        return int(self._bits.random_raw())


def scaled_order(n: int, wanted: int) -> list[int]:
    """The draw of WinoGrande and multiple choice: j = int(2⁻³² · rng() · left) in float32, swap with the last."""
    draws, left, out = _Draws(), list(range(n)), []
    for _ in range(wanted):
        j = int(np.float32(2.0**-32) * np.float32(draws.next()) * np.float32(len(left)))
        j = min(j, len(left) - 1)  # the greatest outputs round to 2³²
        out.append(left[j])
        left[j] = left[-1]
        left.pop()
    return out


def hellaswag_order(n: int, wanted: int) -> list[int]:
    """HellaSwag's draw as libstdc++ makes it: uniform_int_distribution<size_t> over what is left, removed in
    place. Other C++ libraries draw other tasks."""
    draws, left, out = _Draws(), list(range(n)), []
    for _ in range(wanted):
        out.append(left.pop(_uniform(draws, len(left))))
    return out


def _uniform(draws: _Draws, n: int) -> int:
    """libstdc++'s uniform_int_distribution(0, n − 1) over a 32-bit generator: Lemire's multiply and reject."""
    product = draws.next() * n
    if (product & 0xFFFFFFFF) < n:
        threshold = (1 << 32) % n
        while (product & 0xFFFFFFFF) < threshold:
            product = draws.next() * n
    return product >> 32


def _text(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MeasureError(
            f"{path}: byte {error.start} is not UTF-8 text; is this a multiple-choice file?"
        ) from error


def _read_hellaswag(path: Path, text: str) -> list[Task]:
    """Six lines a task: context, index of the right ending, four endings."""
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if len(lines) % 6:
        raise MeasureError(f"{path}: {len(lines)} lines; a HellaSwag file has six a task")
    tasks = []
    for at in range(0, len(lines), 6):
        label = lines[at + 1].strip()
        if label not in ("0", "1", "2", "3"):
            raise MeasureError(
                f"{path}: line {at + 2}: {label[:40]!r} is not the index of one of four endings"
            )
        tasks.append(Task(lines[at], tuple(lines[at + 2 : at + 6]), frozenset([int(label)])))
    return tasks


def _winogrande_lines(text: str) -> list[str]:
    """The lines that llama.cpp asks. It takes the last line feed off a file and then drops the line that has none:
    the last task is never asked. So do we, or scores and draws would differ."""
    return text.removesuffix("\n").split("\n")[:-1]


def unasked(path: Path, kind: Kind) -> str | None:
    """What is to be said about a row of the file that is not asked, in llama.cpp as here."""
    if kind != "winogrande" or path.suffix == ".jsonl":
        return None
    text = _text(path, path.read_bytes())
    number = len(_winogrande_lines(text)) + 1
    if not text.removesuffix("\n").split("\n")[-1]:
        return None
    return (
        f"{path}: line {number} is not asked, as in llama.cpp, which drops the last line of a WinoGrande file; "
        "end the file with an empty line to have it asked in both"
    )


def _read_winogrande(path: Path, text: str) -> list[Task]:
    """`index,sentence,choice1,choice2,answer` a line, the sentence quoted when it has commas."""
    tasks = []
    for number, line in enumerate(_winogrande_lines(text.removeprefix(BYTE_ORDER_MARK)), 1):
        fields = _winogrande_fields(line)
        if fields is None:
            raise MeasureError(f"{path}: line {number}: not index,sentence,choice1,choice2,answer")
        if number == 1 and tuple(field.strip() for field in fields) == HEADER:
            continue
        sentence, first, second, answer = fields
        stem, blank, tail = sentence.partition("_")
        if not blank:
            raise MeasureError(f"{path}: line {number}: the sentence has no _ to fill in")
        if answer.strip() not in ("1", "2"):
            raise MeasureError(f"{path}: line {number}: answer {answer.strip()[:40]!r} is neither 1 nor 2")
        tasks.append(Task(stem, (first, second), frozenset([int(answer) - 1]), tail))
    return tasks


def _winogrande_fields(line: str) -> tuple[str, str, str, str] | None:
    commas: list[int] = []
    quoted = False
    for i, char in enumerate(line):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            commas.append(i)
            if len(commas) == 4:
                break
    if len(commas) != 4:
        return None
    a, b, c, d = commas
    sentence = line[a + 2 : b - 1] if line[a + 1] == '"' else line[a + 1 : b]
    return sentence, line[b + 1 : c], line[c + 1 : d], line[d + 1 :]


def _read_multiple_choice(path: Path, raw: bytes) -> list[Task]:
    """u32 n | u32 position[n] | tasks: question, answers with one right, answers with several right (unused);
    a string is u32 length and bytes, answers are u32 count, strings, i32 labels."""
    reader = _Bytes(path, raw)
    n = reader.u32()
    if n == 0 or 4 * n > len(raw):
        raise MeasureError(f"{path}: {n} tasks in {len(raw)} bytes: not a multiple-choice file")
    reader.skip(4 * n)
    tasks = []
    for number in range(n):
        question = reader.string()
        answers, labels = reader.answers()
        reader.answers()
        if not question or not answers or not all(answers):
            raise MeasureError(f"{path}: task {number} has an empty question or answer")
        right = frozenset(i for i, label in enumerate(labels) if label == 1)
        tasks.append(Task(question, tuple(answers), right))
    return tasks


class _Bytes:
    """Reads the fields of a multiple-choice file and says where it ends too soon."""

    def __init__(self, path: Path, raw: bytes):
        self.path, self.raw, self.at = path, raw, 0

    def skip(self, n: int) -> bytes:
        if n > len(self.raw) - self.at:
            raise MeasureError(
                f"{self.path}: truncated: {n} bytes wanted at {self.at}, the file has {len(self.raw)}"
            )
        self.at += n
        return self.raw[self.at - n : self.at]

    def u32(self) -> int:
        return struct.unpack("<I", self.skip(4))[0]

    def string(self) -> str:
        return self.skip(self.u32()).decode("utf-8", "surrogateescape")

    def answers(self) -> tuple[list[str], Sequence[int]]:
        n = self.u32()
        if n > MAX_ANSWERS:
            raise MeasureError(
                f"{self.path}: {n} answers at byte {self.at - 4}, at most {MAX_ANSWERS} are allowed: "
                "not a multiple-choice file"
            )
        return [self.string() for _ in range(n)], struct.unpack(f"<{n}i", self.skip(4 * n))


def _read_jsonl(path: Path, kind: Kind) -> list[Task]:
    tasks = []
    for number, row in json_lines(path):
        try:
            tasks.append(task_of(kind, row))
        except MeasureError as error:
            raise MeasureError(f"{path}: line {number}: not a {kind} task: {error}") from None
    return tasks
