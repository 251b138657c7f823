"""general.*: who made the model, its size, licence and origin, from the model card, config and directory name.

gguf's own `Metadata` reads them from the model card, as llama.cpp's converter does. Of a model in the hub's cache
the name is that on the hub, not the hash its directory is named by. All of it is optional: what is not of the kind
it must be is left out with a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import yaml
from gguf import GGUFWriter

from quantmill.errors import one_line
from quantmill.gguf_io.convert.config import load_optional_json
from quantmill.gguf_io.errors import GGUFError

Warn = Callable[[str], None]

# Metadata field -> kind of value, keys of generation_config.json
SAMPLING: dict[str, tuple[type, tuple[str, ...]]] = {
    "sampling_sequence": (str, ("sequence",)),
    "sampling_top_k": (int, ("top_k",)),
    "sampling_top_p": (float, ("top_p",)),
    "sampling_min_p": (float, ("min_p",)),
    "sampling_xtc_probability": (float, ("xtc_probability",)),
    "sampling_xtc_threshold": (float, ("xtc_threshold",)),
    "sampling_temp": (float, ("temperature",)),
    "sampling_penalty_last_n": (int, ("penalty_last_n",)),
    "sampling_penalty_repeat": (float, ("penalty_repeat", "repetition_penalty")),
    "sampling_mirostat": (int, ("mirostat",)),
    "sampling_mirostat_tau": (float, ("mirostat_tau",)),
    "sampling_mirostat_eta": (float, ("mirostat_eta",)),
}
# What gguf reads of a model card, also with "model_" in front.
CARD_TEXTS = (
    *("name", "author", "version", "organization", "description", "finetune", "basename", "size_label"),
    *("source_url", "source_doi", "source_uuid", "source_repo_url", "url", "doi", "uuid", "repo_url"),
    *("creator", "type", "license", "license_name", "license_link"),
)
CARD_LISTS = ("tags", "pipeline_tag", "languages", "language", "license")
CARD_MODELS = ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")


def parameter_counts(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, int, int, int]:
    """(all, outside experts, in one expert, experts) of (GGUF name, shape in Hugging Face order) pairs."""
    writer = GGUFWriter(None, "")
    for name, shape in shapes:
        writer.add_tensor_info(name, shape, gguf.np.dtype("float32"), 0)
    return writer.get_total_parameter_count()


def write(
    writer: GGUFWriter,
    directory: Path,
    counts: tuple[int, int, int, int],
    warn: Warn,
    kind: str = gguf.GGUFType.MODEL,
) -> None:
    """Add general.type, `kind`, and what model card, config.json and the name of the model say about it."""
    total, shared, one_expert, n_experts = counts
    organization, name = _name(directory)
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), _card(directory, warn), _origin(directory, warn), Path(name), total
    )
    if found.organization is None and organization is not None:
        found.organization = gguf.Metadata.id_to_title(organization)
    for field, value in _sampling(directory / "generation_config.json", warn):
        setattr(found, field, value)
    if found.name is None:
        found.name = name
    if found.size_label is None and total > 0:
        found.size_label = gguf.size_label(total, shared, one_expert, n_experts)
    writer.add_type(kind)
    found.set_gguf_meta_model(writer)


def _sampling(path: Path, warn: Warn) -> Iterable[tuple[str, Any]]:
    try:
        settings = load_optional_json(path)
    except GGUFError as error:
        warn(f"{error}; the settings for sampling are left out")
        return
    for field, (kind, keys) in SAMPLING.items():
        key = next((key for key in keys if key in settings), None)
        if key is None or settings[key] is None:
            continue
        if _is(kind, settings[key]):
            yield field, settings[key]
        else:
            warn(f"{path}: {key} is {_short(settings[key])}, which is no {kind.__name__}; left out")


def _is(kind: type, value: Any) -> bool:
    """Whether GGUF can hold the value as text, int32 or float32."""
    if kind is str:
        return _is_text(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if kind is int:
        return isinstance(value, int) and abs(value) < 2**31
    return math.isfinite(value) and abs(value) < 2**127


def _is_text(value: Any) -> bool:
    # JSON and YAML can escape halves of UTF-16 pairs, which no UTF-8 text has.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _origin(directory: Path, warn: Warn) -> dict[str, Any]:
    """The only key gguf reads of config.json."""
    origin = load_optional_json(directory / "config.json").get("_name_or_path")
    if origin is None or _is_text(origin):
        return {"_name_or_path": origin}
    warn(f"{directory / 'config.json'}: _name_or_path is {_short(origin)}, which is no text; left out")
    return {}


def _card(directory: Path, warn: Warn) -> dict[str, Any]:
    path = directory / "README.md"
    try:
        card = gguf.Metadata.load_model_card(directory)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: also dates that do not exist
        warn(f"{path}: its front matter is not YAML ({one_line(error)}); left out")
        return {}
    known = {}
    for key, value in card.items():
        kept = _card_value(str(key).removeprefix("model_"), value)
        if kept is not None or value is None:
            known[key] = kept
        if kept != value:
            warn(f"{path}: {key} is {_short(value)}, which is not what it must be; left out where it is not")
    return known


def _card_value(key: str, value: Any) -> Any:
    """What of the value GGUF can hold; None: nothing."""
    if key in CARD_LISTS and isinstance(value, list):
        return [item for item in value if _is_text(item)]
    if key in CARD_MODELS and isinstance(value, list):
        return [
            {name: text for name, text in item.items() if _is_text(text)} if isinstance(item, dict) else item
            for item in value
            if isinstance(item, dict) or _is_text(item)
        ]
    if key in CARD_TEXTS or key in CARD_LISTS or key in CARD_MODELS:
        return value if _is_text(value) else None
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _name(directory: Path) -> tuple[str | None, str]:
    """Organization and name: a directory's own, or the hub's in its cache (models--org--name/snapshots/hash)."""
    path = directory.absolute()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        organization, _, name = repository.removeprefix("models--").rpartition("--")
        return organization or None, name
    return None, path.name
