"""Every way an evaluation can be asked for in vain ends in one plain line, and leaves no file behind."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantmill import cli
from quantmill.gguf_io import GGUFSink, OutputTensor, TensorSpec, open_source
from quantmill.jobs.evaluate_request import Job
from quantmill.measure.errors import MeasureError
from quantmill.measure.logits_file import LogitsFile
from quantmill.models.devices import usable_device
from quantmill.models.errors import ModelError
from quantmill.models.model import load
from quantmill.models.scoring import cut
from tests.support.measure_models import DATA, EXAMPLE, tiny, written_again

C16 = DATA / "llama-perplexity-c16.logits"
TEXT = EXAMPLE / "evaluation.txt"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 1) -> str:
    """The one line of `quantmill evaluate ARGUMENTS`, which must fail with this exit code and say nothing else."""
    assert cli.main(["evaluate", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def changed(tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The F16 model with one tensor's values changed."""

    def one(spec, raw: np.ndarray) -> np.ndarray:
        return change(raw.view(np.float16)).view(np.uint8) if spec.name == name else raw

    return written_again(tiny("F16"), tmp_path / "changed.gguf", one)


def test_text_too_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    line = fails(capsys, tiny("F16"), "-f", text)
    assert re.search(r"the text has \d+ tokens, a context of 512 needs at least 1024", line)


def test_text_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes(b"na\xefve" * 1000)
    assert "byte 2 (0xef) is not UTF-8" in fails(capsys, tiny("F16"), "-f", text)


def test_contexts_that_score_nothing() -> None:
    with pytest.raises(ModelError, match="context of 3 tokens scores nothing"):
        cut([1] * 100, 3)


def test_vocabularies_of_different_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(tiny("F16"))
    path = tmp_path / "small.gguf"
    tensors = []
    for spec in source.specs():
        shape = (spec.shape[0], 2000) if spec.name == "token_embd.weight" else spec.shape
        tensors.append((OutputTensor(spec.name, shape, spec.type), source.read(spec.name)[: shape[-1]]))
    with GGUFSink(path, source.metadata, [tensor for tensor, _ in tensors]) as sink:
        for tensor, raw in tensors:
            sink.write(tensor.name, raw if tensor.name == "token_embd.weight" else source.read(tensor.name))
        sink.commit()
    line = fails(capsys, "--base", tiny("F16"), "-f", TEXT, path)
    assert "has a vocabulary of 2000, the base" in line
    assert "of 2048" in line


def test_vocabularies_that_split_differently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from quantmill.gguf_io import GGUFValueType, Metadata, MetaValue

    source = open_source(tiny("F16"))
    metadata = dict(source.metadata)
    tokens = list(metadata["tokenizer.ggml.tokens"].value)
    tokens[400:1200] = reversed(tokens[400:1200])
    metadata["tokenizer.ggml.tokens"] = MetaValue(GGUFValueType.ARRAY, tokens, GGUFValueType.STRING)
    path = written_again(tiny("F16"), tmp_path / "other.gguf", metadata=Metadata(metadata))
    assert "split the text differently" in fails(capsys, "--base", tiny("F16"), "-f", TEXT, path)


def test_wrong_context_for_a_base_file(capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "--base-file", C16, "-c", "512", tiny("Q4_0"))
    assert "was computed with a context of 16, not 512; use --ctx 16" in line


def test_base_file_of_another_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = bytearray(C16.read_bytes())
    raw[12:16] = struct.pack("<i", 1024)
    row = 2 * 1024 + 8
    path = tmp_path / "other.logits"
    path.write_bytes(bytes(raw[: 20 + 4 * 32]).replace(raw[20:148], bytes(128)) + bytes(row * 14))
    assert "has a vocabulary of 1024" in fails(capsys, "--base-file", path, tiny("Q4_0"))


@pytest.mark.parametrize("cut_at", [4, 15, 100, 5000, -1])
def test_truncated_base_file(cut_at: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.logits"
    path.write_bytes(C16.read_bytes()[:cut_at])
    with pytest.raises(
        MeasureError, match=r"truncated: \d+ bytes, \d+ expected|neither a llama.cpp _logits_ file"
    ):
        LogitsFile(path)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, b"GGUF", "neither a llama.cpp"),
        (8, struct.pack("<i", -16), "the header is damaged"),
        (8, struct.pack("<i", 1 << 30), "truncated"),
        (12, struct.pack("<i", 0), "the header is damaged"),
        (16, struct.pack("<i", 1), "longer than its header says"),
        (20, struct.pack("<i", 70000), "a token outside its vocabulary"),
        (20, struct.pack("<i", -5), "a token outside its vocabulary"),
    ],
)
def test_damaged_base_file(position: int, value: bytes, message: str, tmp_path: Path) -> None:
    raw = bytearray(C16.read_bytes())
    raw[position : position + len(value)] = value
    path = tmp_path / "damaged.logits"
    path.write_bytes(raw)
    with pytest.raises(MeasureError, match=message):
        LogitsFile(path)


def test_logits_that_are_not_finite_name_the_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values[3, 5] = np.nan
        return values

    path = changed(tmp_path, "blk.1.attn_output.weight", spoil)
    line = fails(capsys, path, "-f", TEXT, "--chunks", "1")
    assert "logits are not finite" in line
    assert "blk.1.attn_output.weight holds values that are not finite: the model is damaged" in line


@pytest.mark.parametrize("command", ["evaluate", "evaluate --stream", "imatrix -o {tmp}/i.gguf"])
@pytest.mark.parametrize("type", ["F16", "Q8_0"])
def test_a_damaged_weight_is_named_and_no_overflow_blamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, type: str
) -> None:
    """What a norm spoils is first seen behind it."""
    name = "blk.1.ffn_norm.weight" if type == "F16" else "blk.1.attn_q.weight"

    def spoiled(spec: TensorSpec, raw: np.ndarray) -> np.ndarray:
        if spec.name == name:
            raw[0, :4] = 0xFF
        return raw

    path = written_again(tiny(type), tmp_path / "m.gguf", spoiled)
    words = command.format(tmp=tmp_path).split()
    assert cli.main([*words, str(path), "-f", str(TEXT), "--chunks", "2"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{name} holds values that are not finite: the model is damaged" in line
    assert "overflow" not in line


def test_experts_that_are_not_finite_are_found(tmp_path: Path) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values[:] = np.inf
        return values

    path = changed(tmp_path, "blk.2.ffn_down_exps.weight", spoil)
    import torch

    with pytest.raises(ModelError, match=r"blk\.2\.ffn_down_exps\.weight"):
        load(path).logits(torch.arange(20)[None])


def test_interrupted_saving_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = changed(tmp_path, "blk.0.attn_v.weight", lambda values: values * np.float16(np.inf))
    fails(capsys, "--base", bad, "-f", TEXT, "--chunks", "1", "--save-logits", tmp_path / "base.logits")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed.gguf"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model to evaluate"),
        (["MODEL"], "nothing to measure"),
        (["MODEL", "-f", "TEXT", "--save-logits", "x"], "saving predictions needs --base and --text"),
        (["MODEL", "--base", "MODEL", "--base-file", "x"], "not both"),
        (["MODEL", "--base-file", "x", "-f", "TEXT"], "holds its own tokens"),
        (["MODEL", "-f", "TEXT", "--chunks", "0"], "--chunks 0: must be at least 1"),
        (["MODEL", "-f", "TEXT", "-c", "-5"], "--ctx -5: must be at least 1"),
        (["MODEL", "-f", "TEXT", "-t", "-1"], "--threads -1: must be at least 0"),
        (["MODEL", "-f", "nosuchfile"], "nosuchfile: No such file"),
        (["nosuchmodel.gguf", "-f", "TEXT"], "nosuchmodel.gguf: No such file"),
        (["MODEL", "-f", "TEXT", "--dtype", "int4"], "--dtype int4: known: auto, float32"),
        (["MODEL", "-f", "TEXT", "--device", "cuda:77"], "device 'cuda:77' is not available"),
        (["TEXT", "-f", "TEXT"], "not a GGUF file"),
        (["MODEL", "--lm-eval", "arc_easy"], "lm-eval"),
        (["speed"], "no model to time"),
        (["speed", "MODEL", "--tests", "pp512,xx"], "speed test 'xx'"),
        (["speed", "MODEL", "--repeats", "0"], "--repeats 0"),
        (["speed", "MODEL", "--bench", "nosuchbinary"], "no such llama-bench"),
    ],
)
def test_requests_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str({"MODEL": tiny("F16"), "TEXT": TEXT}.get(word, word)) for word in arguments]
    if not words:
        with pytest.raises(MeasureError, match=message):
            Job(models=())
        return
    files = (
        "No such file",
        "not a GGUF",
        "cuda:77",
        "lm-eval",
        "no such llama-bench",
    )
    code = 1 if any(part in message for part in files) else 2
    assert message in fails(capsys, *words, code=code)


def test_a_gguf_without_a_model() -> None:
    with pytest.raises(ValueError, match="imatrix"):
        load(EXAMPLE / "imatrix.gguf")


def test_an_architecture_that_torch_does_not_run(tmp_path: Path) -> None:
    from quantmill.gguf_io import GGUFValueType, Metadata, MetaValue

    source = open_source(tiny("F16"))
    metadata = dict(source.metadata)
    metadata["general.architecture"] = MetaValue(GGUFValueType.STRING, "rwkv7")
    path = tmp_path / "rwkv.gguf"
    with GGUFSink(path, Metadata(metadata), [OutputTensor("token_embd.weight", (256, 8), "F32")]) as sink:
        sink.write("token_embd.weight", np.zeros((8, 1024), dtype=np.uint8))
        sink.commit()
    with pytest.raises(
        ModelError,
        match=r"'rwkv7': quantmill cannot run it in torch .*llama-imatrix and llama-perplexity may$",
    ):
        load(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    source = open_source(tiny("F16"))
    specs = [spec for spec in source.specs() if spec.name != "blk.3.ffn_up_exps.weight"]
    path = tmp_path / "holes.gguf"
    with GGUFSink(path, source.metadata, [OutputTensor(s.name, s.shape, s.type) for s in specs]) as sink:
        for spec in specs:
            sink.write(spec.name, source.read(spec.name))
        sink.commit()
    with pytest.raises(ModelError, match=r"blk\.3\.ffn_up_exps\.weight is missing"):
        load(path)


def test_unknown_task_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--n-tasks 0: must be at least 1" in fails(
        capsys, tiny("F16"), "--hellaswag", DATA / "hs.txt", "--tasks", "0", code=2
    )
    assert "raise --ctx" in fails(capsys, tiny("F16"), "--hellaswag", DATA / "hs.txt", "-c", "8")
    assert "not a multiple-choice file" in fails(capsys, tiny("F16"), "--multiple-choice", DATA / "wg.csv")


def test_the_record_names_the_device_that_ran(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = [
        "evaluate",
        tiny("Q4_0"),
        "-f",
        TEXT,
        "-c",
        "16",
        "--chunks",
        "2",
        "--device",
        "auto",
        "-o",
        path,
    ]
    assert cli.main([str(word) for word in command]) == 0
    device = json.loads(path.read_text())["device"]
    assert device.startswith(f"{usable_device('auto')}, float32")
    assert "auto" not in device


@pytest.mark.parametrize("words", [["evaluate", "MODEL"], ["imatrix", "MODEL", "-o", "OUT"]])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "cuda:77", "device 'cuda:77' is not available"),
        ("--device", "xpu:77", "; torch finds"),
        ("--device", "tpu", "--device tpu: unknown device"),
        ("--tokenizer", "nodir", "nodir: is no directory"),
    ],
)
def test_devices_and_tokenizers_that_are_not_there(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    option: str,
    value: str,
    message: str,
) -> None:
    """`imatrix --device cuda` without CUDA printed 49 lines, `evaluate --tokenizer nodir` 23."""
    places = {"MODEL": str(tiny("F16")), "OUT": str(tmp_path / "out.gguf")}
    arguments = [places.get(word, word) for word in words]
    assert cli.main([*arguments, "-f", str(TEXT), option, value]) == (2 if value == "tpu" else 1)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []
