"""The command line: one line for every error, the tensor and the way out in it; advice that can be followed."""

import json
import os
import re

import numpy as np
import pytest

from quantmill import cli
from quantmill.gguf_io import GGUFSink, OutputTensor
from quantmill.imatrix.store import Entry, ImportanceMatrix, save
from tests.support.command_line import IMATRIX, copy_of_model, quantize
from tests.support.gguf_builder import gguf
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.recipe_models import metadata


def one_line(err, *parts):
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert all(part in err for part in parts), err


def test_inputs_that_are_no_models(capsys, tmp_path):
    cases = {
        "missing.gguf": (None, "no such file"),
        "text.gguf": (b"hello, this is text" * 9, "not a GGUF file"),
        "empty.gguf": (b"", "it is empty"),
        "old.gguf": (gguf(version=1), "version 1"),
        "cut.gguf": (tiny("F16").read_bytes()[:1000], "damaged"),
        "short.gguf": (tiny("F16").read_bytes()[:-4096], "the file has"),
        "bare.gguf": (gguf(), "no general.architecture"),
    }
    for name, (content, why) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        code, out, err = quantize(capsys, path, tmp_path / "out.gguf", "Q8_0")
        assert (code, out) == (1, "")
        one_line(err, why)
        assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--imatrix", "none.gguf"], ["none.gguf", "No such file"]),
        (["--imatrix", str(EXAMPLE / "config.json")], []),
        (["--tensor-type", "attn_v"], ["PATTERN=TYPE"]),
        (["--tensor-type", "(=q8_0"], ["pattern '('"]),
        (["--tensor-type", "attn_v=q9"], ["unknown tensor type 'q9'"]),
        (["--tensor-type-file", "none.txt"], ["none.txt"]),
        (["--output-tensor-type", "q9"], ["unknown tensor type"]),
        (["--prune-layers", "99"], ["no layer 99"]),
        (["--prune-layers", "x"], ["layer numbers"]),
        (["--override-kv", "a=int:x"], ["is no int"]),
        (["--device", "tpu"], ["unknown device"]),
        (["--token-embedding-type", "iq2_xs"], ["token_embd.weight: IQ2_XS needs importance"]),
    ],
)
def test_bad_options_give_one_line(capsys, tmp_path, options, parts):
    """What is wrong with the words themselves is 2, what is wrong with the files 1."""
    of_files = ("--imatrix", "--tensor-type-file", "99", "iq2_xs")
    code, out, err = quantize(capsys, *options, tiny("F16"), tmp_path / "out.gguf", "Q4_K_M")
    assert (code, out) == (1 if any(word in of_files for word in options) else 2, "")
    one_line(err, *parts)
    assert not list(tmp_path.iterdir())


def test_missing_importance_stops_before_the_work(capsys, tmp_path):
    code, _, err = quantize(capsys, tiny("F16"), tmp_path / "out.gguf", "IQ2_XXS")
    assert code == 1
    one_line(err, "needs importance", "--imatrix", "more like it")
    assert quantize(capsys, "--dry-run", tiny("F16"), "IQ2_XXS")[::2] == (1, err)


def test_the_input_is_no_output(capsys, tmp_path):
    model = copy_of_model(tmp_path)
    before = model.read_bytes()
    code, _, err = quantize(capsys, model, model, "Q8_0")
    assert code == 1
    one_line(err, "is an input")
    code, _, err = quantize(capsys, model, tmp_path / "no" / "out.gguf", "Q8_0")
    assert code == 1
    one_line(err, "there is no directory")
    assert model.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_damaged_weights_are_named(capsys, tmp_path, number):
    model = tmp_path / "bad.gguf"
    rows = np.zeros((4, 256), "<f4")
    rows[2, 9] = number
    with GGUFSink(model, metadata(n_layer=1), [OutputTensor("output.weight", (256, 4), "F32")]) as sink:
        sink.write("output.weight", rows)
        sink.commit()
    code, _, err = quantize(capsys, model, tmp_path / "out.gguf", "Q4_K_M")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: output.weight: {number} in row 2, column 9")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize(
    "words",
    [
        ["model.gguf"],
        ["model.gguf", "out.gguf", "Q8_0", "2", "3"],
        ["model.gguf", "out.gguf", "Q8_0", "two"],
        ["--include-weights", "a", "--exclude-weights", "b", "model.gguf", "Q8_0"],
        ["--keep-split", "--split-max-size", "1G", "model.gguf", "Q8_0"],
        ["--split-max-size", "4,6G", "model.gguf", "Q8_0"],
        ["--max-buffer-size", "0", "model.gguf", "Q8_0"],
        ["--no-such-option", "model.gguf", "Q8_0"],
        ["--tensor-type-file"],
    ],
)
def test_wrong_usage_is_2(capsys, words):
    code, out, err = quantize(capsys, *words)
    assert (code, out) == (2, "")
    one_line(err)


def test_unknown_file_types_and_commands(capsys):
    code, _, err = quantize(capsys, "model.gguf", "out.gguf", "Q9")
    assert code == 2
    one_line(err, "unknown file type 'Q9'", "Q4_K_M")
    for words in (["Q4_KM"], ["out.gguf", "q4km"], ["Q4_KM", "8"]):
        code, _, err = quantize(capsys, "model.gguf", *words)
        assert code == 2
        one_line(
            err,
            f"unknown file type {next(w for w in words if w.lower().startswith('q4'))!r}; did you mean Q4_K_M?",
        )
    code, _, err = quantize(capsys, "model.gguf", "./Q4_KM", "8")  # a file that is really called so
    assert code == 1
    one_line(err, "model.gguf: no such file")
    code, _, err = quantize(capsys, "--tensor-type", "attn_v=q8_O", "model.gguf", "Q8_0")
    assert code == 2
    one_line(err, "unknown tensor type 'q8_O'; did you mean Q8_0?")
    assert cli.main(["no-such-command"]) == 2
    one_line(capsys.readouterr().err, "no such command")


def test_names_that_are_no_text(capsys, tmp_path):
    name = os.fsdecode(b"caf\xe9.gguf")
    code, _, err = quantize(capsys, tmp_path / name, "Q8_0")
    assert code == 1
    one_line(err, "caf\\xe9.gguf")


# The plan says what the run would say


@pytest.mark.parametrize(
    "words",
    [
        [tiny("Q8_0"), "{}/out.gguf", "Q4_0"],
        [tiny("F16"), "{}/out.gguf", "IQ2_XXS"],
        [tiny("F16"), "{}/no/out.gguf", "Q8_0"],
        ["--device", "cuda:77", tiny("F16"), "{}/out.gguf", "Q8_0"],
        ["--imatrix", "{}/other.gguf", tiny("F16"), "{}/out.gguf", "Q4_K_M"],
        ["--imatrix", "{}/other.gguf", "--device", "cuda:77", tiny("Q8_0"), "{}/no/out.gguf", "IQ1_S"],
        ["--prune-layers", "99", tiny("F16"), "{}/out.gguf", "Q8_0"],
        ["{}/nothing.gguf", "{}/out.gguf", "Q8_0"],
    ],
    ids=range(8),
)
def test_a_dry_run_has_the_problems_and_the_exit_code_of_the_run(capsys, tmp_path, words):
    entry = Entry(np.ones((1, 256), np.float32), np.array([4]))
    save(tmp_path / "other.gguf", ImportanceMatrix({"blk.0.other.weight": entry}, (), 1))
    words = [str(word).format(tmp_path) for word in words]
    code, out, err = quantize(capsys, *words)
    assert (code, out) == (1, "")
    assert all(line.startswith("error: ") for line in err.splitlines())
    planned = quantize(capsys, "--dry-run", *words)
    assert planned[0] == code
    assert [line for line in planned[2].splitlines(True) if line.startswith("error: ")] == err.splitlines(
        True
    )
    code, out, _ = quantize(capsys, "--dry-run", "--json", *words)
    assert code == 1
    if out:
        assert [f"error: {problem}" for problem in json.loads(out)["problems"]] == err.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


def test_every_problem_is_said_once(capsys, tmp_path):
    _, _, err = quantize(capsys, "--device", "cuda:77", tiny("Q8_0"), tmp_path / "no" / "out.gguf", "Q4_0")
    already, device, place = err.splitlines()
    assert "more like it" in already
    assert "device cuda:77" in device
    assert "there is no directory" in place
    _, _, err = quantize(capsys, "-v", tiny("Q8_0"), tmp_path / "out.gguf", "Q4_0")
    assert err.count("is already quantized") > 20


def test_importance_of_another_model_is_an_error(capsys, tmp_path):
    entry = Entry(np.ones((1, 256), np.float32), np.array([4]))
    save(tmp_path / "other.gguf", ImportanceMatrix({"blk.0.other.weight": entry}, (), 1))
    code, _, err = quantize(
        capsys, "--imatrix", tmp_path / "other.gguf", tiny("F16"), tmp_path / "o.gguf", "Q4_K_M"
    )
    assert code == 1
    one_line(err, "none of its 1 entries is named as a tensor of", "was it collected from this model?")


@pytest.mark.parametrize("option", ["--include-weights", "--exclude-weights"])
def test_a_filter_of_importance_that_matches_nothing_is_a_warning(capsys, option):
    words = ["--dry-run", "--imatrix", IMATRIX, option, "attn_x", tiny("F16"), "Q4_K_M"]
    code, _, err = quantize(capsys, *words)
    assert code == 0
    assert f"warning: {option} attn_x: no entry of {IMATRIX} has this in its name\n" in err
    words[4] = "attn_q"
    assert "attn_q: no entry" not in quantize(capsys, *words)[2]


# Advice that can be followed


def model_with(path, value, type="F32", n=256):
    """One matrix whose second row holds a value at column 9, the rest of that row nothing."""
    rows = np.random.default_rng(0).standard_normal((4, n)).astype("<f4")
    rows[1] = 0
    rows[1, 9] = value
    data = rows if type == "F32" else (rows.view("<u4") >> 16).astype("<u2")
    with GGUFSink(path, metadata(n_layer=1), [OutputTensor("blk.0.ffn_up.weight", (n, 4), type)]) as sink:
        sink.write("blk.0.ffn_up.weight", data)
        sink.commit()
    return path


@pytest.mark.parametrize(
    ("value", "words", "says"),
    [
        (1e5, ["F16"], "row 1: 1e+05 in column 9 is too large for F16; choose the file type BF16 or F32"),
        (
            1e30,
            ["Q8_0"],
            "1e+30 in column 9 is too large for the scales of Q8_0; give this tensor a type that",
        ),
        (
            1e30,
            ["Q4_K_M"],
            "1e+30 in column 9 is too large for the scales of Q4_K; give this tensor a type that",
        ),
        (
            1.5e-38,
            ["--tensor-type", "up=mxfp4", "Q4_0"],
            "columns 0 to 31, at most 1.5e-38, are too small for the scales",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_explained_and_the_way_out_works(capsys, tmp_path, value, words, says):
    model = model_with(tmp_path / "in.gguf", value)
    code, _, err = quantize(capsys, *words[:-1], model, tmp_path / "out.gguf", words[-1])
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith("error: blk.0.ffn_up.weight: row 1: ")
    assert says in line
    advised = re.search(r"\((--tensor-type) (\S+)\)", line)
    followed = [*advised.groups(), words[-1]] if advised else ["BF16"]
    assert quantize(capsys, *followed[:-1], model, tmp_path / "out.gguf", followed[-1])[0] == 0


def test_importance_that_overflows_is_named_as_the_cause(capsys, tmp_path):
    model = model_with(tmp_path / "in.gguf", 1.0)
    name = "blk.0.ffn_up.weight"
    entry = Entry(np.full((1, 256), 3e38, np.float32), np.array([1]))
    save(tmp_path / "imatrix.gguf", ImportanceMatrix({name: entry}, (), 1))
    words = ["--imatrix", tmp_path / "imatrix.gguf", model, tmp_path / "out.gguf", "Q4_K_M"]
    code, _, err = quantize(capsys, *words)
    assert code == 1
    assert "the importance, 3e+38 to 3e+38, makes the sums of the search for Q4_K overflow" in err
    assert quantize(capsys, "--exclude-weights", name, *words)[0] == 0
