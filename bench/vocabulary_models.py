"""Make tiny models with the real vocabularies that llama.cpp's source tree brings (models/ggml-vocab-*.gguf).

    python -m bench.vocabulary_models path/to/llama.cpp/models OUT
    python -m bench.compare_convert --converter path/to/llama.cpp/convert_hf_to_gguf.py OUT/*

Unlike the made-up vocabularies of the tests, llama.cpp's converter knows these by its own probe hash.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from quantmill.gguf_io.source import GGUFSource
from tests.support import convert_models
from tests.support.convert_models import MODELS, write_model
from tests.support.convert_tokenizers import byte_level_tokenizer
from tests.support.sentencepiece_files import sentencepiece_model

# vocabulary: (model whose architecture and tensors it gets, definition of its pre-tokenizer or spm)
VOCABULARIES = {
    "llama-bpe": ("llama-3.2", "llama-bpe"),
    "qwen2": ("qwen2", "qwen2"),
    "gpt-2": ("qwen3", "gpt-2"),
    "starcoder": ("starcoder2", "smollm"),
    "refact": ("granite", "smollm"),
    "command-r": ("cohere2", "smollm"),
    "llama-spm": ("llama", "spm"),
    "phi-3": ("phi3", "spm"),
}
ADDS_BOS = ("llama-bpe", "command-r")
CONTROL, USER_DEFINED = 3, 4


def main() -> None:
    vocabularies, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name, (model, definition) in VOCABULARIES.items():
        metadata = GGUFSource(vocabularies / f"ggml-vocab-{name}.gguf").metadata
        tokens = list(metadata.value("tokenizer.ggml.tokens"))
        directory = write_with_vocabulary(model, out / name, len(tokens))
        if definition == "spm":
            write_sentencepiece(directory, metadata, tokens)
        else:
            write_byte_level(directory, metadata, tokens, definition)
        print(directory, len(tokens), "tokens")


def write_with_vocabulary(model: str, directory: Path, vocab_size: int) -> Path:
    """The tiny model with an embedding of `vocab_size` rows."""
    known = MODELS[model]
    MODELS["sized"] = dataclasses.replace(
        known, config={**known.config, "vocab_size": vocab_size}, tensors_of=known.tensors_of or model
    )
    plain = convert_models.shapes_of
    convert_models.shapes_of = lambda name: {
        tensor: [vocab_size, *shape[1:]]
        if tensor in ("model.embed_tokens.weight", "lm_head.weight")
        else shape
        for tensor, shape in plain(name).items()
    }
    try:
        return write_model("sized", directory)
    finally:
        convert_models.shapes_of = plain


def write_byte_level(directory: Path, metadata: object, tokens: list[str], definition: str) -> None:
    types = list(metadata.value("tokenizer.ggml.token_type"))  # type: ignore[attr-defined]
    value = byte_level_tokenizer(definition)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    value["added_tokens"] = [
        {"id": i, "content": token, **flags, "special": types[i] == CONTROL}
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED)
    ]
    value["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    value["model"]["merges"] = list(metadata.value("tokenizer.ggml.merges"))  # type: ignore[attr-defined]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for kind in ("bos", "eos"):
        found = metadata.value(f"tokenizer.ggml.{kind}_token_id")  # type: ignore[attr-defined]
        if found is not None:
            settings[f"{kind}_token"] = tokens[found]
    bos = settings.get("bos_token")
    if directory.name in ADDS_BOS:
        single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        special = {bos: {"id": bos, "ids": [value["model"]["vocab"][bos]], "tokens": [bos]}}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
        value["post_processor"] = template
    _write(directory / "tokenizer.json", value)
    _write(directory / "tokenizer_config.json", settings)


def write_sentencepiece(directory: Path, metadata: object, tokens: list[str]) -> None:
    scores = metadata.value("tokenizer.ggml.scores")  # type: ignore[attr-defined]
    types = metadata.value("tokenizer.ggml.token_type")  # type: ignore[attr-defined]
    pieces = list(zip(tokens, scores, types, strict=True))
    # Tokens behind the model's own were added by JSON files.
    end = next(
        (i for i, (_, score, kind) in enumerate(pieces) if i > 3 and score == -1000.0 and kind != 6),
        len(pieces),
    )
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(pieces[:end]))
    (directory / "added_tokens.json").unlink(missing_ok=True)
    added = {
        str(i): {"content": text, "special": kind == CONTROL, "normalized": False}
        for i, (text, _, kind) in enumerate(pieces[end:], end)
    }
    settings = {"added_tokens_decoder": added, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(directory / "tokenizer_config.json", {**settings, "tokenizer_class": "LlamaTokenizer"})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
