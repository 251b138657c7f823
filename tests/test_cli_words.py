"""Words around the commands: typos, wrong usage, help, how much is said, names that steer terminals."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantmill import cli
from quantmill.commands.console import print_warnings, set_verbosity
from quantmill.errors import counted, folded
from quantmill.imatrix.store import Entry, ImportanceMatrix, save
from tests.support.measure_models import EXAMPLE, tiny

ROOT = Path(__file__).parent.parent
COMMANDS = [[name] for name in cli.COMMANDS]
COMMANDS += [["imatrix", name] for name in ("collect", "stats", "merge", "convert", "diff")]
COMMANDS += [["evaluate", name] for name in ("compare", "speed")]
COMMANDS += [["prune", name] for name in ("scan", "cut")]


def run(capsys, *words):
    capsys.readouterr()
    code = cli.main(list(map(str, words)))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


# Typos and wrong usage


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["quantise"], "no such command: quantise; did you mean quantize?"),
        (["imatrix", "statz"], "no such command: statz; did you mean stats?"),
        (["evaluate", "speeed"], "no such command: speeed; did you mean speed?"),
        (["imatrics", "x.gguf"], "did you mean imatrix?"),
        ([str(EXAMPLE), "Q4_K_M"], f"did you mean quantmill quantize {EXAMPLE}?"),
        (["quantize", "--thread", "2"], "no such option: --thread; did you mean --ray, --threads?"),
        (["quantize", "--threads", "two", "m.gguf", "Q8_0"], "'--threads'"),
        (["quantize", "--threads", "-2", "m.gguf", "Q8_0"], "--threads -2: must be at least 0"),
        (["evaluate", "m.gguf", "-t", "-1"], "--threads -1: must be at least 0"),
        (["evaluate", "m.gguf", "--chunks", "0"], "--chunks 0: must be at least 1"),
        (["imatrix", "stats", "m.gguf", "--share", "3"], "--share 3.0: must lie above 0"),
        (["imatrix", "stats", "m.gguf", "--suggest", "--more-type", "foo"], "unknown tensor type 'foo'"),
        (["imatrix"], ""),
        (["types", "extra"], "extra"),
        (["cache", "clear"], "(clear); did you mean --clear? ("),
        (["cache", "--json", "clear"], "did you mean --clear?"),
        (["imatrix", "--stats", "m.gguf"], "no such option: --stats; did you mean the command stats?"),
        (["evaluate", "--speed", "m.gguf"], "no such option: --speed; did you mean the command speed?"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, words, part):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert part in err
    if len(words) > 1 or "quantise" in words:
        assert (err.count("\n"), err[:7]) == (1, "error: ")


# llama.cpp's own words


def test_the_words_of_llama_imatrix(capsys, tmp_path):
    matrix, text = EXAMPLE / "imatrix.gguf", EXAMPLE / "evaluation.txt"
    assert run(capsys, "imatrix", "--in-file", matrix, "--show-statistics") == run(
        capsys, "imatrix", "stats", matrix
    )
    for name, words in (
        ("a", ["--in-file", matrix, f"--in-file={matrix}"]),
        ("b", ["merge", matrix, matrix]),
    ):
        assert run(capsys, "imatrix", *words, "-o", tmp_path / f"{name}.gguf")[0] == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    shared = ["-f", text, "-c", 64, "--chunks", 1, "-t", 1]
    assert run(capsys, "imatrix", "-m", tiny("F16"), *shared, "-ngl", 0, "-o", tmp_path / "c.gguf")[0] == 0
    assert run(capsys, "imatrix", tiny("F16"), *shared, "--device", "cpu", "-o", tmp_path / "d.gguf")[0] == 0
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "d.gguf").read_bytes()


def test_the_words_of_llama_perplexity(capsys):
    shared = ["-f", EXAMPLE / "evaluation.txt", "--ctx-size", 64, "--chunks", 1]
    by_option = run(capsys, "evaluate", "-m", tiny("F16"), *shared, "-ngl", 99)
    assert by_option[0] == 0
    assert by_option[1] == run(capsys, "evaluate", tiny("F16"), *shared)[1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["evaluate", "a.gguf", "-m", "b.gguf", "-f", "t"], "not both"),
        (["imatrix", "-f", "t"], "expected one model"),
        (["imatrix", "--in-file", "a.gguf", "-m", "b.gguf", "-f", "t"], "quantmill imatrix merge"),
        (["imatrix", "a.gguf", "-f", "t", "-ngl", "0", "--device", "cuda"], "contradict each other"),
        (["evaluate", "a.gguf", "-f", "t", "--dtype", "int4"], "--dtype int4: known: auto, float32"),
        (["evaluate", "a.gguf", "-f", "t", "--dtype", "float23"], "did you mean float32?"),
        (["imatrix", "a.gguf", "-f", "t", "--device", "cida"], "did you mean cuda?"),
    ],
)
def test_words_that_contradict_each_other(capsys, words, part):
    code, out, err = run(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err


@pytest.mark.parametrize(
    "option",
    ["--threads", "--device", "--dtype", "--ctx", "--chunks", "--resume", "--force", "--json", "--dry-run"],
)
def test_shared_options_are_the_same_in_all_commands(option):
    """Same spellings and default wherever there is such an option. polish has measured defaults of its own, and
    squeeze's context is the one that shall fit into the memory."""
    from typer.main import get_command

    found = {}
    others = [(["squeeze"], "--ctx")]
    root = get_command(cli.app)
    for words in COMMANDS:
        command = root.get_command(None, words[0])
        command = command.commands[words[1]] if len(words) > 1 else command
        for param in command.params:
            if option in param.opts and (words, option) not in others and words != ["polish"]:
                found[" ".join(words)] = (param.opts, param.default)
    assert found
    assert len({str(one) for one in found.values()}) == 1, found


def options_with_values():
    """Each command and each of its options that takes a value."""
    from typer.main import get_command

    root = get_command(cli.app)
    for words in COMMANDS:
        command = root.get_command(None, words[0])
        command = command.commands[words[1]] if len(words) > 1 else command
        for param in command.params:
            if param.opts[0].startswith("-") and not param.is_flag:
                yield words, max(param.opts, key=len)


def test_an_empty_value_is_refused(capsys):
    """Of `--text "$TEXT"` with a variable that is not set; a path of no letters would mean this folder."""
    found = list(options_with_values())
    assert (["evaluate", "compare"], "--text") in found
    assert len(found) > 100
    for words, option in found:
        for way in ([option, ""], [f"{option}="]):
            if option in ("--include-weights", "--exclude-weights"):  # every name contains it
                continue
            code, out, err = run(capsys, *words, *way)
            assert (code, out, err.count("\n")) == (2, "", 1), (words, way)
            assert option in err


def test_an_empty_argument_is_refused(capsys):
    for words in ([""], ["quantize", ""], ["quantize", "a.gguf", "", "Q8_0"], ["report", ""]):
        code, out, err = run(capsys, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        before = ["quantmill", *words][words.index("")]
        assert f"the argument behind {before} is empty" in err


def test_one_thing_is_no_plural():
    assert counted(1, "tensor") == "1 tensor"
    assert counted(0, "tensor") == "0 tensors"
    assert counted(1, "matrix", "matrices") == "1 matrix"
    assert counted(2, "matrix", "matrices") == "2 matrices"


# Help


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_help_is_never_cut(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    for flag in ("-h", "--help"):
        code, out, _ = run(capsys, *words, flag)
        assert code == 0
        lines = [line.rstrip() for line in out.splitlines()]
        assert not [line for line in lines if line.endswith(("...", "…")) and "[" not in line]
        assert max(map(len, lines)) <= 80
    if words:
        assert "--quiet" in out
        assert "--verbose" in out


@pytest.mark.parametrize(("group", "option"), [("imatrix", "--from-chunk"), ("evaluate", "--base-file")])
def test_a_group_shows_the_options_of_its_default_command(capsys, group, option):
    assert option in run(capsys, group, "-h")[1]


def test_version_both_ways(capsys):
    assert run(capsys, "-V") == run(capsys, "--version")
    assert re.fullmatch(r"quantmill \d+\.\d+\.\d+\n", run(capsys, "-V")[1])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("quantmill quan", "quantize"), ("quantmill quantize --tensor-type-f", "--tensor-type-file")],
)
def test_the_shell_completes(typed, expected):
    words = typed.split(" ")
    places = {"_QUANTMILL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "quantmill"], env=os.environ | places, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == [expected]


# How much is said


def test_quiet_and_verbose(capsys, tmp_path):
    words = ["quantize", tiny("F16"), tmp_path / "out.gguf", "Q8_0"]
    assert "quantizing " in run(capsys, *words)[2]
    for quiet in (["-q", *words], [*words, "--quiet"]):
        code, out, err = run(capsys, *quiet)
        assert code == 0
        assert re.fullmatch(r"warning: \S+out\.gguf is replaced: .*\n", err)  # never left unsaid
        assert out.startswith("written ")
        (tmp_path / "out.gguf").unlink()
        assert run(capsys, *quiet)[2] == ""
    assert "quantizing " in run(capsys, *words)[2]  # each call for itself
    assert "\nblk.0.attn_q.weight: F16 -> Q8_0, " in run(capsys, "-v", *words)[2]


def test_alike_messages_are_one_line_with_a_count(capsys):
    alike = [f"blk.{i}.attn_q.weight: 96 columns, Q4_K needs a multiple of 256" for i in range(3)]
    other = "output.weight: holds I32, which cannot be converted to Q4_K"
    assert folded([alike[0], other, *alike[1:]]) == [f"{alike[0]} (and 2 more like it)", other]
    options = ["--tensor-type a=Q8_0: decides nothing", "--tensor-type b=Q8_0: decides nothing"]
    assert folded(options) == options
    set_verbosity()
    print_warnings(alike)
    assert capsys.readouterr().err.count("\n") == 1
    set_verbosity(verbose=True)
    print_warnings(alike)
    set_verbosity()
    assert capsys.readouterr().err.count("\n") == 3


def test_a_suggestion_is_a_file_of_types(capsys, tmp_path):
    """`imatrix stats --suggest > types.txt` is read by `quantize --tensor-type-file types.txt`, comments and all."""
    code, out, _ = run(capsys, "imatrix", "stats", "--suggest", EXAMPLE / "imatrix.gguf")
    assert code == 0
    (tmp_path / "types.txt").write_text(out)
    words = ["--dry-run", "--tensor-type-file", tmp_path / "types.txt", tiny("F16"), "Q4_K_M"]
    code, out, err = run(capsys, "quantize", *words)
    assert code == 0
    assert re.search(r"blk\.\d\.attn_q\.weight .* Q6_K ", out)
    assert "decides nothing" not in err


def test_matrices_of_different_models_are_merged_with_a_warning(capsys, tmp_path):
    for name in ("a", "b"):
        entry = Entry(np.ones((1, 4), np.float32), np.array([4]))
        save(tmp_path / f"{name}.gguf", ImportanceMatrix({f"{name}.weight": entry}, (), 1))
    words = [tmp_path / "a.gguf", tmp_path / "b.gguf", "-o", tmp_path / "c.gguf"]
    code, _, err = run(capsys, "imatrix", "merge", *words)
    assert code == 0
    assert err.startswith(f"warning: no tensor in common with the other matrices: {words[0]}, {words[1]};")
    assert err.count("\n") == 1
    assert "in common" not in run(capsys, "imatrix", "merge", words[0], words[0], *words[2:])[2]


def test_the_cache_is_shown_and_cleared(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, size in (("cpu/a", 3000), ("codebooks/b", 48)):
        path = tmp_path / "quantmill" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    code, out, _ = run(capsys, "cache", "--json")
    found = json.loads(out)
    assert (code, found["bytes"], found["total"]) == (0, {"cpu": 3000, "codebooks": 48}, 3048)
    assert found["directory"] == str(tmp_path / "quantmill")
    assert "2.98 KiB" in run(capsys, "cache")[1]
    assert "removed" in run(capsys, "cache", "--clear")[1]
    assert not (tmp_path / "quantmill").exists()
    assert run(capsys, "cache", "--clear")[0] == 0
