"""Names from files: none of them steers a terminal, ends a line, or leads a link astray."""

import re
from urllib.parse import quote

import numpy as np
import pytest

from quantmill import cli
from quantmill.escape import escaped
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.imatrix.store import Entry, ImportanceMatrix, save
from quantmill.measure.record import ModelFile, ModelResult, Run, TensorRow
from quantmill.measure.report import HeatMap, card, collect, page
from quantmill.measure.report.setting import Prediction, Rival, Setting
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.recipe_models import value

ESC = "\x1b]0;title\x07\x1b[2J\x9b2J\u202e\x7f"
EVIL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def steering(tmp_path_factory):
    """A folder whose model, tensors, text and importance matrix have names that steer a terminal."""
    folder = tmp_path_factory.mktemp("names") / ESC.replace("\x07", "")
    folder.mkdir()
    with open_source(tiny("F16")) as source:
        specs = source.specs()
        data = {spec.name: source.read(spec.name).copy() for spec in specs}
        keys = source.metadata
    keys = keys.set("general.name", value(f"name{ESC}"))
    extra = f"blk.0.{ESC}\nerror: forged.weight"
    tensors = [OutputTensor(spec.name, spec.shape, spec.type) for spec in specs]
    with GGUFSink(folder / "model.gguf", keys, [*tensors, OutputTensor(extra, (96, 4), "F16")]) as sink:
        for spec in specs:
            sink.write(spec.name, data[spec.name])
        sink.write(extra, np.full((4, 96), np.nan, np.float16).view(np.uint8))
        sink.commit()
    entry = Entry(np.ones((1, 96), np.float32), np.array([4]))
    save(folder / "imatrix.gguf", ImportanceMatrix({extra: entry}, (f"text{ESC}",), 1))
    (folder / "text.txt").write_text((EXAMPLE / "evaluation.txt").read_text())
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "quantize {}/model.gguf Q4_K_M",
        "quantize --dry-run {}/model.gguf Q4_K_M",
        "quantize --dry-run --json {}/model.gguf Q4_K_M",
        "quantize --imatrix {}/imatrix.gguf {}/model.gguf {}/out.gguf Q4_K_M",
        "quantize --tensor-type-file {}/model.gguf {}/model.gguf Q4_K_M",
        "quantize {}/nothing.gguf Q4_K_M",
        "quantize {}/model.gguf {}/no/out.gguf Q8_0",
        "convert {}/model.gguf {}/out.gguf",
        "convert {}/nothing {}/out.gguf",
        "imatrix stats {}/imatrix.gguf",
        "imatrix stats --suggest {}/imatrix.gguf",
        "imatrix diff {}/imatrix.gguf {}/imatrix.gguf",
        "imatrix merge {}/imatrix.gguf {}/imatrix.gguf -o {}/merged.gguf",
        "imatrix {}/model.gguf -f {}/text.txt -c 16 --chunks 1 -o {}/new.gguf",
        "evaluate {}/model.gguf --text {}/text.txt -c 16 --chunks 1",
        "evaluate {}/nothing.gguf --text {}/text.txt",
        "report {}/run.json",
        "recipe {}/model.gguf",
        "polish {}/model.gguf --base {}/model.gguf --calibration {}/text.txt -o {}/new.gguf",
        "polish {}/model.gguf --base {}/nothing --calibration {}/text.txt -o {}/new.gguf",
        "\x1b[2J",
        "quantize \x1b[2J.gguf \x1b[2J.gguf Q9\x1b",
        "quantize --tensor-type \x1b=q9 m.gguf Q8_0",
        "quantize --\x1b[2J",
        "imatrix --\x1b[2J",
        "quantize --threads \x1b[2J m.gguf Q8_0",
    ],
)
def test_names_from_files_never_reach_the_terminal_raw(capsys, steering, words):
    cli.main([word.replace("{}", str(steering)) for word in words.split(" ")])
    out, err = capsys.readouterr()
    assert out or err
    for shown in (out, err):
        assert not EVIL.search(shown), EVIL.search(shown)
        assert "\nerror: forged" not in shown


def test_what_is_escaped():
    assert escaped("a\x1b[0m\n\u202eb\udce9") == "a\\x1b[0m\\x0a\\u202eb\\xe9"
    assert escaped("two\nlines", keep="\n") == "two\nlines"
    plain = "tensor µ 模型 🦙 ‍ é blk.0.attn_q.weight"
    assert escaped(plain) == plain


def test_names_on_the_page_and_the_card_are_escaped():
    row = TensorRow(f"blk.0.{ESC}.weight", "Q4_K", 256, 144)
    file = ModelFile(f"m{ESC}\n# forged", f"/x/{ESC}", 144, 256, 4.5, "0" * 64, f"llama{ESC}", (row,))
    run = Run("0", f"quantmill {ESC}", "now", "m", "cpu", (ModelResult(file),), notes=(ESC,))
    maps = [HeatMap(ESC, (ESC,), ("0",), ((ESC,),), ((0.5,),), ((ESC,),))]
    report = collect([run], f"title{ESC}", maps)
    name = f"m{ESC}\n# forged"
    knows = Setting(
        rivals=(Rival(f"o{ESC}/r", {name: 1}),), predictions=(Prediction(name, 0.1, 0.2),), reasons={name: ESC},
        recipes={name: f"{ESC}.toml"}, importance=(f"{ESC}.gguf", (f"t`{ESC}",)), datasets=(ESC,), fit=ESC,
        left_out=(ESC,),
    )  # fmt: skip
    for document in (card(report, setting=knows), page(report, knows)):
        assert f"({quote(ESC)}.toml)" in document or f"href='{quote(ESC)}.toml'" in document
    assert f"]({quote(ESC, safe='')})" in card(report)  # of the file itself
    documents = [card(report, setting=knows), page(report, knows), page(report), card(report)]
    for document in (*documents, page(collect([run])), card(collect([run]))):
        assert not EVIL.search(document)
        assert "\n# forged" not in document
        assert "\\x1b]0;title" in document or "\\\\x1b]0;title" in document
