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
from quantmill.gguf_io.convert.nextn import Nextn
from quantmill.gguf_io.convert.rules import Config, Rule
from quantmill.gguf_io.safetensors import StoredTensor


@dataclass(frozen=True)
class Family:
    """classes: config.json's architectures[0]. arch: llama.cpp's architecture, by its name where the gguf package does
    not know it yet. model_type: transformers' name of what computes a GGUF of this family. tensors: which there are, of
    what shape (layout.py). keys: settings, both ways (keys.py).

    defaults: config key → value or function of the config, what the configuration class fills in. rules: how tensors
    are cut (rules.py). vocabulary: the kind of tokenizer. fixed: settings all models share that no file names.

    tables: RoPE tables stored as tensors; table_keys: the keys that llama.cpp's converter writes with them, before all
    others. is_this: whether a GGUF of `arch` is of this family, where several have the same. takes: whether a
    config.json that names one of `classes` is, likewise. names: another architecture whose tensor names are used.
    nextn: the layers behind the last, where a GGUF can carry them. runs: whether it predicts tokens, so that it can be
    measured and watched; embedding models do not. as_stored: whether llama.cpp's converter leaves matrices in F32 and
    BF16 what they are, whatever type is asked for, and makes Q8_0 of those in FP8. made: tensors that llama.cpp wants
    and no checkpoint has, by the name of the one before which they stand. in_f32: matrices that are F32 whatever type
    is asked for, as some configurations want it. check: raises GGUFError for what llama.cpp's model cannot be, before
    tensors are looked at. numbers: how the names of small tensors of whole numbers end that are
    settings, under that name. of_stored: settings that only the shapes of the checkpoint's tensors tell.
    """

    classes: tuple[str, ...]
    arch: MODEL_ARCH | str
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
    takes: Callable[[Mapping[str, Any]], bool] = lambda raw: True
    names: MODEL_ARCH | None = None
    nextn: Nextn | None = None
    runs: bool = True
    as_stored: bool = False
    made: Callable[[Config], Mapping[str, rope.Tables]] = lambda config: {}
    in_f32: Callable[[Config], tuple[str, ...]] = lambda config: ()
    numbers: tuple[str, ...] = ()
    of_stored: Callable[[Mapping[str, StoredTensor]], Settings] = lambda stored: {}
    check: Callable[[Config], None] = lambda config: None

    @property
    def name(self) -> str:
        """general.architecture"""
        return self.arch if isinstance(self.arch, str) else MODEL_ARCH_NAMES[self.arch]

    @property
    def named_as(self) -> MODEL_ARCH:
        """Whose table of tensor names is used; what is not in it, the rules name themselves."""
        return self.names or (MODEL_ARCH.LLAMA if isinstance(self.arch, str) else self.arch)

    def completed(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json, or settings of a GGUF, as the configuration class completes it (config.py: complete)."""
        return config.complete(self.defaults, raw)

    def expected(self, completed: Config) -> dict[str, Expected]:
        found = expected_tensors(self.tensors, completed)
        if completed.get("nextn_only"):
            found = {name: one for name, one in found.items() if not name.startswith("blk.")}
        if self.nextn and completed.get("nextn"):
            found |= self.nextn.expected(completed, len(self.tensors))
        return found

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
