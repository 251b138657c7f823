"""The command line: llama-quantize's words, exit codes, JSON for programs."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from quantmill import cli
from quantmill.commands.console import size_text, table_text
from quantmill.gguf_io import open_source
from tests.support.command_line import IMATRIX, copy_of_model, odd_model, plan_of, quantize, types_of
from tests.support.measure_models import EXAMPLE, tiny

ROOT = Path(__file__).parent.parent


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


def test_what_a_module_warns_of_is_one_line(capsys, monkeypatch):
    """Python's own form names a file of ours and shows a line of its source."""
    monkeypatch.setattr(
        cli, "flush_output", lambda: warnings.warn("slow,\nbut \x1b[1mright", RuntimeWarning, 1)
    )
    assert cli.main(["types"]) == 0
    assert capsys.readouterr().err == "warning: slow, but \\x1b[1mright\n"


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


@pytest.mark.skipif(os.name == "nt", reason="streams are closed by a shell of Unix")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tmp_path, closed):
    """Nor does a file that is opened get the number of one of them, and what is meant for it."""
    command = [
        sys.executable,
        "-m",
        "quantmill",
        "quantize",
        str(tiny("F16")),
        str(tmp_path / "o.gguf"),
        "Q8_0",
    ]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(command)} {closed}"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert open_source(tmp_path / "o.gguf").specs()[0].type in ("F32", "Q8_0")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here is always full")
@pytest.mark.parametrize("words", ["types", "types --json"])
def test_results_that_find_no_room_are_an_error(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "quantmill", *words.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_letters_that_an_encoding_lacks(capsys):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = quantmill("imatrix", "stats", IMATRIX, env=environment)
    assert shown.stderr == ""
    assert "\\u03a3(Act\\xb2)" in shown.stdout.splitlines()[0]


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

    def snapshot_download(api, repo_id, revision, **patterns):
        asked.append((repo_id, revision))
        return str(EXAMPLE)

    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert quantize(capsys, "--revision", "v2", "example-org/Tiny-MoE", "Q8_0")[0] == 0
    assert asked == [("example-org/Tiny-MoE", "v2")]
    assert (tmp_path / "Tiny-MoE-Q8_0.gguf").exists()
