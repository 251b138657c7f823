"""Emits the search for the codebook entry nearest to a group, and a certificate of how long it stays the nearest.

The lanes are turned round here: the list of neighbours of one group is walked sixteen at a time, with a neighbour in
each place of a vector. A distance is a sum of terms that depend on one digit each, so the terms of all digits are
computed once and a neighbour only selects among them.

The certificate: from trial to trial of a search the scale s falls by a per cent or so, and a group mostly keeps its
code and its neighbour. In real numbers D_i(s') - D_n(s') has, for s' ≤ s, the sign of

    D_i(s) - D_n(s) - s·(s - s')·(A_i - A_n),     A = Σ weight_k·value_k²,

so a search also knows down to which scale its neighbour n stays the nearest. Rounding cannot make that wrong: each D
is computed with an error below 14·2^-24·Σ weight_k·(s·value_k + |x_k|)², which is at most
28·2^-24·(s²·A_i + 2·s²·A_n + 2·D_n), and several times that is set aside. Where numbers are so small or large that
they might underflow or overflow, or where another neighbour is that near, nothing is certified.
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_tables import lookup16
from quantmill.qkernels.lanes.simd import F32, I1, I32, I64, LaneBuilder, call, local, loop, repeated, splat

# Neighbours a vector; lists are filled up to a multiple of it.
RUN = 16
# The longest list of any codebook, in runs.
MAX_RUNS = 19
# Twice what the bound above asks for: three times both errors, and the roundings of the certificate itself.
_SLACK = 2.0**-16
_SMALLEST, _LARGEST = 2.0**-60, 2.0**100

_I32S, _FLOATS, _I1S = (ir.VectorType(kind, RUN) for kind in (I32, F32, I1))


def _all(value: float) -> ir.Constant:
    return repeated(value, _FLOATS)


def _all_int(value: int) -> ir.Constant:
    return repeated(value, _I32S)


def _least(builder: LaneBuilder, values: ir.Value) -> ir.Value:
    """The smallest of sixteen integers; the bits of floats that are not negative are ordered as the floats are."""
    return call(builder, f"llvm.vector.reduce.smin.v{RUN}i32", I32, values)


class Group:
    """One group of `dim` weights: the distances and norms of sixteen neighbours from their codes.

    xs, ws: addresses of the first weight and of what its distance is weighted with; the next is a row of lanes on.
    A digit of a code stands for apart·digit + low.
    """

    def __init__(
        self,
        builder: LaneBuilder,
        xs: ir.Value,
        ws: ir.Value,
        scale: ir.Value,
        shape: tuple[int, int],
        apart: float,
        low: ir.Value,
    ) -> None:
        self.builder = builder
        self.dim, self.bits = shape
        self.scale, self.low = (splat(builder, v, RUN) for v in (scale, low))
        self.apart = apart
        self.elements = [tuple(self._element(array, k) for array in (xs, ws)) for k in range(self.dim)]
        if self.builder.processor.lookup:
            self.tables = [self._terms(k, self._digits(0)) for k in range(self.dim)]
        if self.norms_by_pairs:
            self.tables = [(distance, self._pair_norm(k)) for k, (distance, _) in enumerate(self.tables)]

    @property
    def norms_by_pairs(self) -> bool:
        """Norms need not be exact, so two digits' shares may be looked up as one where both fit an index."""
        return self.builder.processor.lookup == 16 and self.bits == 2

    def _digits(self, which: int) -> ir.Constant:
        """What an index says of its first or second digit; above a digit's bits stand those of the next."""
        return ir.Constant(_FLOATS, [i >> self.bits * which & (1 << self.bits) - 1 for i in range(RUN)])

    def _pair_norm(self, k: int) -> ir.Value | None:
        if k % 2:
            return None
        (_, first), (_, second) = (self._terms(k + which, self._digits(which)) for which in (0, 1))
        return self.builder.fadd(first, second)

    def _element(self, array: ir.Value, k: int) -> ir.Value:
        place = self.builder.gep(array, [I64(k * self.builder.width)])
        return splat(self.builder, self.builder.load(place), RUN)

    def _terms(self, k: int, digits: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Element k's share of the distance and of the norm, for each of `digits`."""
        b = self.builder
        x, w = self.elements[k]
        values = b.fadd(b.fmul(digits, _all(self.apart)), self.low)
        d = b.fsub(b.fmul(self.scale, values), x)
        return b.fmul(b.fmul(w, d), d), b.fmul(w, b.fmul(values, values))

    def _share(self, codes: ir.Value, k: int) -> tuple[ir.Value, ir.Value | None]:
        b = self.builder
        digit = b.lshr(codes, _all_int(self.bits * k))
        if self.builder.processor.lookup:
            distance, norm = self.tables[k]
            return lookup16(b, distance, digit), None if norm is None else lookup16(b, norm, digit)
        digit = b.and_(digit, _all_int((1 << self.bits) - 1))
        return self._terms(k, b.sitofp(digit, _FLOATS))

    def measure(self, codes: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Distances, summed in the reference's order, and norms."""
        distance, norm = self._share(codes, 0)
        for k in range(1, self.dim):
            more, more_norm = self._share(codes, k)
            distance = self.builder.fadd(distance, more)
            if more_norm is not None:
                norm = self.builder.fadd(norm, more_norm)
        return distance, norm


class Found:
    """A neighbour that was found: its place in the list, code, distance.

    runs: how long the list is, None for one run. kept: where the distances and the norms of all of it are.
    """

    def __init__(
        self,
        builder: LaneBuilder,
        list_at: ir.Value,
        runs: ir.Value | None,
        kept: tuple[ir.Value, ir.Value],
        first: ir.Value,
    ) -> None:
        self.builder, self.list_at, self.runs, self.kept, self.first = builder, list_at, runs, kept, first
        self.code = builder.load(builder.gep(list_at, [first]))
        self.distance = self._kept(0)

    def _kept(self, which: int) -> ir.Value:
        b = self.builder
        return b.load(b.gep(b.bitcast(self.kept[which], F32.as_pointer()), [self.first]))

    def norm(self) -> ir.Value:
        return self._kept(1)

    def codes(self, run: ir.Value) -> ir.Value:
        return _codes(self.builder, self.list_at, run)

    def measured(self, run: ir.Value) -> list[ir.Value]:
        """Distances and norms of a run."""
        return [self.builder.load(self.builder.gep(place, [run])) for place in self.kept]


def _codes(b: LaneBuilder, list_at: ir.Value, run: ir.Value) -> ir.Value:
    return b.load(b.gep(b.bitcast(list_at, _I32S.as_pointer()), [run]), align=4)


class Search:
    """Finds the nearest of a list of neighbours, the first of equally near ones."""

    def __init__(self, builder: LaneBuilder, group: Group, list_at: ir.Value) -> None:
        self.builder, self.group, self.list_at = builder, group, list_at

    def of_one_run(self, kept: tuple[ir.Value, ir.Value]) -> Found:
        b = self.builder
        nearest = self._measure(I32(0), kept)
        least = _least(b, nearest)
        ties = b.bitcast(b.icmp_signed("==", nearest, splat(b, least, RUN)), ir.IntType(RUN))
        return Found(b, self.list_at, None, kept, b.zext(b.cttz(ties, I1(0)), I32))

    def of_runs(self, runs: ir.Value) -> Found:
        b = self.builder
        kept = room(b, MAX_RUNS), room(b, MAX_RUNS)
        best, best_run = (local(b, _I32S) for _ in range(2))
        b.store(_all_int(0x7FFFFFFF), best)
        b.store(_all_int(0), best_run)
        with loop(b, I64(0), runs) as i:
            ordered = self._measure(i, kept)
            nearer = b.icmp_signed("<", ordered, b.load(best))
            run = splat(b, b.trunc(i, I32), RUN)
            b.store(b.select(nearer, ordered, b.load(best)), best)
            b.store(b.select(nearer, run, b.load(best_run)), best_run)
        nearest = b.load(best)
        ties = b.icmp_signed("==", nearest, splat(b, _least(b, nearest), RUN))
        # the first in the list may stand in any place of the vector
        position = b.or_(b.shl(b.load(best_run), _all_int(4)), ir.Constant(_I32S, list(range(RUN))))
        return Found(b, self.list_at, runs, kept, _least(b, b.select(ties, position, _all_int(0x7FFFFFFF))))

    def _measure(self, run: ir.Value, kept: tuple[ir.Value, ir.Value]) -> ir.Value:
        """One run's distances, as integers of the same order."""
        b = self.builder
        measured = self.group.measure(_codes(b, self.list_at, run))
        for values, place in zip(measured, kept, strict=True):
            b.store(values, b.gep(place, [run]))
        return b.bitcast(measured[0], _I32S)


def room(builder: LaneBuilder, runs: int) -> ir.Value:
    """Memory of the function for runs of sixteen floats."""
    return builder.gep(local(builder, ir.ArrayType(_FLOATS, runs)), [I32(0), I32(0)])


class _Certificate:
    def __init__(self, builder: LaneBuilder, scale: ir.Value, nearest: Found) -> None:
        b = self.builder = builder
        self.scale, self.norm = scale, nearest.norm()
        square = b.fmul(scale, scale)
        self.energy = b.fmul(square, self.norm)
        size = b.fadd(b.fmul(self.energy, F32(5.0)), b.fmul(nearest.distance, F32(4.0)))
        base = b.fadd(nearest.distance, b.fmul(size, F32(_SLACK)))
        slack = b.fmul(square, F32(_SLACK))
        # the bound is not used below half the scale
        most = b.fmul(square, F32(0.5))
        self.code, self.base, self.norms, self.slack, self.most = (
            splat(b, v, RUN) for v in (nearest.code, base, self.norm, slack, most)
        )

    def limits(self, codes: ir.Value, distances: ir.Value, norms: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Of sixteen neighbours: how large s·(s - s') may become, and which are too near to tell."""
        b = self.builder
        ahead = b.fsub(b.fsub(distances, self.base), b.fmul(self.slack, norms))
        other = b.icmp_signed("!=", codes, self.code)
        close = b.and_(other, b.fcmp_unordered("<=", ahead, _all(0.0)))
        gain = b.fsub(norms, self.norms)
        gains = b.and_(other, b.fcmp_ordered(">", gain, _all(0.0)))
        limit = b.fdiv(ahead, b.select(gains, gain, _all(1.0)))
        tighter = b.and_(gains, b.fcmp_ordered("<", limit, self.most))
        return b.select(tighter, limit, self.most), close

    def until(self, limits: ir.Value, close: ir.Value) -> ir.Value:
        b = self.builder
        least = b.bitcast(_least(b, b.bitcast(limits, _I32S)), F32)
        bound = b.fsub(self.scale, b.fdiv(least, self.scale))
        sure = b.icmp_unsigned("==", b.bitcast(close, ir.IntType(RUN)), ir.IntType(RUN)(0))
        sure = b.and_(sure, b.fcmp_ordered(">=", self.energy, F32(_SMALLEST)))
        sure = b.and_(sure, b.fcmp_ordered("<=", self.norm, F32(_LARGEST)))
        return b.select(sure, bound, F32(float("inf")))


def stays_until(builder: LaneBuilder, scale: ir.Value, nearest: Found) -> ir.Value:
    """The smallest scale, down from this one, for which the search would find the same; infinite if unknown."""
    b = builder
    certificate = _Certificate(b, scale, nearest)
    if nearest.runs is None:
        run = I32(0)
        return certificate.until(*certificate.limits(nearest.codes(run), *nearest.measured(run)))
    limits, close = local(b, _FLOATS), local(b, _I1S)
    b.store(certificate.most, limits)
    b.store(ir.Constant(_I1S, [0] * RUN), close)
    with loop(b, I64(0), nearest.runs) as i:
        limit, near = certificate.limits(nearest.codes(i), *nearest.measured(i))
        tighter = b.fcmp_ordered("<", limit, b.load(limits))
        b.store(b.select(tighter, limit, b.load(limits)), limits)
        b.store(b.or_(b.load(close), near), close)
    return certificate.until(b.load(limits), b.load(close))
