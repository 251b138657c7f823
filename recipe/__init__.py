"""What each tensor becomes: file types, patterns, pruning, metadata. Touches no data and imports no torch."""

from quantmill.qkernels.types import get_search
from quantmill.recipe.errors import RecipeError
from quantmill.recipe.overrides import Override, parse_override
from quantmill.recipe.patterns import TypeRule, parse_rule, parse_rules, parse_type
from quantmill.recipe.plan import ImportanceIndex, Plan, PlanEntry, Recipe, build_plan
from quantmill.recipe.presets import COPY, FILE_TYPES, FileType, find_file_type, get_file_type
from quantmill.recipe.prune import parse_layers
from quantmill.recipe.sizes import parse_size

__all__ = [
    "COPY",
    "FILE_TYPES",
    "FileType",
    "ImportanceIndex",
    "Override",
    "Plan",
    "PlanEntry",
    "Recipe",
    "RecipeError",
    "TypeRule",
    "build_plan",
    "find_file_type",
    "get_file_type",
    "get_search",
    "parse_layers",
    "parse_override",
    "parse_rule",
    "parse_rules",
    "parse_size",
    "parse_type",
]
