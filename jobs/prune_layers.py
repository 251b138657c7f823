"""Which layers to leave out: the cheapest by block influence are measured, and grown one by one into larger sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations

from quantmill.calibrate.prune_influence import Influence
from quantmill.jobs.edits import NO_EDITS, Edits
from quantmill.jobs.errors import JobError
from quantmill.jobs.prune_request import Set
from quantmill.jobs.prune_session import Session
from quantmill.measure.damage import Damage, Predictions, mean_damage
from quantmill.measure.divergence import TokenScores
from quantmill.models.model import LoadedModel

_RUNS = 3  # runs of each length that are measured, those of the least block influence
_PAIRED = 4  # of the best single layers, all pairs are measured


def require_fewer(n: int, n_layers: int) -> None:
    """Raises JobError where as many layers are to leave as there are."""
    if n >= n_layers:
        raise JobError(
            f"--prune-layers auto:{n}: the model has {n_layers} layers, at most {n_layers - 1} can leave"
        )


class Search:
    """Sets of layers of a model, measured on the chunks that candidates are compared on; each set once, ever."""

    def __init__(self, session: Session, edits: Edits = NO_EDITS) -> None:
        """edits: what was pruned before; the divergence is from the original all the same."""
        self._session, self._edits = session, edits
        self._damage: Damage | None = None
        self._bytes = session.layer_bytes()
        self.influence: Influence = session.influence
        self.measured: dict[tuple[int, ...], Set] = {}

    def best(self, n: int) -> tuple[Set, ...]:
        """For 1 … n layers, the set that loses least of those that were measured. Raises JobError for too many."""
        require_fewer(n, self.influence.n_layers)
        return tuple(self._best_of(size) for size in range(1, n + 1))

    def _best_of(self, size: int) -> Set:
        candidates = self._candidates(size)
        self._measure(candidates)
        return min((self.measured[one] for one in candidates), key=_loss)

    def _candidates(self, size: int) -> list[tuple[int, ...]]:
        singles = range(self.influence.n_layers)
        cheapest = sorted(singles, key=self.influence.of_run)[: self._session.request.breadth]
        if size == 1:
            return [(layer,) for layer in cheapest]
        before = min((one for one in self.measured.values() if len(one.layers) == size - 1), key=_loss)
        by_loss = sorted((one for one in self.measured.values() if len(one.layers) == 1), key=_loss)
        found = {tuple(sorted({*before.layers, one.layers[0]})) for one in by_loss} - {before.layers}
        runs = range(self.influence.n_layers - size + 1)
        for first in sorted(runs, key=partial(self.influence.of_run, n=size))[:_RUNS]:
            found.add(tuple(range(first, first + size)))
        if size == 2:
            found |= {
                tuple(sorted((a.layers[0], b.layers[0]))) for a, b in combinations(by_loss[:_PAIRED], 2)
            }
        return sorted(found)

    def _measure(self, sets: Iterable[tuple[int, ...]]) -> None:
        missing = []
        for layers in sets:
            known = self._session.known(layers, self._edits)
            if known is None:
                missing.append(layers)
            else:
                self.measured[layers] = self._set(layers, *known)
        if not missing:
            return
        damage, watcher = self._opened(), self._session.watcher
        watcher.began(f"sets of {len(missing[0])}", sum(map(damage.cost, missing)), "layers")
        for layers, scores in damage.measure(missing):
            self._found(layers, scores)
            self._session.keep(layers, *mean_damage(scores), self._edits)
            watcher.progressed(
                damage.cost(layers), f"without {','.join(map(str, layers))}: KLD {scores.kld.mean():.4f}"
            )

    def _opened(self) -> Damage:
        if self._damage is None:
            session = self._session
            model: LoadedModel = session.loaded
            predictions: Predictions = session.compared
            if self._edits is not NO_EDITS:
                model = session.pruned(self._edits)
            self._damage = Damage(model, session.choosing, session.workers.map, predictions)
        return self._damage

    def _found(self, layers: tuple[int, ...], scores: TokenScores) -> None:
        self.measured[layers] = self._set(layers, *mean_damage(scores))

    def _set(self, layers: tuple[int, ...], kld: float | None = None, ppl: float | None = None) -> Set:
        influence = sum(self.influence.of_run(first, n) for first, n in runs_of(layers))
        return Set(layers, influence, sum(self._bytes.get(layer, 0) for layer in layers), kld, ppl)

    def singles(self) -> dict[int, float]:
        """Layer → divergence without it alone, of those that were measured."""
        found = sorted(one for one in self.measured if len(one) == 1)
        return {one[0]: self.measured[one].kld or 0.0 for one in found}

    def all_sets(self, longest: int) -> tuple[Set, ...]:
        """Every single layer and the cheapest runs, measured or not, and whatever was measured."""
        n = self.influence.n_layers
        wanted: list[tuple[int, ...]] = [(layer,) for layer in range(n)]
        for size in range(2, min(longest, n - 1) + 1):
            runs = sorted(range(n - size + 1), key=partial(self.influence.of_run, n=size))[:_RUNS]
            wanted += [tuple(range(first, first + size)) for first in runs]
        found = {layers: self._set(layers) for layers in wanted} | self.measured
        return tuple(sorted(found.values(), key=lambda one: (len(one.layers), _order(one))))


def runs_of(layers: Sequence[int]) -> list[tuple[int, int]]:
    """(first, number) of each run of layers that follow one another; layers ascending."""
    runs: list[tuple[int, int]] = []
    for layer in layers:
        if runs and sum(runs[-1]) == layer:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return runs


def _loss(one: Set) -> tuple[float, tuple[int, ...]]:
    """To four digits, for the last ones depend on how many threads added up."""
    assert one.kld is not None
    return float(f"{one.kld:.4g}"), one.layers


def _order(one: Set) -> tuple[object, ...]:
    if len(one.layers) == 1:
        return (0, *one.layers)
    return (0, *_loss(one)) if one.kld is not None else (1, one.influence)
