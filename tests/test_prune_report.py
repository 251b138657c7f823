"""Card and page of a pruned file: what was left out, and the damage by layer and by expert, as the file says."""

from __future__ import annotations

from quantmill.measure.record import ModelFile, ModelResult, Run, _fact, describe
from quantmill.measure.report import card, collect, page
from quantmill.measure.speed import Speed
from tests.support.measure_models import EXAMPLE

FACTS = {
    "layers": "1",
    "layers_of": "4",
    "influence": "0.97,0.11,0.12,0.13",
    "measured": "1,2",
    "measured_kld": "0.358306,0.4",
    "experts": "6,7,0,3",
    "experts_layers": "0,2",
    "experts_of": "8",
    "experts_share": "0.01,0.02,0,0.25",
    "chosen_by": "experts by REAP; layers by measured KL divergence",
    "kld": "0.2",
    "kld_unhealed": "0.5",
}


def result_of(name: str, facts: dict[str, str]) -> ModelResult:
    keys = {f"quantmill.pruned.{key}": value for key, value in facts.items()}
    file = ModelFile(name, f"{name}.gguf", 1 << 20, 1 << 20, 8.0, name[0] * 64, "qwen3moe", (), keys)
    return ModelResult(file, speed=(Speed("tg128", 20.0, 0.25, 5),))


def report_of(facts: dict[str, str], **others: dict[str, str]):
    results = (result_of("cut", facts), *(result_of(name, more) for name, more in others.items()))
    return collect([Run("0", "quantmill evaluate speed x", "now", "m", "llama-bench", results)])


def test_what_was_left_out_is_on_card_and_page():
    report = report_of(FACTS)
    text = card(report)
    assert "| 1 of 4 | 2 of 8 | experts by REAP; layers by measured KL divergence | 0.5000 | 0.2000 |" in text
    assert "| 1 | 0.1100 | 0.3583 | yes |" in text
    assert "| 3 | 0.1300 |  |  |" in text
    assert "| 2 | 0, 3 | 25.0 % |" in text
    html = page(report)
    for words in ("Left out", "Damage by layer", "Damage by expert", "25.0 %", "0.3583"):
        assert words in html


def test_several_files_are_told_apart_and_those_alike_are_shown_once():
    text = card(report_of(FACTS, alike=FACTS, other={**FACTS, "layers": "2", "experts": "6,7,1,3"}))
    assert "| [cut](cut.gguf) | 1 | 0.1100 | 0.3583 | yes |" in text
    assert "| [other](other.gguf) | 2 | 0.1200 | 0.4000 | yes |" in text
    assert "| [other](other.gguf) | 2 | 1, 3 | 25.0 % |" in text
    assert "| [alike](alike.gguf) | 1 | 0.1100" not in text


def test_files_that_are_whole_have_no_such_part():
    report = report_of({})
    assert "Left out" not in card(report) + page(report)


def test_a_file_may_say_anything():
    text = card(report_of({"experts": "<b>,x", "experts_layers": "0", "experts_share": "y", "kld": "z"}))
    assert "<b>" not in text.replace("\\<b>", "")  # escaped as all words from files


def test_lists_of_words_are_no_facts():
    assert _fact("quantmill.pruned.layers", [3, 4]) == "3,4"
    assert _fact("quantmill.pruned.layers", ["a", "b"]) is None


def test_lists_are_facts(tmp_path):
    from quantmill.cli import main

    output = tmp_path / "cut.gguf"
    assert main(["quantize", "--prune-experts", "2", str(EXAMPLE), str(output), "COPY"]) == 0
    facts = describe(output).facts
    assert facts["quantmill.pruned.experts_layers"] == "0,1,2,3"
    assert len(facts["quantmill.pruned.experts"].split(",")) == 8
