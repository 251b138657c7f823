"""Conversations as the model expects them: its own chat template, from a directory or from a GGUF's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantmill.imatrix.matrix import ImatrixError
from quantmill.imatrix.text import Render
from quantmill.models.errors import said_of_transformers


def from_directory(path: Path) -> Render:
    """The template of a Hugging Face directory. Raises ImatrixError when it has none."""
    from transformers import AutoTokenizer

    with said_of_transformers(f"{path}: no tokenizer could be loaded from here"):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ImatrixError(f"{path}: the tokenizer has no chat template; give plain text instead of JSONL")

    def render(messages: list[dict[str, Any]]) -> str:
        return _checked(lambda: tokenizer.apply_chat_template(messages, tokenize=False))

    return render


def from_metadata(metadata: Mapping[str, Any], name: str) -> Render:
    """The template in a GGUF (`tokenizer.chat_template`). Raises ImatrixError when it has none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if "tokenizer.chat_template" not in metadata:
        raise ImatrixError(f"{name}: has no tokenizer.chat_template; give plain text instead of JSONL")
    template = metadata["tokenizer.chat_template"].value
    tokens = metadata["tokenizer.ggml.tokens"].value
    special = {}
    for kind in ("bos", "eos"):
        key = f"tokenizer.ggml.{kind}_token_id"
        if key in metadata:
            number = metadata[key].value
            if not isinstance(number, int) or not 0 <= number < len(tokens):
                raise ImatrixError(f"{name}: {key} is {number!r}, the vocabulary has {len(tokens)} tokens")
            special[f"{kind}_token"] = tokens[number]

    def render(messages: list[dict[str, Any]]) -> str:
        return _checked(
            lambda: render_jinja_template(conversations=[messages], chat_template=template, **special)[0][0]
        )

    return render


def _checked(render: Any) -> str:
    from jinja2 import TemplateError

    try:
        return render()
    except TemplateError as error:
        raise ImatrixError(f"the chat template refuses a conversation: {error}") from error
