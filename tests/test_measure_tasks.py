"""Task scores against llama-perplexity on the same files and model, and its choice of N tasks.

Oracle: llama.cpp 0c1e570 on measure_models.tiny("F16"), files of tests/data/measure:

    llama-perplexity -m tiny-F16.gguf -np 8 -f hs.txt --hellaswag --hellaswag-tasks N
    llama-perplexity -m tiny-F16.gguf -np 8 -f wg.csv --winogrande --winogrande-tasks N
    llama-perplexity -m tiny-F16.gguf -np 8 -bf mc.bin --multiple-choice --multiple-choice-tasks N
"""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path

import pytest
import torch

from quantmill.measure.task_files import Kind, Task, hellaswag_order, read_tasks, scaled_order, unasked
from quantmill.measure.tasks import Scored, TaskResult, mcnemar, score
from quantmill.models.model import LoadedModel, load
from tests.support.measure_models import DATA, tiny

FILES: dict[Kind, Path] = {
    "hellaswag": DATA / "hs.txt",
    "winogrande": DATA / "wg.csv",
    "multiple-choice": DATA / "mc.bin",
}


@functools.cache
def model() -> LoadedModel:
    torch.set_num_threads(1)
    return load(tiny("F16"))


@functools.cache
def scored(kind: Kind, n: int | None) -> TaskResult:
    return score(model(), kind, read_tasks(FILES[kind], kind, n))


# Right answers of all tasks and of a draw of 25, as llama-perplexity's last lines have them.
@pytest.mark.parametrize(
    ("kind", "n", "total", "right"),
    [
        ("hellaswag", None, 60, 32),
        ("hellaswag", 25, 25, 10),
        ("winogrande", None, 119, 57),
        ("winogrande", 25, 25, 12),
        ("multiple-choice", None, 60, 27),
        ("multiple-choice", 25, 25, 11),
    ],
)
def test_scores(kind: Kind, n: int | None, total: int, right: int) -> None:
    found = scored(kind, n)
    assert (len(found.scored), sum(one.right for one in found.scored)) == (total, right)


# The columns of llama-perplexity --winogrande: both mean log-probabilities and the choice taken. Tasks 9 and 12 have
# too little text after the choice, so the choice is scored as well.
WINOGRANDE = (
    (-3.908658, -3.762482, 2),
    (-7.584508, -7.836632, 1),
    (-3.987207, -9.866282, 1),
    (-11.906900, -12.418530, 1),
    (-3.804262, -3.759056, 2),
    (-5.093164, -5.290163, 1),
    (-5.663953, -6.161798, 1),
    (-5.387099, -5.091260, 2),
    (-4.744543, -5.290163, 1),
    (-3.694562, -3.953490, 1),
    (-3.741806, -3.595719, 2),
    (-5.785343, -4.099697, 2),
)


def test_winogrande_task_by_task() -> None:
    for found, (first, second, choice) in zip(scored("winogrande", None).scored, WINOGRANDE, strict=False):
        assert found.means == pytest.approx((first, second), abs=5e-3)
        assert found.taken + 1 == choice


def test_intervals_are_those_printed() -> None:
    # "60  53.33333333%  [40.8934%, 65.3721%]" and "Final result: 45.0000 +/- 6.4768", "Random chance: 28.1690"
    assert scored("hellaswag", None).interval == pytest.approx((0.408934, 0.653721), abs=1e-6)
    choice = scored("multiple-choice", None)
    assert choice.accuracy.error == pytest.approx(0.064768, abs=1e-6)
    assert choice.chance == pytest.approx(0.281690, abs=1e-6)


def test_draws_are_those_of_the_c_library() -> None:
    """From C++ (g++ 12, libstdc++), 25 of 60 with std::mt19937 rng(1):

    HellaSwag: std::uniform_int_distribution<size_t> d(0, left.size() - 1); take left[d(rng)], erase it.
    Others: float scale = 1 / (1.f + (float) rng.max()); j = int(scale * rng() * left.size()); take left[j],
    left[j] = left.back(), left.pop_back().
    """
    assert hellaswag_order(60, 25) == [
        *(25, 59, 42, 55, 0, 8, 18, 58, 9, 15, 5, 26, 12, 27, 22, 41, 28, 54, 34, 49, 24, 19, 43, 33, 11)
    ]
    assert scaled_order(60, 25) == [
        *(25, 58, 41, 53, 0, 7, 16, 52, 54, 12, 4, 19, 8, 18, 15, 30, 17, 40, 22, 34, 56, 50, 26, 48, 51)
    ]


def test_jsonl_holds_the_same_tasks(tmp_path: Path) -> None:
    keys = {
        "hellaswag": ("context", "endings", "label"),
        "multiple-choice": ("question", "choices", "answer"),
    }
    for kind, (stem, choices, right) in keys.items():
        tasks = read_tasks(FILES[kind], kind)  # type: ignore[index, arg-type]
        path = tmp_path / f"{kind}.jsonl"
        rows = [{stem: t.stem, choices: t.choices, right: next(iter(t.right))} for t in tasks]
        path.write_text("\n".join(map(json.dumps, rows)))
        assert read_tasks(path, kind) == tasks  # type: ignore[arg-type]
    tasks = read_tasks(FILES["winogrande"], "winogrande")
    path = tmp_path / "winogrande.jsonl"
    rows = [
        {
            "sentence": f"{t.stem}_{t.tail}",
            "option1": t.choices[0],
            "option2": t.choices[1],
            "answer": str(next(iter(t.right)) + 1),
        }
        for t in tasks
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_tasks(path, "winogrande") == tasks


def test_winogrande_reads_quoted_sentences(tmp_path: Path) -> None:
    path = tmp_path / "wg.csv"
    path.write_text('0,"Ann, who sang, saw _ today.",Bo,Cy,2\n1,A _ b.,c,d,1\n2,last _ line,is,dropped,1\n')
    assert read_tasks(path, "winogrande") == [
        Task("Ann, who sang, saw ", ("Bo", "Cy"), frozenset([1]), " today."),
        Task("A ", ("c", "d"), frozenset([0]), " b."),
    ]


def test_multiple_choice_takes_several_right_answers(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<I", len(value)) + value.encode()

    answers = struct.pack("<I", 3) + b"".join(map(text, "abc")) + struct.pack("<3i", 1, 0, 1)
    path = tmp_path / "mc.bin"
    path.write_bytes(struct.pack("<II", 1, 8) + text("q") + answers + struct.pack("<I", 0))
    assert read_tasks(path, "multiple-choice") == [Task("q", ("a", "b", "c"), frozenset([0, 2]))]


def test_mcnemar_is_the_exact_binomial() -> None:
    def result(right: str) -> TaskResult:
        return TaskResult("hellaswag", tuple(Scored((0.0,), 0, r == "1") for r in right), 0.25)

    found = mcnemar(result("1111110000"), result("1000000001"))
    # five tasks only a got right, one only b: 2 · (1 + 6) / 2⁶
    assert (found.only_a, found.only_b) == (5, 1)
    assert found.p_value == pytest.approx(14 / 64)
    assert mcnemar(result("1010"), result("1010")).p_value == 1.0


def test_the_row_of_a_winogrande_file_that_llama_cpp_drops_is_said(tmp_path: Path) -> None:
    path = tmp_path / "wg.csv"
    rows = "sentence,option1,option2,answer\n"
    path.write_text("\ufeffqID," + rows + "0,A _ b.,c,d,1\n1,last _ line,is,dropped,1\n", encoding="utf-8")
    assert [task.stem for task in read_tasks(path, "winogrande")] == ["A "]
    assert "line 3 is not asked, as in llama.cpp" in str(unasked(path, "winogrande"))
    path.write_text("0,A _ b.,c,d,1\n1,last _ line,is,asked,1\n\n")
    assert [task.stem for task in read_tasks(path, "winogrande")] == ["A ", "last "]
    assert unasked(path, "winogrande") is None
    assert unasked(FILES["hellaswag"], "hellaswag") is None
