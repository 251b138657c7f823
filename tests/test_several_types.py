"""Several types from one reading of the model: each file the one made alone, and the output rule for all."""

import json
import re
import shutil

import pytest

from quantmill.gguf_io import GGUFError, GGUFSource
from quantmill.gguf_io.partial import PartialFile
from quantmill.jobs.errors import PlanError
from quantmill.jobs.quantize import Job, run, run_jobs
from quantmill.recipe import Recipe
from tests.support.command_line import quantize
from tests.support.measure_models import EXAMPLE, tiny

IMATRIX = str(EXAMPLE / "imatrix.gguf")
TYPES = ("Q4_0", "COPY", "Q4_K_M", "Q4_K_S")


def jobs_of(source, folder, types, **options):
    return [Job(str(source), folder / f"{type}.gguf", Recipe(type), **options) for type in types]


@pytest.mark.parametrize("source", [EXAMPLE, tiny("F16")])
def test_each_file_is_the_one_made_alone(tmp_path, source):
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        folder.mkdir()
    results = run_jobs(jobs_of(source, together, TYPES, imatrix=IMATRIX, max_buffer_bytes=1 << 20))
    for job, result in zip(jobs_of(source, alone, TYPES, imatrix=IMATRIX), results, strict=True):
        one = run(job)
        assert result.paths[0].read_bytes() == one.paths[0].read_bytes()
        assert (result.plan, result.file_bytes) == (one.plan, one.file_bytes)
    assert len(list(together.iterdir())) == len(TYPES)


def test_the_model_is_read_once(tmp_path, monkeypatch):
    """Every row of what all of them convert is fetched once."""
    fetched: dict[str, int] = {}
    fetch = GGUFSource.fetch

    def counting(self, name, first_row=0, n_rows=None):
        rows = fetch(self, name, first_row, n_rows)
        fetched[name] = fetched.get(name, 0) + len(rows[0])
        return rows

    monkeypatch.setattr(GGUFSource, "fetch", counting)
    results = run_jobs(jobs_of(tiny("F16"), tmp_path, ("Q4_0", "Q5_K_M", "Q8_0"), max_buffer_bytes=1 << 18))
    converted = [entry for entry in results[0].plan.entries if entry.converted]
    assert fetched == {entry.source: entry.n_weights // entry.n_cols for entry in converted}


def test_one_that_cannot_be_made_stops_all(tmp_path):
    jobs = jobs_of(tiny("F16"), tmp_path, ("Q4_0", "IQ2_XXS", "Q8_0"))
    with pytest.raises(PlanError, match="IQ2_XXS needs importance"):
        run_jobs(jobs)
    assert not list(tmp_path.iterdir())


def test_two_names_of_one_file_are_refused(tmp_path):
    (tmp_path / "Q8_0.gguf").symlink_to(tmp_path / "Q4_0.gguf")
    with pytest.raises(PlanError, match=r"Q8_0\.gguf: is the same file as .*Q4_0\.gguf"):
        run_jobs(jobs_of(tiny("F16"), tmp_path, ("Q4_0", "Q8_0")))


def test_space_is_needed_for_all_of_them(tmp_path, monkeypatch):
    jobs = jobs_of(tiny("F16"), tmp_path, ("Q4_0", "Q8_0"))
    usage = shutil.disk_usage(tmp_path)
    largest = run(Job(str(tiny("F16")), tmp_path / "one.gguf", Recipe("Q8_0"))).file_bytes
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=largest + 100))
    with pytest.raises(PlanError, match=r"Q8_0\.gguf: needs \d+ bytes and \d+ beside it"):
        run_jobs(jobs)


def test_none_appears_where_the_disk_fails_for_one_at_the_end(tmp_path, monkeypatch):
    """Nor has one its name while another may still fail."""
    sync = PartialFile.sync

    def failing(self):
        if self.final.name == failing_name:
            raise GGUFError(f"{self.final}: the disk is full")
        sync(self)

    monkeypatch.setattr(PartialFile, "sync", failing)
    for failing_name in ("Q4_0.gguf", "Q8_0.gguf"):
        with pytest.raises(GGUFError, match=failing_name):
            run_jobs(jobs_of(tiny("F16"), tmp_path, ("Q4_0", "Q8_0")))
        assert not list(tmp_path.iterdir())


# The command


def test_a_folder_takes_default_names(tmp_path, capsys):
    code, out, _ = quantize(capsys, tiny("F16"), tmp_path, "q4_0,Q8_0", "1", "--json")
    shown = json.loads(out)
    assert code == 0
    assert [one["files"] for one in shown] == [
        [str(tmp_path / "ggml-model-Q4_0.gguf")],
        [str(tmp_path / "ggml-model-Q8_0.gguf")],
    ]
    alone = run(Job(str(tiny("F16")), tmp_path / "alone.gguf", Recipe("Q8_0")))
    assert (tmp_path / "ggml-model-Q8_0.gguf").read_bytes() == alone.paths[0].read_bytes()


def test_a_pattern_names_them_and_a_dry_run_shows_all_plans(tmp_path, capsys):
    _, out, _ = quantize(capsys, EXAMPLE, tmp_path / "x-{type}.gguf", "Q4_0,Q5_0,F16", "--dry-run")
    for type in ("Q4_0", "Q5_0", "F16"):
        assert f"x-{type}.gguf\n\ntensor" in out
    assert not list(tmp_path.iterdir())
    _, out, _ = quantize(capsys, EXAMPLE, tmp_path / "x-{type}.gguf", "Q4_0,F16", "--dry-run", "--json")
    plans = json.loads(out)
    assert [plan["output"] for plan in plans] == [
        str(tmp_path / f"x-{type}.gguf") for type in ("Q4_0", "F16")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{folder}/one.gguf", "Q4_0,Q8_0"],
            r"is one file, for 2 types; give a folder, or a name with \{type\}",
        ),
        (["{folder}/nowhere", "Q4_0,Q8_0"], r"there is no such folder; create it"),
        (["{folder}", "Q4_0,q4_0"], r"Q4_0,q4_0: Q4_0 is there twice"),
        (["{folder}", "Q4_0,Q8_1x"], r"unknown file type 'Q8_1x'"),
        (["Q4_0,Q8_O", "8"], r"unknown file type 'Q8_O'; did you mean Q8_0\?"),
        (["{folder}", "Q4_0,Q8_0", "--compensate", "--calibration", "x"], r"--compensate takes one type"),
    ],
)
def test_what_is_meant_otherwise_is_refused(tmp_path, capsys, arguments, message):
    words = [word.replace("{folder}", str(tmp_path)) for word in arguments]
    code, _, err = quantize(capsys, tiny("F16"), *words)
    assert code == 2
    assert re.search(message, " ".join(err.split()))
    assert not list(tmp_path.iterdir())
