"""Which family a model is of, and whether models of it are run here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantmill.gguf_io.convert.config import load_json
from quantmill.gguf_io.convert.facts import Facts
from quantmill.gguf_io.convert.families import RUNNABLE, family_of, family_of_gguf
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.source import TensorSource
from quantmill.models.errors import ModelError
from quantmill.qkernels import to_float32

# What is left to do with a model that cannot be run here.
_WITHOUT_RUNNING = (
    "`quantmill quantize` takes it without these options, with --imatrix a file of llama-imatrix's; "
    "llama.cpp's llama-imatrix and llama-perplexity may"
)


def directory_family(path: Path) -> tuple[Family, Mapping[str, Any]]:
    """Of a Hugging Face directory, with its config.json. Raises ModelError for one that cannot be run."""
    raw = load_json(path / "config.json")
    family = family_of(raw)
    if not family.runs:
        raise ModelError(
            f"{path}: quantmill cannot run {family.name} in torch (docs/families.md says why); {_WITHOUT_RUNNING}"
        )
    return family, raw


def facts_of(source: TensorSource, path: Path) -> Facts:
    """Raises ModelError for a file that is no model."""
    specs = {spec.name: spec for spec in source.specs()}
    architecture = source.metadata.value("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(f"{path}: is no model: the key general.architecture is missing")
    return Facts(
        architecture,
        source.metadata,
        {name: spec.shape for name, spec in specs.items()},
        lambda name: to_float32(source.read(name), specs[name].type),
    )


def runnable_family(facts: Facts, path: Path) -> Family:
    """Raises ModelError for an architecture that no family here can run; jobs.runnable asks before the work."""
    family = family_of_gguf(facts)
    if family is None and facts.architecture in RUNNABLE:
        raise ModelError(
            f"{path}: general.architecture = {facts.architecture!r}: quantmill runs other models of it in torch, but "
            f"none with these tensors (docs/families.md); {_WITHOUT_RUNNING}"
        )
    if family is None:
        raise ModelError(
            f"{path}: general.architecture = {facts.architecture!r}: quantmill cannot run it in torch "
            f"(docs/families.md lists the {len(RUNNABLE)} that it runs); {_WITHOUT_RUNNING}"
        )
    if "token_embd.weight" not in facts.shapes:
        raise ModelError(
            "token_embd.weight is missing: this GGUF holds no whole model (an adapter or one shard?)"
        )
    _require_routing(facts, path)
    return family


def _require_routing(facts: Facts, path: Path) -> None:
    """A token goes to one expert at least and to no more than there are; a pass would end in the middle of it."""
    key = f"{facts.architecture}.expert_used_count"
    n_experts, used = facts.get("expert_count"), facts.get("expert_used_count")
    if isinstance(n_experts, int) and n_experts and isinstance(used, int) and not 1 <= used <= n_experts:
        raise ModelError(
            f"{path}: {key} is {used}, and {n_experts} experts are there; set it to one of 1 to {n_experts}: "
            f"quantmill quantize --override-kv {key}=int:N MODEL OUT COPY"
        )
