"""What a squeeze is made of: what is kept between runs, what fits a card, which candidate wins."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from quantmill.commands.squeeze_view import Events, Lines, Live
from quantmill.gguf_io import GGUFValueType, Metadata, MetaValue
from quantmill.gguf_io.partial import partial_path
from quantmill.jobs.errors import JobError
from quantmill.jobs.memory import Memory, aside, fingerprint
from quantmill.jobs.source_card import SourceCard, source_card
from quantmill.jobs.squeeze_choice import best_of, candidates_of, compared
from quantmill.jobs.squeeze_request import Candidate, Job, Measured, Wish, size_label, wishes_of
from quantmill.jobs.squeeze_watch import CandidateRow, SqueezeWatcher, StageRow
from quantmill.measure.divergence import TokenScores, summarize
from quantmill.measure.record import ModelFile, ModelResult, Run
from quantmill.measure.report import Prediction, Setting, collect, page
from quantmill.recipe import RecipeError
from quantmill.recipe.fit import BUFFER_BYTES, fit
from quantmill.recipe.presets import FILE_TYPES


def test_what_is_kept_is_found_under_what_it_was_made_from(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "deep" / ".quantmill")
    key = memory.key("base", {"text": "a", "chunks": 4})
    assert memory.facts(key) is None
    memory.keep(key, {"n": 1})
    assert Memory(memory.directory).facts(memory.key("base", {"chunks": 4, "text": "a"})) == {"n": 1}
    for other in (
        memory.key("base", {"text": "a", "chunks": 5}),
        memory.key("rest", {"text": "a", "chunks": 4}),
    ):
        assert memory.facts(other) is None
    assert memory.keys() == [key]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_facts_that_were_cut_off_are_no_facts(tmp_path: Path, content: bytes) -> None:
    memory = Memory(tmp_path)
    key = memory.key("base", {})
    memory.file(key, ".json").write_bytes(content)
    assert memory.facts(key) is None


def test_what_a_killed_run_laid_aside_goes_with_the_next(tmp_path: Path) -> None:
    """Files of gigabytes, under names that nobody asks for again."""
    memory = Memory(tmp_path)
    kept = memory.file("candidate", ".gguf")
    for path in (kept, aside(kept), partial_path(aside(kept))):
        path.write_bytes(b"x")
    with memory.held():
        assert sorted(path.name for path in tmp_path.iterdir()) == ["candidate.gguf", "lock"]


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    before = fingerprint([path])
    assert json.loads(json.dumps(before)) == fingerprint([path])
    path.write_bytes(b"three")
    assert fingerprint([path]) != before


def metadata(**numbers: int) -> Metadata:
    items = [("general.architecture", MetaValue(GGUFValueType.STRING, "llama"))]
    items += [
        (f"llama.{k.replace('__', '.')}", MetaValue(GGUFValueType.UINT32, v)) for k, v in numbers.items()
    ]
    return Metadata(items)


def test_the_cache_of_llama_3_8b() -> None:
    """32 layers, 8 heads of keys and values of 128: 128 KiB a token, 1 GiB for 8192 (llama.cpp prints the same)."""
    llama = metadata(
        block_count=32, embedding_length=4096, attention__head_count=32, attention__head_count_kv=8
    )
    found = fit(16 * 10**9, 8192, llama)
    assert found.cache == 1 << 30
    assert found.file == 16 * 10**9 - (1 << 30) - BUFFER_BYTES - 480_000_000
    assert str(found.file) in found.formula


def test_a_context_that_fills_the_memory_is_refused() -> None:
    llama = metadata(block_count=32, embedding_length=4096, attention__head_count=32)
    with pytest.raises(RecipeError, match="a smaller --ctx helps"):
        fit(8 * 10**9, 131072, llama)
    with pytest.raises(RecipeError, match="block_count"):
        fit(8 * 10**9, 128, metadata())


def job(**changes: object) -> Job:
    made = Job(Path("m"), "M", Path("out"), (Path("c.txt"),), Path("e.txt"), types=("Q4_K_M",))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_wishes_are_named_once() -> None:
    wishes = wishes_of(job(types=("q4_k_m", "Q4_K_M"), sizes=(700 << 20, int(4.6 * 2**30))))
    assert [wish.label for wish in wishes] == ["Q4_K_M", "700MiB", "4.6GiB"]
    with pytest.raises(JobError, match=r"two of the sizes are called 4\.6GiB"):
        wishes_of(job(sizes=(int(4.6 * 2**30), int(4.6 * 2**30) + 1)))
    with pytest.raises(JobError, match="nothing to make"):
        job(types=())
    assert size_label(1000) == "1000B"


def test_a_size_is_tried_with_found_types_and_the_largest_presets_that_fit() -> None:
    sizes = {"Q2_K": 100, "Q3_K_M": 200, "Q4_K_M": 300, "Q6_K": 400}
    found = candidates_of(Wish("300B", ceiling=300), sizes.get)
    assert [one.label for one in found] == ["300B, found types", "Q3_K_M", "Q4_K_M"]
    assert found[0].target is not None
    with pytest.raises(JobError, match="the least is Q2_K with 100 bytes"):
        candidates_of(Wish("99B", ceiling=99), sizes.get)
    (own,) = candidates_of(Wish("Q6_K", file_type="Q6_K"), sizes.get)
    assert own.file_type == "Q6_K"
    assert set(sizes) <= set(FILE_TYPES)


def measured(label: str, n_bytes: int, chunk_kld: list[float]) -> Measured:
    n = len(chunk_kld)
    zeros = np.zeros(n)
    scores = TokenScores(
        *(np.array(chunk_kld) if name == "kld" else zeros for name in TokenScores.__dataclass_fields__)
    )
    file = ModelFile(label, label, n_bytes, 1, 4.0, "", "llama", ())
    result = ModelResult(file, divergence=summarize(scores), chunk_kld=tuple(chunk_kld))
    return Measured(Candidate(Wish(label), label), label, n_bytes, result)


def test_the_better_file_wins_and_among_equals_the_smaller() -> None:
    noise = [0.1, 0.2, 0.15, 0.3, 0.12, 0.22, 0.18, 0.25]
    good = measured("good", 300, noise)
    same = measured("same", 200, [a + d for a, d in zip(noise, [0.01, -0.008] * 4, strict=True)])
    bad = measured("bad", 100, [a + 0.05 for a in noise])
    assert best_of([bad, good])[0].key == "good"  # worse in each of eight chunks: p = 2 / 256
    assert best_of([good, same, bad])[0].key == "same"
    few = [measured("small", 1, [0.9] * 5), measured("good", 2, [0.1] * 5)]
    assert best_of(few)[0].key == "good"  # of five chunks no test can be sure
    (test,) = compared([good.result, bad.result])
    assert (test.a, test.b) == ("good", "bad")
    assert test.difference == pytest.approx(-0.05)
    assert test.p_value == pytest.approx(2 / 256)


def test_of_equals_of_one_size_a_faster_one_wins_else_the_least_divergence() -> None:
    noise = [0.1, 0.2, 0.15, 0.3, 0.12, 0.22, 0.18, 0.25]
    good = measured("good", 1001, noise)
    same = measured("same", 1000, [a + d for a, d in zip(noise, [0.01, -0.008] * 4, strict=True)])
    large = measured("large", 2000, [a + d for a, d in zip(noise, [-0.01, 0.0101] * 4, strict=True)])
    chosen, reason = best_of([good, same, large])
    assert (chosen.key, reason) == (
        "good",
        "cannot be told from same, large and is the least of those of its size",
    )
    seen: list[list[str]] = []

    def speeds(some: Sequence[Measured]) -> list[float]:
        seen.append([one.key for one in some])
        return [rates[one.key] for one in some]

    rates = {"good": 100.0}
    for rates["same"], winner in ((104.0, "good"), (106.0, "same")):
        assert best_of([good, same, large], speeds)[0].key == winner
    assert seen == [["good", "same"]] * 2  # only those that could be chosen are timed


ROWS = (StageRow("the original", "done", 3.2), StageRow("importance", "running"), StageRow("Q4_0", "waiting"))
MEASURED = CandidateRow("Q4_0", "Q4_0, compensated", 2 << 20, 0.0123, 0.0004, 28.5)


def watched(watcher: SqueezeWatcher) -> None:
    watcher.stages(ROWS)
    watcher.began("importance", 4, "chunks")
    watcher.progressed(1, "PPL 3")
    watcher.note("a \x1b[31mremark")
    watcher.measured(MEASURED)
    watcher.chosen("Q4_0", "Q4_0, compensated", "the only candidate")


def test_the_view_on_a_terminal_holds_stages_bar_and_table() -> None:
    out = io.StringIO()
    with Live(Console(file=out, force_terminal=True, width=110)) as view:
        watched(view)
        shown = view.shown()
    assert "1 of 3 stages done" in shown
    for line in (" ✓ the original  3 s", " ▸ importance", " · Q4_0"):
        assert line in shown
    assert "1/4" in shown
    assert "PPL 3" in shown
    table = shown[shown.index("candidate") :]
    for cell in ("✓", "Q4_0, compensated", "2.00 MiB", "0.012300 ± 0.000400", "28.5000"):
        assert cell in table
    assert "a \\x1b[31mremark" in out.getvalue()  # what comes from files does not steer the terminal


def test_lines_and_events_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as lines:
        watched(lines)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "importance"
    assert "Q4_0, compensated: 2.00 MiB, KLD 0.012300 ± 0.000400" in said
    assert said[-1] == "Q4_0: Q4_0, compensated, the only candidate"
    with Events() as events:
        watched(events)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in told] == ["stages", "began", "note", "measured", "chosen"]
    assert told[0]["stages"][0] == {"label": "the original", "state": "done", "seconds": 3.2}
    assert (told[3]["kld"], told[3]["bytes"]) == (0.0123, 2 << 20)


CARD = """---
license: other
license_name: tiny-licence
license_link: https://example.org/licence
language:
- en
- de
base_model: [org/base, org/other]
---
# A model
"""


def test_the_card_of_the_original_says_its_licence_and_languages(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert source_card(snapshot) == SourceCard("org/name")
    (snapshot / "README.md").write_text(CARD)
    found = source_card(snapshot)
    assert (found.license, found.license_name) == ("other", "tiny-licence")
    assert (found.language, found.base_model) == (("en", "de"), "org/base")
    (snapshot / "README.md").write_text("---\nlicense: [\n---\n")  # no YAML
    assert source_card(snapshot) == SourceCard("org/name")
    (snapshot / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert source_card(snapshot) == SourceCard("org/name")
    assert source_card(tmp_path / "model.gguf") == SourceCard()


def test_predictions_are_drawn_against_what_was_measured() -> None:
    file = ModelFile("m-4MiB", "m-4MiB.gguf", 4 << 20, 1, 4.0, "a", "llama", ())
    result = replace(measured("m-4MiB", 4 << 20, [0.1] * 8).result, file=file)
    report = collect([Run("0", "quantmill squeeze m", "now", "here", "cpu", (result,))])
    setting = Setting(
        predictions=(Prediction("m-4MiB", 0.02, 0.018),), reasons={"m-4MiB": "less than others"}
    )
    shown = page(report, setting)
    assert "measured loss, nats against predicted loss, nats" in shown
    assert "m-4MiB: predicted 0.02000, measured 0.01800" in shown
    assert "<li>m-4MiB: less than others</li>" in shown
    assert "predicted loss" not in page(report)
