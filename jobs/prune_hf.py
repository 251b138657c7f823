"""A pruned model as Hugging Face's: safetensors and a corrected config.json, so that others can heal it further.

    result = run(Job("model", Path("pruned"), request=Request("model", texts, n_layers=2)), watcher)

What changes in config.json follows from the family and from transformers: what they say of the pruned model and not of
the whole one. The folder is read again before it takes its name: where it is another model, nothing is left of it. The
model is held in memory as it is saved.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantmill.gguf_io import TensorSource, open_source
from quantmill.gguf_io.convert.config import EXPERT_COUNTS, load_json
from quantmill.gguf_io.filesystem import beside
from quantmill.gguf_io.outputs import require_space
from quantmill.jobs.edited import pruned_model
from quantmill.jobs.edits import NO_EDITS, Edits
from quantmill.jobs.errors import JobError
from quantmill.jobs.prune import run as prune
from quantmill.jobs.prune_facts import PREFIX, facts_of, facts_of_weights
from quantmill.jobs.prune_request import Pruned, Request
from quantmill.jobs.prune_weights import without_text
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.models.errors import said_of_transformers
from quantmill.models.plain import config_of, plain_model
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
    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
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
    before, after = (config_of(one, Path(job.model)) for one in (source, seen))
    config = _config(job, before, after, layers, load_json(writing / "config.json"))
    config["quantmill_pruned"] = said
    (writing / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in BESIDE:
        if (Path(job.model) / name).is_file():
            shutil.copyfile(Path(job.model) / name, writing / name)
    _require_same(job, _changes(before, after), seen, writing)
    if not Path(job.model).is_dir():
        watcher.warn(
            f"{job.directory}: has no tokenizer; take its files from the model that {job.model} was made of"
        )


def _dtype(source: TensorSource) -> torch.dtype:
    """Of most weights, bfloat16 for what is quantized."""
    dtypes = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    sizes: dict[str, int] = {}
    for spec in source.specs():
        sizes[spec.type] = sizes.get(spec.type, 0) + spec.n_bytes
    return dtypes.get(max(sizes, key=lambda type: sizes[type]), torch.bfloat16)


def _config(
    job: Job, before: Any, after: Any, layers: tuple[int, ...], made: dict[str, Any]
) -> dict[str, Any]:
    """The checkpoint's own config.json with what pruning changes; of a GGUF, of the text part of a larger model, or
    where weights are written for another class, the one that transformers writes.

    What changes is what transformers' class makes of the pruned model and not of the whole one, lists that it works out
    itself included; and what only the checkpoint says of each layer.
    """
    own = load_json(Path(job.model) / "config.json") if Path(job.model).is_dir() else {}
    if not own or "text_config" in own or own.get("model_type") != made["model_type"]:
        return made
    own.pop("quantization_config", None)  # the weights are written unpacked
    n_layers, changed = before.num_hidden_layers, _changes(before, after)
    changed |= _folded(own, after.to_dict())
    for key, value in changed.items():
        names = [name for name in EXPERT_COUNTS if name in own] if key in EXPERT_COUNTS else []
        own |= dict.fromkeys(names or [key], value)
    for key, value in own.items():
        if key not in changed and isinstance(value, list | str) and len(value) == n_layers and layers:
            if isinstance(value, list):
                own[key] = [item for layer, item in enumerate(value) if layer not in layers]
            elif key.endswith("_pattern"):  # a letter a layer
                own[key] = "".join(item for layer, item in enumerate(value) if layer not in layers)
    return own


def _changes(before: Any, after: Any) -> dict[str, Any]:
    whole = before.to_dict()
    return {key: value for key, value in after.to_dict().items() if whole.get(key) != value}


def _folded(own: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Multipliers that the conversion has multiplied into the weights (Falcon-H1)."""
    found = {}
    for key, value in made.items():
        if "multiplier" in key and key in own and not np.allclose(own[key], value, rtol=1e-6, atol=0):
            found[key] = value
    return found


def _require_same(job: Job, changes: dict[str, Any], seen: TensorSource, writing: Path) -> None:
    """The folder as it is read is the pruned model. Raises JobError with the keys in which it is another."""
    from transformers import AutoConfig

    with quiet_transformers(), said_of_transformers(f"{job.model}: transformers cannot read its config.json"):
        read = AutoConfig.from_pretrained(writing).to_dict()
    wrong = [key for key, value in changes.items() if read.get(key) != value]
    if not wrong and Path(job.model).is_dir():  # with a tokenizer it can be read as a model
        wrong = _differences(seen, writing)
    if wrong:
        raise JobError(
            f"{job.directory}: config.json cannot say what is left of {job.model} ({', '.join(wrong[:4])}): a pattern "
            "of layers or experts that the class works out itself; prune other layers, or write a GGUF"
        )


def _differences(seen: TensorSource, writing: Path) -> list[str]:
    """Keys and tensors in which a folder is another model."""
    folder = open_source(writing)
    try:
        ours, theirs = seen.metadata, folder.metadata
        arch = f"{ours.value('general.architecture')}."
        common = [key for key in ours if key in theirs and key.startswith(arch)]
        wrong = [key for key in common if not _alike(ours.value(key), theirs.value(key))]
        shapes = [{spec.name: spec.shape for spec in one.specs()} for one in (seen, folder)]
        return wrong + [name for name, shape in shapes[0].items() if shapes[1].get(name) != shape]
    finally:
        folder.close()


def _alike(one: Any, other: Any) -> bool:
    """Values of metadata, where a list of one value says what the value says."""
    lists = [
        list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        for found in (one, other)
    ]
    longest = max(map(len, lists))
    return len({*map(repr, (found * (longest if len(found) == 1 else 1) for found in lists))}) == 1
