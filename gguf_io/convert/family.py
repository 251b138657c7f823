"""A model family: what one file of families/ says, read by the conversion and by the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

from quantmill.gguf_io.convert import config, rope, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.keys import Row
from quantmill.gguf_io.convert.layout import Expected, Tensors, expected_tensors
from quantmill.gguf_io.convert.rules import Config, Rule


@dataclass(frozen=True)
class Family:
    """classes: config.json's architectures[0]. arch: llama.cpp's name. model_type: transformers' name of what computes
    a GGUF of this family. tensors: which there are, of what shape (layout.py). keys: settings, both ways (keys.py).
    defaults: config key → value or function of the config, what the configuration class fills in. rules: how tensors
    are cut (rules.py). vocabulary: the kind of tokenizer. fixed: settings all models share that no file names.

    tables: RoPE tables stored as tensors; table_keys: the keys that llama.cpp's converter writes with them, before all
    others. is_this: whether a GGUF of `arch` is of this family, where several have the same.
    """

    classes: tuple[str, ...]
    arch: MODEL_ARCH
    model_type: str
    tensors: tuple[Tensors, ...]
    keys: tuple[Row, ...]
    defaults: Mapping[str, Any]
    rules: tuple[Rule, ...] = ()
    vocabulary: tokenizer.TokenizerWriter = tokenizer.bpe
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tables: Callable[[Config], rope.Tables] = rope.no_tables
    table_keys: tuple[Row, ...] = ()
    is_this: Callable[[Facts], bool] = lambda facts: True

    @property
    def name(self) -> str:
        """general.architecture"""
        return MODEL_ARCH_NAMES[self.arch]

    def completed(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json, or settings of a GGUF, as the configuration class completes it (config.py: complete)."""
        return config.complete(self.defaults, raw)

    def expected(self, completed: Config) -> dict[str, Expected]:
        return expected_tensors(self.tensors, completed)

    def settings(self, facts: Facts) -> Settings:
        """What transformers' configuration must be told to compute this GGUF; sizes of the vocabulary by its tensors.

        Raises GGUFError for a missing metadata key.
        """
        found: Settings = {
            "vocab_size": facts.shapes["token_embd.weight"][1],
            "tie_word_embeddings": "output.weight" not in facts.shapes,
        }
        for row in (*self.table_keys, *self.keys):
            found |= row.read(facts)
        return {**found, **self.fixed}
