"""The command line: llama-quantize's words, exit codes, one line for every error, JSON for programs."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quantmill import cli
from quantmill.commands.console import size_text, table_text
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.imatrix.store import Entry, ImportanceMatrix, save
from tests.support.gguf_builder import gguf
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.recipe_models import metadata

ROOT = Path(__file__).parent.parent
IMATRIX = str(EXAMPLE / "imatrix.gguf")


def quantize(capsys, *words):
    """Exit code, stdout and stderr of `quantmill quantize words`."""
    capsys.readouterr()
    code = cli.main(["quantize", *map(str, words)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


def plan_of(capsys, *words, code=0):
    found, out, _ = quantize(capsys, "--dry-run", "--json", *words)
    assert found == code
    return json.loads(out)


def types_of(capsys, *words):
    return {tensor["name"]: tensor["type"] for tensor in plan_of(capsys, *words)["tensors"]}


def copy_of_model(tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny("F16").read_bytes())
    return model


# llama-quantize's own command line


@pytest.mark.parametrize("type", ["Q4_K_M", "q4_k_m", "Q4_K", "15"])
def test_types_by_name_alias_and_number(capsys, type):
    assert types_of(capsys, tiny("F16"), type) == types_of(capsys, tiny("F16"), "Q4_K_M")
    assert types_of(capsys, tiny("F16"), type)["blk.0.attn_q.weight"] == "Q4_K"


def test_the_output_is_named_after_the_type(capsys, tmp_path):
    model = copy_of_model(tmp_path)
    assert quantize(capsys, model, "q8_0")[0] == 0
    assert quantize(capsys, "--keep-split", model, "COPY", "1")[0] == 0
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["ggml-model-COPY-00001-of-00001.gguf", "ggml-model-Q8_0.gguf", "model.gguf"]


def test_output_type_and_threads(capsys, tmp_path):
    code, out, err = quantize(capsys, tiny("F16"), tmp_path / "7B.gguf", "Q8_0", "2")
    assert code == 0
    assert (tmp_path / "7B.gguf").exists()  # llama-quantize would read the name as type 7
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        *("written", "size", "bits per weight", "time", "slowest step", "engine")
    ]
    assert err.startswith("quantizing ")


def test_patterns_keep_their_order_with_files_between(capsys, tmp_path):
    (tmp_path / "types.txt").write_text("attn_k=q5_0\nattn_q=q5_1\n")
    words = [
        "--tensor-type",
        "attn_q=q8_0",
        "--tensor-type-file",
        tmp_path / "types.txt",
        "--tensor-type=attn_=q4_1",
    ]
    found = types_of(capsys, *words, tiny("F16"), "Q4_K_M")
    expected = {"attn_q": "Q8_0", "attn_k": "Q5_0", "attn_v": "Q4_1"}
    assert {part: found[f"blk.0.{part}.weight"] for part in expected} == expected
    found = types_of(
        capsys, f"--tensor-type-file={tmp_path / 'types.txt'}", *words[:2], tiny("F16"), "Q4_K_M"
    )
    assert found["blk.0.attn_q.weight"] == "Q5_1"


def test_every_other_option_reaches_the_plan(capsys):
    found = types_of(
        capsys, "--token-embedding-type", "q5_0", "--output-tensor-type", "f16", tiny("F16"), "Q4_K_M"
    )
    assert found["token_embd.weight"] == "Q5_0"
    found = types_of(capsys, "--pure", tiny("F16"), "Q4_K_M")
    assert set(found.values()) == {"Q4_K", "F32"}
    assert "blk.3.attn_q.weight" not in types_of(capsys, "--prune-layers", "1", tiny("F16"), "Q4_K_M")
    found = types_of(capsys, "--imatrix", IMATRIX, "--exclude-weights", "", tiny("F16"), "Q4_0")
    assert found["blk.0.ffn_down_exps.weight"] == "Q4_0"  # all entries excluded: as without importance
    overridden = plan_of(capsys, "--override-kv", "some.key=str:" + 100 * "x", tiny("F16"), "Q4_K_M")
    assert overridden["file_bytes"] > plan_of(capsys, tiny("F16"), "Q4_K_M")["file_bytes"] + 100
    assert plan_of(capsys, "--allow-requantize", tiny("Q8_0"), "Q4_0")["warnings"] == []
    (problem,) = plan_of(capsys, tiny("Q8_0"), "Q4_0", code=1)["problems"]
    assert re.match(r"token_embd.weight: is already quantized to Q8_0, .* \(and \d+ more like it\)$", problem)


def test_the_plan_as_one_object(capsys, tmp_path):
    plan = plan_of(capsys, tiny("F16"), tmp_path / "out.gguf", "Q4_K_M")
    assert set(plan) == {"tensors", "file_bytes", "bpw", "search", "fallbacks", "problems", "warnings"}
    assert not list(tmp_path.iterdir())
    with open_source(tiny("F16")) as source:
        shapes = {spec.name: (list(spec.shape), spec.type) for spec in source.specs()}
    assert {t["name"]: (t["shape"], t["source_type"]) for t in plan["tensors"]} == shapes
    code, out, _ = quantize(capsys, "--json", tiny("F16"), tmp_path / "out.gguf", "Q4_K_M")
    assert code == 0
    done = json.loads(out)
    assert done["file_bytes"] == plan["file_bytes"] == (tmp_path / "out.gguf").stat().st_size
    assert done["files"] == [str(tmp_path / "out.gguf")]
    n_weights = sum(int(np.prod(tensor["shape"])) for tensor in plan["tensors"])
    assert plan["bpw"] == pytest.approx(8 * sum(tensor["bytes"] for tensor in plan["tensors"]) / n_weights)


def odd_model(path):
    """One matrix whose rows no k-quant can hold."""
    with GGUFSink(path, metadata(n_layer=1), [OutputTensor("blk.0.attn_q.weight", (96, 4), "F16")]) as sink:
        sink.write("blk.0.attn_q.weight", bytes(768))
        sink.commit()
    return path


def test_fallbacks_are_shown_and_can_be_refused(capsys, tmp_path):
    model = odd_model(tmp_path / "odd.gguf")
    plan = plan_of(capsys, model, "Q4_K_M")
    assert plan["fallbacks"] == [{"name": "blk.0.attn_q.weight", "wanted": "Q4_K", "type": "Q5_0"}]
    code, out, err = quantize(capsys, "--dry-run", model, "Q4_K_M")
    assert code == 0
    assert "Q5_0 (not Q4_K)" in out
    assert "1 of 1 tensors" in err
    code, _, err = quantize(capsys, "--no-fallback", model, "Q4_K_M")
    assert (code, err.count("\n")) == (1, 1)
    assert "blk.0.attn_q.weight: 96 columns, Q4_K needs a multiple of 256" in err


def test_splits_on_the_command_line(capsys, tmp_path):
    assert quantize(capsys, "--split-max-size", "4M", tiny("F16"), tmp_path / "out.gguf", "Q8_0")[0] == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"out-{i + 1:05d}-of-{len(names):05d}.gguf" for i in range(len(names))]
    assert len(names) > 2


# Errors


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


# Around the commands


def quantmill(*words, **options):
    command = [sys.executable, "-m", "quantmill", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, **options)


def test_version_and_help():
    assert quantmill("--version").stdout.startswith("quantmill ")
    for words in ([], ["--help"], ["-h"]):
        shown = quantmill(*words)
        assert "quantmill quantize model-f16.gguf Q4_K_M" in shown.stdout + shown.stderr
        assert all(name in shown.stdout + shown.stderr for name in ("quantize", "types"))
    assert "--tensor-type-file" in quantmill("quantize", "--help").stdout


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); from quantmill import cli; code = cli.main(['--help']);"
        "print(time.process_time() - start, sorted({'numpy', 'gguf', 'rich', 'torch', 'llvmlite'} & set(sys.modules)))"
    )
    last = min(
        (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout
            for _ in range(3)
        ),
        key=lambda shown: float(shown.splitlines()[-1].split()[0]),
    ).splitlines()[-1]
    assert last.endswith(" []")
    assert float(last.split()[0]) < 0.2  # seconds of CPU: other work on the machine does not count


def test_types_lists_all(capsys):
    assert cli.main(["types"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in ("IQ2_M", "Q4_K_M", "COPY", "NVFP4"))
    assert cli.main(["types", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (len(listed["file_types"]), len(listed["tensor_types"])) == (35, 28)


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "quantmill", "types"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_a_bar_on_a_terminal(tmp_path):
    """On a terminal stderr shows the bar with bytes, rate and tensor; stdout stays a clean object."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "quantmill",
        "quantize",
        "--json",
        tiny("F16"),
        tmp_path / "o.gguf",
        "Q8_0",
    ]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.stdout is not None
    assert json.loads(process.stdout.read())["file_bytes"] > 0
    assert process.wait(timeout=60) == 0
    assert b"MB/s" in shown or b"/s" in shown
    assert b"Q8_0" in shown


def test_tables_and_sizes():
    assert table_text([("a", "1"), ("bbb", "22")], right=(1,)) == "a     1\nbbb  22"
    assert [size_text(n) for n in (12, 2048, 5 * 2**20, 3.5 * 2**30)] == [
        "12 B",
        "2.00 KiB",
        "5.00 MiB",
        "3.50 GiB",
    ]


def test_a_model_by_its_name_on_the_hub(capsys, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(repo_id, revision, **patterns):
        asked.append((repo_id, revision))
        return str(EXAMPLE)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert quantize(capsys, "--revision", "v2", "example-org/Tiny-MoE", "Q8_0")[0] == 0
    assert asked == [("example-org/Tiny-MoE", "v2")]
    assert (tmp_path / "Tiny-MoE-Q8_0.gguf").exists()
