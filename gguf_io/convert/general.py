"""general.*: who made the model, its size, licence and origin, from the model card, config and directory name.

gguf's own `Metadata` reads them, as llama.cpp's converter does; what that package version does not know yet is
added here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gguf
import yaml
from gguf import GGUFWriter

from gguf_io.convert.config import load_optional_json
from gguf_io.errors import GGUFError


def parameter_counts(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, int, int, int]:
    """(all, outside experts, in one expert, experts) of (GGUF name, shape in Hugging Face order) pairs."""
    writer = GGUFWriter(None, "")
    for name, shape in shapes:
        writer.add_tensor_info(name, shape, gguf.np.dtype("float32"), 0)
    return writer.get_total_parameter_count()


def write(writer: GGUFWriter, directory: Path, counts: tuple[int, int, int, int]) -> None:
    """Add general.type and everything Metadata finds in `directory`."""
    total, shared, one_expert, n_experts = counts
    settings = load_optional_json(directory / "generation_config.json")
    try:
        found = gguf.Metadata.load(None, directory, None, total)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = str(error).replace("\n", " ")
        raise GGUFError(f"{directory / 'README.md'}: its front matter is not YAML ({where})") from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise GGUFError(f"{directory}: the model card cannot be read for general.* ({error!r})") from None
    if found.sampling_penalty_repeat is None:  # its name in Hugging Face's files
        found.sampling_penalty_repeat = settings.get("repetition_penalty")
    if found.name is None:
        found.name = directory.name
    if found.size_label is None and total > 0:
        found.size_label = gguf.size_label(total, shared, one_expert, n_experts)
    writer.add_type(gguf.GGUFType.MODEL)
    found.set_gguf_meta_model(writer)
