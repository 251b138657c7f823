"""What a rule's part makes of a tensor of a given shape: the view of one GGUF tensor, or why it cannot be cut so."""

from __future__ import annotations

from dataclasses import dataclass

from quantmill.gguf_io.convert.layout import Expected
from quantmill.gguf_io.convert.rules import Choice, Config, Index, Part
from quantmill.gguf_io.convert.view import Shape, View, chosen
from quantmill.gguf_io.errors import GGUFError


def cut(name: str, shape: Shape, part: Part, config: Config, target: str, wanted: Expected | None) -> View:
    """name, shape: of a checkpoint's tensor, in Hugging Face dimension order. target, wanted: what it is to become, for
    messages. Raises GGUFError where the rows do not divide as the part says, or a number is missing."""
    return _Cut(name, shape, config, target, wanted).view(part)


@dataclass(frozen=True)
class _Cut:
    name: str
    shape: Shape
    config: Config
    target: str
    wanted: Expected | None

    def view(self, part: Part) -> View:
        shape = self.shape or (1,)
        if part.squeeze:
            shape = tuple(n for n in shape if n != 1)
        vector = len(shape) == 1
        n_rows, n_columns = (shape[0], 1) if vector else shape[-2:]
        leading = shape[:-2]
        if part.matrices is not None:
            heads = self._number(part.matrices)
            if n_rows % heads:
                raise self._indivisible()
            leading, n_rows = (heads,), n_rows // heads
        rows = self._choose(part.rows, n_rows)
        columns = self._choose(part.columns, n_columns)
        taken = (chosen(rows, n_rows), chosen(columns, n_columns))
        taken = taken[::-1] if part.transpose else taken
        shape = self._of_vector(part, taken[0]) if vector else (*leading, *taken)
        factors = tuple(part.factors(self.config, n_rows) or ()) if part.factors else ()
        one = (n_rows, n_columns)
        given, wanted = map(self._number, part.padded) if part.padded else (0, 0)
        padding = max(0, wanted - n_rows) if n_rows == given else 0
        shape = (shape[0] + padding, *shape[1:])
        indices = self._number(part.indices) if part.indices else 0
        changes = (part.transpose, part.values, vector, factors, padding, part.spread, indices)
        return View((self.name,), one, shape, rows, columns, *changes, product=part.product)

    def _of_vector(self, part: Part, n: int) -> Shape:
        if part.columns_of is None:
            return (n,)
        n_columns = part.columns_of
        if isinstance(n_columns, str):
            n_columns = self._number(n_columns)
        if n % n_columns:
            raise self._indivisible()
        return (n // n_columns, n_columns)

    def _choose(self, choice: Choice | None, n: int) -> Index | None:
        if choice is None:
            return None
        index = choice(self.config, n)
        if index is None or (isinstance(index, slice) and index.stop > n):
            raise self._indivisible()
        return None if isinstance(index, slice) and index == slice(0, n) else index

    def _indivisible(self) -> GGUFError:
        return GGUFError(
            f"{self.name}: has shape {list(self.shape)}, which cannot be cut as config.json says; {self.target} "
            f"is to be {self.wanted}"
        )

    def _number(self, key: str) -> int:
        number = self.config.get(key)
        if not isinstance(number, int) or number < 1:
            raise GGUFError(f"config.json: key {key!r} must be a positive number, not {number!r}")
        return number
