"""general.*: who made the model, its size, licence and origin, from the model card, config and directory name.

gguf's own `Metadata` reads them from the model card, as llama.cpp's converter does. Of a model in the hub's cache
the name is that on the hub, not the hash its directory is named by.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gguf
import yaml
from gguf import GGUFWriter

from quantmill.gguf_io.convert.config import load_optional_json
from quantmill.gguf_io.errors import GGUFError

# Metadata field -> keys of generation_config.json
SAMPLING = {
    "sampling_sequence": ("sequence",),
    "sampling_top_k": ("top_k",),
    "sampling_top_p": ("top_p",),
    "sampling_min_p": ("min_p",),
    "sampling_xtc_probability": ("xtc_probability",),
    "sampling_xtc_threshold": ("xtc_threshold",),
    "sampling_temp": ("temperature",),
    "sampling_penalty_last_n": ("penalty_last_n",),
    "sampling_penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "sampling_mirostat": ("mirostat",),
    "sampling_mirostat_tau": ("mirostat_tau",),
    "sampling_mirostat_eta": ("mirostat_eta",),
}


def parameter_counts(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, int, int, int]:
    """(all, outside experts, in one expert, experts) of (GGUF name, shape in Hugging Face order) pairs."""
    writer = GGUFWriter(None, "")
    for name, shape in shapes:
        writer.add_tensor_info(name, shape, gguf.np.dtype("float32"), 0)
    return writer.get_total_parameter_count()


def write(writer: GGUFWriter, directory: Path, counts: tuple[int, int, int, int]) -> None:
    """Add general.type and what model card, config.json and the name of the model say about it."""
    total, shared, one_expert, n_experts = counts
    organization, name = _name(directory)
    try:
        card = gguf.Metadata.load_model_card(directory)
        parameters = gguf.Metadata.load_hf_parameters(directory)
        found = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, parameters, Path(name), total)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise GGUFError(f"{directory / 'README.md'}: its front matter is not YAML ({where})") from None
    if found.organization is None and organization is not None:
        found.organization = gguf.Metadata.id_to_title(organization)
    settings = load_optional_json(directory / "generation_config.json")
    for field, keys in SAMPLING.items():
        setattr(found, field, next((settings[key] for key in keys if key in settings), None))
    if found.name is None:
        found.name = name
    if found.size_label is None and total > 0:
        found.size_label = gguf.size_label(total, shared, one_expert, n_experts)
    writer.add_type(gguf.GGUFType.MODEL)
    found.set_gguf_meta_model(writer)


def _name(directory: Path) -> tuple[str | None, str]:
    """Organization and name: a directory's own, or the hub's in its cache (models--org--name/snapshots/hash)."""
    path = directory.absolute()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        organization, _, name = repository.removeprefix("models--").rpartition("--")
        return organization or None, name
    return None, path.name
