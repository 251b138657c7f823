"""A pruned model as Hugging Face's: safetensors and a corrected config.json, so that others can heal it further.

    result = run(Job("model", Path("pruned"), request=Request("model", texts, n_layers=2)), watcher)

What changes in config.json follows from the family's own table of keys: what it says of the pruned model and not of the
whole one. The model is held in memory as it is saved.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantmill.gguf_io import TensorSource, open_source
from quantmill.gguf_io.convert.config import EXPERT_COUNTS, load_json
from quantmill.gguf_io.filesystem import beside
from quantmill.gguf_io.outputs import require_space
from quantmill.jobs.edits import NO_EDITS, Edits, pruned_model
from quantmill.jobs.errors import JobError
from quantmill.jobs.prune import run as prune
from quantmill.jobs.prune_facts import PREFIX, facts_of, facts_of_weights
from quantmill.jobs.prune_request import Pruned, Request
from quantmill.jobs.prune_weights import without_text
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.models.model import facts_of as model_facts
from quantmill.models.model import runnable_family
from quantmill.models.plain import plain_model
from quantmill.models.quiet import quiet_transformers
from quantmill.recipe import Override
from quantmill.recipe.prune_experts import Share

# What a checkpoint has beside weights and config.json that a pruned one needs too.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json"),
    *(
        "merges.txt",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
    ),
)
_WRITING = ".quantmill-partial"


@dataclass(frozen=True)
class Job:
    """model: a GGUF or a Hugging Face directory; directory: to be made. request: a pruning that is measured on a text;
    without one, layers by number and experts by their weights."""

    model: str
    directory: Path
    layers: tuple[int, ...] = ()
    experts: Share | None = None
    request: Request | None = None


@dataclass(frozen=True)
class Result:
    """pruned: what was measured, None without a text. n_bytes: of all files."""

    pruned: Pruned | None
    n_bytes: int


def run(job: Job, watcher: Watcher | None = None) -> Result:
    """Raises JobError for a directory that is there, or damage above the limit; RecipeError, ModelError, GGUFError."""
    watcher = watcher or Silent()
    directory = job.directory
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise JobError(f"{directory}: is there already; --to-hf writes a folder of its own")
    if not directory.resolve().parent.is_dir():
        raise JobError(f"{directory.parent}: no such folder")
    source = open_source(job.model)
    try:
        if not Path(job.model).is_dir() and any(spec.name == "rope_freqs.weight" for spec in source.specs()):
            raise JobError(
                f"{job.model}: its RoPE is stretched by a table (rope_freqs.weight), which a config.json made from a "
                "GGUF cannot say; give the Hugging Face model"
            )
        pruned, edits, layers, facts = _chosen(job, watcher)
        seen = pruned_model(source, edits, layers)
        require_space([directory.resolve()], sum(2 * spec.n_rows * spec.n_cols for spec in seen.specs()))
        writing = beside(directory.resolve(), _WRITING)
        shutil.rmtree(writing, ignore_errors=True)
        try:
            _save(job, source, seen, layers, facts, writing, watcher)
            if directory.exists():
                directory.rmdir()
            os.replace(writing, directory.resolve())
        finally:
            shutil.rmtree(writing, ignore_errors=True)
    finally:
        source.close()
    return Result(pruned, sum(path.stat().st_size for path in directory.iterdir()))


def _chosen(job: Job, watcher: Watcher) -> tuple[Pruned | None, Edits, tuple[int, ...], tuple[Override, ...]]:
    if job.request is not None:
        pruned = prune(job.request, watcher)
        return pruned, pruned.edits, pruned.layers, facts_of(pruned)
    if job.experts is None:
        return None, NO_EDITS, job.layers, ()
    edits, experts = without_text(job.model, job.experts)
    return None, edits, job.layers, facts_of_weights(edits.gone(experts.n), experts.n)


def _save(
    job: Job,
    source: TensorSource,
    seen: TensorSource,
    layers: tuple[int, ...],
    facts: tuple[Override, ...],
    writing: Path,
    watcher: Watcher,
) -> None:
    model = plain_model(seen, Path(job.model), _dtype(source))
    watcher.began("writing", 1, "models")
    with quiet_transformers():
        model.save_pretrained(writing)
    watcher.progressed(1)
    said = {one.key.removeprefix(PREFIX): one.value.value for one in facts}
    if layers and "layers" not in said:
        said["layers"] = list(layers)
    config = _config(job, source, seen, layers, load_json(writing / "config.json"))
    config["quantmill_pruned"] = said
    (writing / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not Path(job.model).is_dir():
        watcher.warn(
            f"{job.directory}: has no tokenizer; take its files from the model that {job.model} was made of"
        )
        return
    for name in BESIDE:
        if (Path(job.model) / name).is_file():
            shutil.copyfile(Path(job.model) / name, writing / name)


def _dtype(source: TensorSource) -> torch.dtype:
    """Of most weights, bfloat16 for what is quantized."""
    dtypes = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    sizes: dict[str, int] = {}
    for spec in source.specs():
        sizes[spec.type] = sizes.get(spec.type, 0) + spec.n_bytes
    return dtypes.get(max(sizes, key=lambda type: sizes[type]), torch.bfloat16)


def _config(
    job: Job, source: TensorSource, seen: TensorSource, layers: tuple[int, ...], made: dict[str, Any]
) -> dict[str, Any]:
    """The checkpoint's own config.json with what pruning changes; of a GGUF, or of the text part of a larger model, the
    one that transformers writes."""
    own = load_json(Path(job.model) / "config.json") if Path(job.model).is_dir() else {}
    if not own or "text_config" in own:
        return made
    before, after = (_settings(one, Path(job.model)) for one in (source, seen))
    own.pop("quantization_config", None)  # the weights are written unpacked
    for key, value in after.items():
        if before.get(key) != value:
            names = [name for name in EXPERT_COUNTS if name in own] if key in EXPERT_COUNTS else []
            own |= dict.fromkeys(names or [key], value)
    n_layers = own["num_hidden_layers"] + len(layers)
    for key, value in own.items():
        if isinstance(value, list) and len(value) == n_layers and key not in after:
            own[key] = [item for layer, item in enumerate(value) if layer not in layers]
    return own


def _settings(source: TensorSource, path: Path) -> dict[str, Any]:
    facts = model_facts(source, path)
    return runnable_family(facts).settings(facts)
