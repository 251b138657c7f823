"""The best types that fit a size: for each tensor candidates, each with its bytes and what it loses.

Sizes are exact: whole files, keys and padding included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from quantmill.gguf_io import TensorSpec
from quantmill.gguf_io.header import alignment_of
from quantmill.gguf_io.metadata import Metadata
from quantmill.qkernels.types import TYPES
from quantmill.recipe.allocate import Option, allocate
from quantmill.recipe.errors import RecipeError
from quantmill.recipe.lift import file_type_of, rules_for
from quantmill.recipe.model import model_facts
from quantmill.recipe.names import OUTPUT, category, may_be_quantized
from quantmill.recipe.plan import LOW_BIT, Plan, PlanEntry, build_plan
from quantmill.recipe.request import ImportanceIndex, Recipe

# Where rows are whole super-blocks, the older types lose to these at every size.
_SUPER_BLOCKS = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K"),
    *("IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
)
_SMALL_BLOCKS = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

# KL divergence for a relative error of 1 in all tensors of a kind together, measured on SmolLM2-135M (30 layers, tied
# embeddings; medians over its layers). Their ratios are what counts where nothing was measured.
_KIND_WEIGHTS = MappingProxyType(
    {"V": 3.8, "UP": 2.8, "GATE": 2.6, "DOWN": 2.5, "ATTN_OUTPUT": 2.0, "K": 1.6, "Q": 1.1}
)
_OTHER_WEIGHT = 2.5
# Embeddings that are the output projection too lose at its end; the others are only looked up.
_TIED_WEIGHT, _EMBEDDING_WEIGHT = 9.0, 1.0


@dataclass(frozen=True)
class Target:
    """A ceiling: bytes of the whole output (all files), or bits per weight of its tensors, which is Plan.bpw."""

    file_bytes: int | None = None
    bpw: float | None = None

    def __post_init__(self) -> None:
        assert (self.file_bytes is None) != (self.bpw is None)

    def excess(self, plan: Plan) -> int:
        """Bytes that a plan has too many; negative: bytes left."""
        if self.file_bytes is not None:
            return plan.file_bytes - self.file_bytes
        assert self.bpw is not None
        n_weights = sum(entry.n_weights for entry in plan.entries)
        return sum(entry.n_bytes for entry in plan.entries) - int(self.bpw * n_weights / 8)

    def text(self, plan: Plan) -> str:
        """What a plan has of it."""
        return (
            f"{plan.file_bytes} bytes" if self.file_bytes is not None else f"{plan.bpw:.4f} bits per weight"
        )

    def __str__(self) -> str:
        return f"{self.file_bytes} bytes" if self.file_bytes is not None else f"{self.bpw} bits per weight"


@dataclass(frozen=True)
class Limits:
    """The smallest and the largest type that may be chosen, by bits per weight; None: no limit of the user's."""

    smallest: str | None = None
    largest: str | None = None

    def __post_init__(self) -> None:
        low, high = self.range()
        if low > high:
            raise RecipeError(
                f"--min-type {self.smallest} is larger than --max-type {self.largest or 'Q8_0'}"
            )

    def range(self) -> tuple[float, float]:
        """Bits per weight from, to; floats only when asked for."""
        low = TYPES[self.smallest].bits_per_weight if self.smallest else 0.0
        high = TYPES[self.largest].bits_per_weight if self.largest else TYPES["Q8_0"].bits_per_weight
        return low, high


@dataclass(frozen=True)
class Candidates:
    """A tensor of the output and the types it may have, by size; `pinned`: the user's options name its type."""

    entry: PlanEntry
    types: tuple[str, ...]
    pinned: bool


@dataclass(frozen=True)
class Problem:
    """A model, the user's recipe (its file type means nothing yet), and a size."""

    specs: tuple[TensorSpec, ...]
    metadata: Metadata
    recipe: Recipe
    importance: ImportanceIndex | None
    target: Target
    candidates: tuple[Candidates, ...]

    def weight(self, name: str) -> float:
        """What a tensor, by its name in the output, loses for its relative error when all that is known is its kind."""
        kind = category(name)
        if kind == "OUTPUT":
            return _TIED_WEIGHT
        if kind == "TOKEN_EMBD":
            tied = all(spec.name != OUTPUT for spec in self.specs)
            return _TIED_WEIGHT if tied else _EMBEDDING_WEIGHT
        n_layer = max(1, model_facts(self.metadata, {}).n_layer)
        return _KIND_WEIGHTS.get(kind, _OTHER_WEIGHT) / n_layer

    def plan(self, types: Mapping[str, str]) -> Plan:
        """The plan in which tensors have these types, by name in the output; pinned ones have theirs."""
        free = {c.entry.name: types[c.entry.name] for c in self.candidates if not c.pinned}
        weights = [(types[c.entry.name], c.entry.n_weights) for c in self.candidates]
        rules = (*self.recipe.rules, *rules_for(free))
        recipe = replace(self.recipe, file_type=file_type_of(weights), rules=rules)
        return build_plan(self.specs, self.metadata, recipe, self.importance)


@dataclass(frozen=True)
class Solution:
    """types: tensor name in the output → type. loss: the sum of what was given for them."""

    plan: Plan
    types: Mapping[str, str]
    loss: float


def pose(
    specs: Sequence[TensorSpec],
    metadata: Metadata,
    recipe: Recipe,
    importance: ImportanceIndex | None,
    target: Target,
    limits: Limits,
) -> Problem:
    """Find the candidates. Raises RecipeError for a size that no choice reaches, saying which can be reached."""
    if recipe.pure:
        raise RecipeError("--pure is one type for all; a size lets types differ: leave one of them out")
    base = build_plan(specs, metadata, replace(recipe, file_type="Q8_0", fallback=True), importance)
    arch = str(metadata["general.architecture"].value)
    found = tuple(
        _candidates(entry, recipe, importance, limits)
        for entry in base.entries
        if may_be_quantized(entry.name, entry.shape, arch)
    )
    problem = Problem(tuple(specs), metadata, recipe, importance, target, found)
    smallest = problem.plan({c.entry.name: c.types[0] for c in found})
    if target.excess(smallest) > 0:
        largest = problem.plan({c.entry.name: c.types[-1] for c in found})
        raise RecipeError(
            f"{target}: cannot be reached; this model can have {target.text(smallest)} to {target.text(largest)}"
            + _ways_out(limits, importance)
        )
    return problem


def _ways_out(limits: Limits, importance: ImportanceIndex | None) -> str:
    ways = ["a smaller --min-type"] if limits.smallest else []
    ways += [] if importance else ["--imatrix, for types that need importance"]
    return f" ({' or '.join(ways)} allows less)" if ways else ""


def _candidates(
    entry: PlanEntry, recipe: Recipe, importance: ImportanceIndex | None, limits: Limits
) -> Candidates:
    if _is_pinned(entry.name, recipe):
        return Candidates(entry, (entry.type,), True)
    source = entry.source_type
    free = entry.original or recipe.allow_requantize
    if source not in TYPES or (TYPES[source].family != "plain" and not free):
        return Candidates(entry, (source,), False)  # what is quantized stays as it is
    weighed = (
        importance is not None and importance.n_values.get(entry.source) == entry.n_cols * entry.n_matrices
    )
    known = _SUPER_BLOCKS if entry.n_cols % 256 == 0 else _SMALL_BLOCKS
    fitting = [
        name
        for name in known
        if entry.n_cols % TYPES[name].block == 0
        and (weighed or (name not in LOW_BIT and TYPES[name].importance != "required"))
    ]
    fitting += [source] if source in ("F16", "BF16") else ["F16"]
    fitting += ["F32"] if source == "F32" else []
    return Candidates(entry, _within(fitting, limits), False)


def _is_pinned(name: str, recipe: Recipe) -> bool:
    kind = category(name)
    return (
        any(rule.matches(name) for rule in recipe.rules)
        or (kind == "TOKEN_EMBD" and recipe.token_embedding_type is not None)
        or (kind == "OUTPUT" and (recipe.output_tensor_type is not None or recipe.leave_output_tensor))
    )


def _within(types: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Those between the limits, by size; where the rows allow none of these, the one nearest to them."""
    low, high = limits.range()

    def outside(name: str) -> float:
        bits = TYPES[name].bits_per_weight
        return max(low - bits, bits - high, 0.0)

    nearest = min(outside(name) for name in types)
    return tuple(sorted((t for t in types if outside(t) == nearest), key=lambda t: TYPES[t].bits_per_weight))


def solve(problem: Problem, losses: Mapping[str, Mapping[str, float]]) -> Solution:
    """The types of least total loss that fit. losses: tensor name in the output → type → loss, for all candidates."""
    alignment = alignment_of(problem.metadata, "model") if problem.target.file_bytes is not None else 1
    menus = {
        c.entry.name: [
            Option(type, _padded(replace(c.entry, type=type).n_bytes, alignment), losses[c.entry.name][type])
            for type in c.types
        ]
        for c in problem.candidates
    }
    plan = problem.plan({name: menu[0].type for name, menu in menus.items()})
    # What is neither a candidate's nor the size's: keys, tensors that keep their type. It hardly ever changes.
    room = sum(menu[0].n_bytes for menu in menus.values()) - problem.target.excess(plan)
    while True:
        chosen = allocate(menus, room)
        types = {name: option.type for name, option in chosen.items()}
        plan = problem.plan(types)
        excess = problem.target.excess(plan)
        if excess <= 0:
            return Solution(plan, types, sum(option.loss for option in chosen.values()))
        room -= excess


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment
