"""How products of whole numbers are cut: what their code (cpu_product_driver) and who calls it must agree on."""

from __future__ import annotations

BLOCK = 32  # numbers of a row that share a scale
TOP, TOP_OF_MATRIX = 16383, 4095  # the largest codes: 16383 · 4095 · 32 < 2^31
LANES = 16
ROWS, VECTORS = 3, 4  # of the sums that are kept in registers, as whole numbers and as floats
WIDE = LANES * VECTORS  # rows of the matrix that are packed together
QUERIES = 96  # tokens of an attention whose scores are there at a time: whole blocks, whole ROWS
DECODER_TABLES = (0, 1)  # how many tables the decoders of stored matrices have
WIDENED = ("F32", "F16", "BF16")  # plain types, which need none


def numbers_at_once(block: int, parts: int) -> int:
    """Of a block of a type that is decoded in so many parts: how many are decoded before they are packed."""
    assert block % BLOCK == 0
    return max(block // parts, BLOCK)
