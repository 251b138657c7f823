"""`quantmill quantize` in this process: what it prints, what it plans."""

from __future__ import annotations

import json

from quantmill import cli
from quantmill.gguf_io import GGUFSink, OutputTensor
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.recipe_models import metadata

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


def odd_model(path):
    """One matrix whose rows no k-quant can hold."""
    with GGUFSink(path, metadata(n_layer=1), [OutputTensor("blk.0.attn_q.weight", (96, 4), "F16")]) as sink:
        sink.write("blk.0.attn_q.weight", bytes(768))
        sink.commit()
    return path
