"""The families quantmill converts and runs, one file each: every module here has a FAMILY."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from quantmill.gguf_io.convert.facts import Facts
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

_NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))
FAMILIES: tuple[Family, ...] = tuple(import_module(f"{__name__}.{name}").FAMILY for name in _NAMES)

SUPPORTED = tuple(sorted({name for family in FAMILIES for name in family.classes}))
RUNNABLE = tuple(sorted({family.name for family in FAMILIES if family.runs}))


def family_of(config: Config) -> Family:
    """The family of a config.json: of the text part's class, else of the whole model's. Raises GGUFError for an
    architecture that is not in the table."""
    found = find_family(config)
    if found is not None:
        return found
    names = _names(config)
    raise GGUFError(
        f"architecture {names[0]} is not supported (docs/families.md lists the {len(SUPPORTED)} that are); convert it "
        "with llama.cpp's convert_hf_to_gguf.py --outtype f16 and give quantmill the GGUF: quantize knows every "
        "architecture"
    )


def find_family(config: Config) -> Family | None:
    """The same; None for an architecture that is not in the table. Raises GGUFError where none is named."""
    inner = config.get("text_config")
    inner = inner if isinstance(inner, Mapping) else {}
    families = (
        family
        for name in _names(config)
        for family in FAMILIES
        if name in family.classes and family.takes({**config, **inner})
    )
    return next(families, None)


def _names(config: Config) -> list[str]:
    """Architectures of the text part and of the whole."""
    lists = (
        part.get("architectures") for part in (config.get("text_config"), config) if isinstance(part, Mapping)
    )
    names = [found[0] for found in lists if isinstance(found, list) and found and isinstance(found[0], str)]
    if not names:
        raise GGUFError("config.json names no architecture (key 'architectures')")
    return names


def family_of_gguf(facts: Facts) -> Family | None:
    """The family that runs a GGUF; None where no family has its architecture."""
    own = (family for family in FAMILIES if family.runs and family.name == facts.architecture)
    return next((family for family in own if family.is_this(facts)), None)
