"""The record of an evaluation, and the page and the card made of it."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from quantmill import cli
from quantmill.measure.errors import MeasureError
from quantmill.measure.perplexity import Estimate, perplexity
from quantmill.measure.record import ModelResult, Run, from_json, to_csv, to_json
from quantmill.measure.report import card, collect, page, tables
from quantmill.measure.report.collect import without_paths
from quantmill.measure.speed import Speed
from tests.support.measure_models import DATA, EXAMPLE, directory, tiny


@functools.cache
def record() -> Run:
    """A small evaluation through the command line: base, two quants, text and tasks."""
    path = directory() / "run.json"
    arguments = ["--base", *map(tiny, ("F16", "Q4_0", "Q8_0")), "-f", EXAMPLE / "evaluation.txt", "-c", 128]
    tasks = ["--hellaswag", DATA / "hs.txt", "--multiple-choice", DATA / "mc.bin", "--tasks", 10]
    command = ["evaluate", *arguments, "--chunks", 8, *tasks, "-t", 1, "-o", path]
    torch.set_num_threads(1)
    assert cli.main([str(word) for word in command]) == 0
    return from_json(path)


def speed_record() -> Run:
    file = record().models[0].file
    speeds = (Speed("pp512", 100.0, 1.5, 5), Speed("tg128", 20.0, 0.25, 5))
    return Run(
        "0", "quantmill evaluate speed x", "now", "m", "llama-bench", (ModelResult(file, speed=speeds),)
    )


def test_record_says_what_was_measured() -> None:
    run = record()
    assert run.base is not None
    assert run.text is not None
    assert (run.text.n_ctx, run.text.n_chunks, run.text.n_scored) == (128, 8, 8 * 63)
    assert [result.file.name for result in run.models] == ["tiny-Q4_0", "tiny-Q8_0"]
    assert run.ranking == ("tiny-Q8_0", "tiny-Q4_0")
    file = run.models[0].file
    assert file.bytes == tiny("Q4_0").stat().st_size
    assert file.sha256 == __import__("hashlib").sha256(tiny("Q4_0").read_bytes()).hexdigest()
    assert file.bits_per_weight == pytest.approx(4.5, abs=0.05)
    assert {task.kind for task in run.models[0].tasks} == {"hellaswag", "mc"}
    assert len(run.models[0].tasks[0].right) == 10
    divergence = run.models[0].divergence
    assert divergence is not None
    assert divergence.kld.value == pytest.approx(sum(run.models[0].chunk_kld) / 8)
    assert {comparison.measure for comparison in run.comparisons} == {"kld", "hellaswag", "mc"}


def test_record_survives_json() -> None:
    path = directory() / "copy.json"
    path.write_text(to_json(record()))
    assert from_json(path) == record()
    # No NaN or Infinity, which other JSON readers refuse.
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_what_is_not_known_is_null_and_a_dash(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One task has no standard error; it used to be NaN in JSON, which other readers refuse, and "± nan" in tables."""
    path = tmp_path / "run.json"
    command = ["evaluate", tiny("Q8_0"), "--hellaswag", DATA / "hs.txt", "--tasks", 1, "-o", path]
    assert cli.main([*map(str, command)]) == 0
    assert "± –" in capsys.readouterr().out
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["models"][0]["tasks"][0]["accuracy"]["error"] is None
    run = from_json(path)
    assert math.isnan(run.models[0].tasks[0].accuracy.error)
    text = page(collect([run])) + card(collect([run])) + to_csv(run)
    assert "nan" not in re.sub(r"[\w.-]*nan\w+|\w+nan[\w.-]*", "", text)
    assert "± –" in text


def test_a_broken_models_perplexity_is_no_number(tmp_path: Path) -> None:
    assert perplexity(np.array([800.0, 900.0])).value == math.inf
    result = record().models[0]
    broken = replace(result, ppl=Estimate(math.inf, math.nan))
    run = replace(record(), models=(broken,))
    data = json.loads(to_json(run), parse_constant=lambda name: pytest.fail(name))
    assert data["models"][0]["ppl"] == {"value": None, "error": None}
    assert "– ± –" in page(collect([run]))
    assert "inf" not in to_csv(run)


def test_csv_has_a_row_a_model() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(record()))))
    assert [row["name"] for row in rows] == ["tiny-F16", "tiny-Q4_0", "tiny-Q8_0"]
    divergence = record().models[0].divergence
    assert divergence is not None
    assert float(rows[1]["kld"]) == divergence.kld.value
    assert float(rows[1]["same_top"]) == divergence.same_top.value
    assert rows[0]["kld"] == ""
    assert 0 <= float(rows[2]["hellaswag"]) <= 1


def test_table_and_files_of_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["evaluate", tiny("Q8_0"), "-f", EXAMPLE / "evaluation.txt", "-c", 16, "--chunks", 2]
    assert cli.main([*map(str, command), "-o", str(tmp_path / "run.csv")]) == 0
    assert (tmp_path / "run.csv").read_text().startswith("name,bytes,bits_per_weight,ppl")
    assert re.search(r"tiny-Q8_0 +7.81 MiB +8.53 +\d+\.\d{4} ± \d+\.\d{4}", capsys.readouterr().out)
    assert cli.main([*map(str, command), "--json", "-o", str(tmp_path / "run.json")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "run.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.csv", "run.json"]
    assert from_json(tmp_path / "run.json").models[0].ppl is not None


class _Page(HTMLParser):
    """Collects what a page would fetch, and its text; complains about tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "data")
        ]
        if tag in ("script", "iframe", "link", "img", "object", "embed"):
            self.fetched.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_needs_nothing_else() -> None:
    text = page(collect([record(), speed_record()]))
    parsed = _Page()
    parsed.feed(text)
    assert parsed.open == []
    assert parsed.fetched == []
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_page_shows_the_numbers() -> None:
    text = page(collect([record(), speed_record()], title="A <model> & more"))
    parsed = _Page()
    parsed.feed(text)
    words = " ".join(parsed.words)
    divergence = record().models[0].divergence
    assert divergence is not None
    assert "A <model> & more" in words
    assert f"{divergence.kld.value:.6f} ± {divergence.kld.error:.6f}" in words
    assert "100.00 ± 1.50" in words
    assert record().models[0].file.sha256 in words
    assert without_paths(record().command) in words
    assert str(directory()) not in text
    assert str(EXAMPLE) not in text
    assert text.count("<svg") == 2
    assert text.index("<svg") < text.index("<summary>Paired tests")
    head = re.findall(r"<th>([^<]*)</th>", text[text.index("Perplexity and divergence") :])
    assert head[:2] == ["model", "KLD mean"]  # both fit a narrow screen


def test_commands_are_shown_without_paths() -> None:
    command = "quantmill evaluate --base /home/me/a b.gguf --text=../t.txt -c 512 'x y/q.gguf' Q4_K_M.gguf"
    shown = "quantmill evaluate --base a b.gguf --text=t.txt -c 512 q.gguf Q4_K_M.gguf"
    assert without_paths(command) == shown


def test_the_title_is_what_the_model_calls_itself() -> None:
    run = record()
    assert run.base is not None
    named = replace(run.base, file=replace(run.base.file, facts={"general.name": "Tiny Ünïted"}))
    assert collect([replace(run, base=named)]).title == "Tiny Ünïted"
    unnamed = replace(run.base, file=replace(run.base.file, facts={}))
    assert collect([replace(run, base=unnamed)]).title == "tiny-F16"


def test_the_card_tells_where_importance_and_changes_come_from() -> None:
    run = record()
    facts = {
        "quantize.imatrix.file": "im.gguf",
        "quantize.imatrix.dataset": "calib.txt",
        "quantize.imatrix.chunks_count": "20",
        "quantmill.pruned_layers": "2",
        "general.license": "mit",
    }
    changed = replace(run.models[0], file=replace(run.models[0].file, facts=facts))
    text = card(collect([replace(run, models=(changed,), base=None)]))
    assert "tiny-Q4\\_0: importance matrix `im.gguf` from `calib.txt`, 20 chunks" in text
    assert "`quantmill.pruned_layers` 2" in text
    assert 'license: "mit"' in text


def test_the_choice_by_memory_changes_with_size() -> None:
    run = record()

    def sized(result: ModelResult, gigabytes: float) -> ModelResult:
        return replace(result, file=replace(result.file, bytes=int(gigabytes * 1e9)))

    small, good = sized(run.models[0], 6.0), sized(run.models[1], 9.9)
    rows = tables.choices(collect([replace(run, models=(small, good))])).rows
    # 6.0 · 1.2 = 7.2 fits 8 GB; 9.9 · 1.2 = 11.88 fits 12 GB
    assert [row[:2] for row in rows] == [("8 GB", "tiny-Q4_0"), ("12 GB", "tiny-Q8_0")]


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = json.loads(to_json(record()))
    for model in [*old["models"], old["base"]]:
        del model["file"]["facts"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert from_json(path).models[0].file.facts == {}
    del old["models"][0]["file"]["bytes"]
    path.write_text(json.dumps(old))
    with pytest.raises(MeasureError, match="damaged evaluation record"):
        from_json(path)


def test_card_has_a_header_and_tables() -> None:
    text = card(collect([record(), speed_record()]), "org/model", "apache-2.0", "me/model-GGUF")
    header, _, body = text.removeprefix("---\n").partition("\n---\n")
    lines = header.splitlines()
    assert 'base_model: "org/model"' in lines
    assert 'license: "apache-2.0"' in lines
    assert lines[lines.index("tags:") + 1] == "- gguf"
    tables = re.findall(r"(?:^\|.*\|\n)+", body, re.M)
    assert len(tables) == 7  # files, which one, quality, percentiles, tasks, speed, types
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(counts) == 1
    assert "tiny-Q4\\_0" in body
    assert "[tiny-Q4\\_0](tiny-Q4_0.gguf)" in body
    assert "hf download me/model-GGUF tiny-Q8_0.gguf" in body  # the better one, and 2 GB hold both
    assert str(directory()) not in text
    assert str(EXAMPLE) not in text
    with pytest.raises(MeasureError, match="cannot stand in a model card"):
        card(collect([record()]), "a\nb: c")


def test_report_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record()
    imatrix = EXAMPLE / "imatrix.gguf"
    out = tmp_path / "deep" / "report"
    command = ["report", directory() / "run.json", "-o", out, "--imatrix", imatrix, "--base-model", "org/m"]
    assert cli.main([str(word) for word in command]) == 0
    assert capsys.readouterr().out.split() == [str(out / "index.html"), str(out / "README.md")]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "index.html"]
    assert "imatrix.gguf: importance" in (out / "index.html").read_text()


def test_records_that_do_not_compare_are_refused() -> None:
    run = record()
    assert run.text is not None
    assert run.base is not None
    with pytest.raises(MeasureError, match="different texts"):
        collect([run, replace(run, text=replace(run.text, n_ctx=256))])
    other = replace(run.base, file=replace(run.base.file, sha256="0", name="other"))
    with pytest.raises(MeasureError, match="different bases"):
        collect([run, replace(run, base=other)])
