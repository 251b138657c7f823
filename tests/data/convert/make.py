"""Make the data of the conversion tests anew. Needs transformers and llama.cpp's source tree.

    python tests/data/convert/make.py --llama.cpp path/to/llama.cpp [--only NAME ...]

tensors.json: what transformers' save_pretrained writes for each model of models.json (names and shapes).
golden.json: what llama.cpp's converter makes of the models of tests/support/convert_models.py: metadata, and a
digest of every tensor. The made-up tokenizers have no hash that llama.cpp knows; it is told their pre-tokenizer, which
our converter has to recognise by itself.
golden_projectors.json: the same of the parts that see, of projectors.json (tests/support/projector_models.py), in every
type.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# What transformers' class calls settings that Nomic's own has under GPT-2's names.
NEWER = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
}
sys.path.insert(0, str(HERE.parents[2]))

# ruff: noqa: E402 - the repository is not installed for this script
from tests.support.convert_models import MODELS, write_model
from tests.support.llama_converter import Job, convert
from tests.support.projector_models import MODELS as PROJECTORS
from tests.support.projector_models import TYPES, write_projector


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama.cpp", dest="llama_cpp", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--projectors", action="store_true", help="Only golden_projectors.json.")
    options = parser.parse_args()
    if options.projectors:
        _write("golden_projectors.json", projectors(options.llama_cpp))
        return
    shapes = _read("tensors.json")
    missing = [name for name in options.only if not MODELS[name].tensors_of and name not in shapes]
    shapes |= {name: saved_shapes(name) for name in missing}
    _write("tensors.json", shapes)  # delete the file to take them anew
    golden = _read("golden.json")
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {name: job(name, Path(scratch)) for name in options.only}
        for name, error in zip(jobs, convert(list(jobs.values()), options.llama_cpp), strict=True):
            if error:
                raise SystemExit(f"{name}: {error}")
            golden[name] = digest_gguf(Path(jobs[name].out))
            print(name, len(golden[name]["tensors"]), "tensors", flush=True)
    _write("golden.json", {key: golden[key] for key in MODELS if key in golden})


def projectors(llama_cpp: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {}
        for name in PROJECTORS:
            directory = write_projector(name, Path(scratch) / name / "Tiny-Model-1B-Instruct")
            for kind in TYPES:
                out, options = f"{scratch}/{name}-{kind}.gguf", ["--mmproj", "--outtype", kind]
                raw = PROJECTORS[name].get("raw", False)
                jobs[f"{name} {kind}"] = Job(str(directory), out, "", options, raw)
        errors = convert(list(jobs.values()), llama_cpp)
        if any(errors):
            raise SystemExit("\n".join(errors))
        return {name: digest_gguf(Path(made.out)) for name, made in jobs.items()}


def saved_shapes(name: str) -> dict[str, list[int]]:
    import torch
    from safetensors import safe_open
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageTextToText

    from quantmill.models.fill import of_config

    model = MODELS[name]
    settings = model.config if model.whole else model.config.get("text_config", model.config)
    settings = {NEWER.get(key, key): value for key, value in settings.items() if key != "quantization_config"}
    config = CONFIG_MAPPING[settings.pop("model_type", model.model_type)](**settings)
    config.pad_token_id = 0
    with tempfile.TemporaryDirectory() as scratch:
        made = of_config if "For" in model.architecture else AutoModel.from_config
        made = AutoModelForImageTextToText.from_config if model.whole else made
        made(config, dtype=torch.bfloat16).save_pretrained(scratch)
        with safe_open(f"{scratch}/model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    renamed = published_v4 if model.model_type == "deepseek_v4" else published
    return {renamed(key): shape for key, shape in shapes.items()}


def published_v4(name: str) -> str:
    """DeepSeek V4's own names, some of which save_pretrained takes for others or leaves."""
    name = re.sub(r"\.attn\.norm\.", ".attn.kv_norm.", name.removeprefix("model."))
    return name.replace("embed_tokens.", "embed.").replace("hc_head.hc_", "hc_head_")


def published(name: str) -> str:
    """The name that published checkpoints have where save_pretrained's renaming goes too far: dense layers of
    Kimi-Linear are no block_sparse_moe, of Hunyuan 4 only attention has a linear_gate, and hc_pre stands elsewhere."""
    name = re.sub(r"block_sparse_moe\.((?:gate|up|down)_proj)", r"mlp.\1", name)
    name = re.sub(r"(mlp|shared_experts)\.linear_gate\.", r"\1.gate_proj.", name)
    return re.sub(r"hc_pre\.(hc_(?:attn|mlp)_layer)\.", r"\1.hc_pre.", name).replace(
        "hc_pre.hc_head.", "hc_head."
    )


def job(name: str, scratch: Path) -> Job:
    """The model written, and what the converter is to do with it."""
    directory = write_model(name, scratch / name / "Tiny-Model-1B-Instruct")
    pre = MODELS[name].tokenizer.partition("+")[0]
    return Job(str(directory), str(scratch / f"{name}.gguf"), pre, MODELS[name].options, MODELS[name].raw)


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
