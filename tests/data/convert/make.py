"""Make the data of the conversion tests anew. Needs transformers and llama.cpp's source tree.

    python tests/data/convert/make.py --llama.cpp path/to/llama.cpp [--only NAME ...]

tensors.json: what transformers' save_pretrained writes for each model of models.json (names and shapes).
golden.json: what llama.cpp's converter makes of the models of tests/support/convert_models.py: metadata, and a
digest of every tensor. The made-up tokenizers have no hash that llama.cpp knows; it is told their pre-tokenizer, which
our converter has to recognise by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from tests.support.convert_models import MODELS, write_model  # noqa: E402 - the repository is not installed for this script

REFERENCE = """
import runpy, sys
root, pre = sys.argv[1:3]
sys.argv = [root + "/convert_hf_to_gguf.py", *sys.argv[3:]]
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama.cpp", dest="llama_cpp", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    shapes = _read("tensors.json")
    missing = [name for name in options.only if not MODELS[name].tensors_of and name not in shapes]
    shapes |= {name: saved_shapes(name) for name in missing}
    _write("tensors.json", shapes)  # delete the file to take them anew
    golden = _read("golden.json")
    for name in options.only:
        golden[name] = reference(name, options.llama_cpp)
        print(name, len(golden[name]["tensors"]), "tensors", flush=True)
        _write("golden.json", {key: golden[key] for key in MODELS if key in golden})


def saved_shapes(name: str) -> dict[str, list[int]]:
    import torch
    from safetensors import safe_open
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model = MODELS[name]
    settings = {key: value for key, value in model.config.items() if key != "quantization_config"}
    config = CONFIG_MAPPING[model.model_type](**settings)
    config.pad_token_id = 0
    with tempfile.TemporaryDirectory() as scratch:
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(scratch)
        with safe_open(f"{scratch}/model.safetensors", "pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def reference(name: str, llama_cpp: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_model(name, Path(scratch) / "Tiny-Model-1B-Instruct")
        out = Path(scratch) / "out.gguf"
        pre = MODELS[name].tokenizer.partition("+")[0]
        script = [sys.executable, "-c", REFERENCE, str(llama_cpp), pre, str(directory)]
        run = subprocess.run(
            [*script, "--outfile", str(out), *MODELS[name].options],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise SystemExit(f"{name}: {run.stderr[-3000:]}")
        return digest_gguf(out)


def digest_gguf(path: Path) -> dict[str, object]:
    """Metadata and tensors of a GGUF, long arrays as digests; read with gguf's own reader."""
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(path)
    metadata = {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            kinds = ":".join(GGUFValueType(kind).name for kind in field.types)
            value = field.contents()
            metadata[key] = [kinds, value if len(str(value)) < 200 else _sha(json.dumps(value).encode())]
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(n) for n in tensor.shape]
        tensors[tensor.name] = [tensor.tensor_type.name, shape, _sha(tensor.data.tobytes())]
    return {"metadata": metadata, "tensors": tensors}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _read(name: str) -> dict[str, object]:
    path = HERE / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(name: str, value: dict[str, object]) -> None:
    """One line for each tensor or key, so that changes show in a diff."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for mark in ('},"', '{"', '],"'):
        text = text.replace(mark, mark.replace('"', '\n"'))
    (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
