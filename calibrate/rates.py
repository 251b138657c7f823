"""How far a step moves what: the highest relative change, by type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantmill.calibrate.codes import can_move
from quantmill.qkernels import TYPES, get_type
from quantmill.qkernels.scales import is_continuous, is_trainable

VECTORS = 1e-3
# What a step at full rates promises to take off its loss, Σ|gradient|·rate over the loss, is 0.3 to 0.4 for the small
# mixture of experts at the rates below, 1.8 for SmolLM2's Q4_0 file and 3 for its Q4_K_M file: it grows with the
# layers, and with how fine the types are. SmolLM2, 48 steps, divergence of 12 chunks that no training saw and of text
# of another genre, over that before. Q4_K_M at 3, 1.5, 0.75: 2.57, 1.37, 0.886 (without one chunk that had lost most
# 0.864, 0.722, 0.709) and 0.863, 0.786, 0.783; in the last the vectors' rate was halved too. Q4_0 at 1.8, 0.75:
# 0.566, 0.595 and 0.616, 0.664. 1.25 lies between; with it stock llama-perplexity finds 0.639 instead of 0.714 for
# the Q4_K_M file (`python -m bench.quality --types Q4_K_M --methods polish`). All this is of steps of 512 tokens; a
# step of 256 promises 1.28 times as much, by its noise. 48 of these: Q4_0 0.611 and 0.690 at 1.25, 0.604 and 0.678
# at 2; Q4_K_M 0.751 and 0.783, 0.770 and 0.793 (24 steps of 512 at 1.25: 0.772 and 0.786).
PROMISE = 1.6
# On the small mixture of experts in Q4_0, 48 chunks, the divergence falls to 0.737 of what it was at 2e-3 and to 0.773
# at 1e-3. Finer types are closer to the original than such a step.
_FINE_BITS = 5.6
_COARSE, _FINE = 2e-3, 1e-3
# Small MoE, 48 chunks, at 2e-3 and 1e-3: Q4_K 0.903, 0.820 (at 5e-4 0.826), Q5_K 0.992, 0.858; but Q5_0 0.809, 0.812
# and IQ4_XS 0.813, 0.823 (errors 0.03 to 0.05).
_AS_FINE = frozenset({"Q4_K", "Q5_K"})
# Scales on a grid of their own (E4M3's steps are an eighth of their size, E8M0's the whole) stay: a change is seen
# when it crosses half a step, at once and whole. Codes, vectors and NVFP4's factors move. Small MoE, 32 chunks of a
# text that no training saw, llama-perplexity, over the plain file: MXFP4 with its codes held 0.893, moving 0.713; NVFP4
# 0.766, where its scales moved too, at 4e-3, it did not become better.
_ON_GRIDS = frozenset({"NVFP4", "MXFP4"})

# The whole numbers that stand for the scales of a group of weights. A change is seen when it crosses half a step, at
# once and whole, so it must be small beside what the codes lose. None moves unless asked: ratio of the divergence
# without and with 4e-3, small MoE, 40 chunks: Q3_K 0.826, 0.773; Q2_K 0.786, 0.753 (at 8e-3 0.851); IQ3_S 0.815, 0.810;
# Q4_K 0.903, 1.49 (at 3e-3). But SmolLM2's Q2_K file, 24 chunks: 0.596, 0.605; another genre 0.533, 0.534.
_SUB_SCALES: dict[str, float] = {}


FINE_CODES = 5.0  # bits a weight from which codes stay
# How far the usual gradient moves the wish of a code, and what such steps may promise. Divergence of chunks that no
# training saw and of another genre, over that before. Small MoE in Q2_K, 80 steps: none 0.787, 0.863; 3e-3 0.678,
# 0.782; 1e-2 0.707, 0.783; where the mean square of each gradient is followed instead of the row's and the column's
# 0.678, 0.806; where wishes begin at the codes none moves. SmolLM2's Q4_0 file, 48 steps: none 0.604, 0.678; 7e-4
# 0.594, 0.660; 2e-3 0.593, 0.656; 9e-3 0.927, 0.870. A step of 3e-3 promises 1 to 2 times the small model's loss and 8
# to 14 times SmolLM2's. A compensated Q2_K file of the small MoE, scales alone 0.971, gets 2.86 at 1e-3.
CODES, CODE_PROMISE = 3e-3, 1.6


@dataclass(frozen=True)
class Rates:
    """Highest relative change a step, of the scales of each type (by ggml's name), of the whole numbers that stand for
    the scales of its groups, and of vectors; 0: left alone.

    codes: how far the usual gradient moves the wish of a code, in steps to the next code (codes.py); 0: none moves.
    promise: all rates are lowered together until a step promises to take at most this share of the loss away, by the
    gradient alone; None: they are as they are. code_promise: the same of codes, which are always held to it.
    """

    scales: Mapping[str, float]
    vectors: float
    sub_scales: Mapping[str, float] = field(default_factory=dict)
    promise: float | None = None
    codes: float = 0.0
    code_promise: float = CODE_PROMISE

    def of(self, type: str) -> float:
        return self.scales.get(type, 0.0)

    def moves_codes(self, name: str, type: str) -> bool:
        """Whether the codes of a tensor move: in layers, where a step is no small thing."""
        coarse = can_move(type) and get_type(type).bits_per_weight < FINE_CODES
        return self.codes > 0 and coarse and name.startswith("blk.")

    def moves_blocks(self, name: str, type: str) -> bool:
        """Whether scales or codes of a tensor move, and with them what its matrices are multiplied with."""
        return is_trainable(type) and (self.of(type) > 0 or self.moves_codes(name, type))


def rate_of(type: str) -> float:
    """The default rate of a type's scales."""
    if type in _ON_GRIDS:
        return 0.0
    assert is_continuous(type)
    coarse = TYPES[type].bits_per_weight < _FINE_BITS and type not in _AS_FINE
    return _COARSE if coarse else _FINE


def default_rates(
    scales: bool = True, vectors: bool = True, rate: float | None = None, codes: bool = True
) -> Rates:
    """Rates of every type; `rate` instead of the measured ones where something moves at all, and then not lowered.

    Codes move at their own rate, where scales may.
    """
    found = {name: rate_of(name) for name in TYPES if scales and is_trainable(name)}
    within = dict(_SUB_SCALES) if scales else {}
    if rate is not None:
        found = {name: rate if own else 0.0 for name, own in found.items()}
        within = {name: rate * own / rate_of(name) for name, own in within.items()}
    vector = VECTORS if rate is None else rate
    return Rates(
        found,
        vector if vectors else 0.0,
        within,
        PROMISE if rate is None else None,
        CODES if codes and scales else 0.0,
    )
