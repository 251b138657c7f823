"""Tokenizer files whose values are of another kind than they must be: named with file and key, or left out; and
nothing but GGUFError escapes, for there is no net under the code that reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.errors import GGUFError
from tests.support.convert_models import edit, write_model

ODD: tuple[Any, ...] = (None, 3, -1, True, "text", [], [3], ["a"], [["a"]], {}, {"a": 3}, {"content": 3})
TOKEN = {"content": "<more>", "special": True}


def model_with_every_file(name: str, directory: Path) -> Path:
    """With all files of a tokenizer that the conversion reads."""
    write_model(name, directory)
    settings = {
        "added_tokens_decoder": {"354": TOKEN},
        "additional_special_tokens": ["<x>", TOKEN],
        "extra_special_tokens": {"image_token": "<image>"},
        "bos_token": TOKEN,
        "eos_token": "</s>",
        "add_bos_token": True,
        "add_prefix_space": False,
        "chat_template": [{"name": "default", "template": "{{ a }}"}, {"name": "b", "template": "{{ b }}"}],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").write_text(json.dumps({"pad_token": TOKEN, "cls_token": "<c>"}))
    (directory / "added_tokens.json").write_text(json.dumps({"<a>": 355, "<b>": 356}))
    if not (directory / "tokenizer.json").exists():
        single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        stored = {
            "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]},
            "post_processor": {
                "type": "Sequence",
                "processors": [{"type": "TemplateProcessing", "single": single, "pair": [*single, *single]}],
            },
            "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]]},
        }
        (directory / "tokenizer.json").write_text(json.dumps(stored))
    return directory


def places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a JSON value; of long lists and objects the first two and the last."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if depth:
        keys = keys if len(keys) < 9 else [*keys[:2], keys[-1]]
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key], depth + 1)


@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3"])
@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_only_errors_for_users_escape(tmp_path: Path, name: str, file: str) -> None:
    """Every value of every file, replaced by odd ones: it converts, or it is refused in one line."""
    directory = model_with_every_file(name, tmp_path)
    original = json.loads((directory / file).read_text())
    for holder, key in list(places(original)):
        kept = holder[key]
        for odd in ODD if file != "tokenizer.json" else ODD[::2]:
            holder[key] = odd
            (directory / file).write_text(json.dumps(original))
            with suppress(GGUFError):
                open_checkpoint(directory).metadata.encode()
        holder[key] = kept


NAMED = {
    "an added token without an id": (
        "tokenizer.json",
        {"added_tokens": [{"content": "<a>"}]},
        "added_tokens must be of objects with content and id, not {'content': '<a>'}",
    ),
    "an id that is a text": ("added_tokens.json", {"<a>": "7"}, "'<a>' must be a number from 0 on, not '7'"),
    "an id below 0": ("added_tokens.json", {"<a>": -7}, "'<a>' must be a number from 0 on, not -7"),
    "an id that is no number": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"one": TOKEN}},
        "added_tokens_decoder.one must be under a number",
    ),
    "more tokens that are none": (
        "special_tokens_map.json",
        {"additional_special_tokens": ["<a>", 3]},
        "additional_special_tokens must be of texts or objects with a content, not 3",
    ),
    "a vocabulary of words": (
        "tokenizer.json",
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}},
        "its vocabulary is 'WordLevel'; of this architecture llama.cpp's converter takes BPE",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_file_and_key_are_named(tmp_path: Path, case: str) -> None:
    file, changes, message = NAMED[case]
    directory = model_with_every_file("qwen2", tmp_path)
    if file == "added_tokens.json":  # not read beside the newer list
        (directory / "tokenizer_config.json").write_text("{}")
    edit(directory / file, **changes)
    with pytest.raises(GGUFError) as error:
        open_checkpoint(directory)
    assert f"{directory / file}: {message}" in str(error.value)


def test_a_unigram_tokenizer_json_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    """Its vocabulary is a list of pairs; that ended the conversion."""
    directory = model_with_every_file("llama", tmp_path)
    assert "<unk>" in open_checkpoint(directory).metadata.value("tokenizer.ggml.tokens")


OPTIONAL = {
    "a number": ({"chat_template": 3}, "chat_template 3 is no template", None),
    "a list of texts": ({"chat_template": ["{{ a }}"]}, "chat_template '{{ a }}' is no template", None),
    "one of two without a text": (
        {"chat_template": [{"name": "x", "template": None}, {"name": "default", "template": "{{ a }}"}]},
        "is no template; left out",
        "{{ a }}",
    ),
    "a space before": (
        {"add_prefix_space": "yes"},
        "add_prefix_space is 'yes', not true or false",
        "{{ a }}",
    ),
}


@pytest.mark.parametrize("case", OPTIONAL)
def test_optional_facts_of_another_kind_are_left_out(tmp_path: Path, case: str) -> None:
    changes, message, template = OPTIONAL[case]
    directory = model_with_every_file("llama", tmp_path)
    edit(directory / "tokenizer_config.json", **changes)
    source = open_checkpoint(directory)
    (warning,) = source.warnings
    assert warning.startswith(f"{directory / 'tokenizer_config.json'}: ")
    assert message in warning
    assert source.metadata.value("tokenizer.chat_template") == template


def test_a_null_hides_no_chat_template(tmp_path: Path) -> None:
    directory = model_with_every_file("qwen2", tmp_path)
    edit(directory / "tokenizer_config.json", chat_template=None)
    (directory / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ a }}")
    assert open_checkpoint(directory).metadata.value("tokenizer.chat_template") == "{{ a }}"
    (directory / "chat_template.jinja").write_bytes(b"\xff{{ a }}")
    source = open_checkpoint(directory)
    assert "tokenizer.chat_template" not in source.metadata
    assert any("chat_template.jinja: not UTF-8" in line for line in source.warnings)


def test_more_chat_templates_come_in_one_order(tmp_path: Path) -> None:
    """Whatever order the directory lists them in, and whatever order a set of names has in this process."""
    directory = model_with_every_file("qwen2", tmp_path)
    names = ["tool_use", "rag", "a-b", "Z", "short", "long", "one more"]
    edit(directory / "tokenizer_config.json", chat_template=None)
    (directory / "chat_template.jinja").write_text("{{ main }}")
    (directory / "additional_chat_templates").mkdir()
    for name in names:
        (directory / "additional_chat_templates" / f"{name}.jinja").write_text(f"{{{{ {name} }}}}")
    wanted = ["Z", "a_b", "long", "one_more", "rag", "short", "tool_use"]
    metadata = open_checkpoint(directory).metadata
    assert list(metadata.value("tokenizer.chat_templates")) == wanted
    assert [key for key in metadata if key.startswith("tokenizer.chat_template.")] == [
        f"tokenizer.chat_template.{name}" for name in wanted
    ]
    show = "import sys; from quantmill.gguf_io.convert import open_checkpoint as o; "
    show += "sys.stdout.buffer.write(o(sys.argv[1]).metadata.encode())"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", show, str(directory)], env=environment, capture_output=True, check=True
        )
        assert done.stdout == metadata.encode()
