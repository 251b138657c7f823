"""How short products are cut: what their code (cpu_product_driver, cpu_tile_driver) and who calls it must agree on."""

from __future__ import annotations

INT16, BFLOAT16X3 = "int16", "bfloat16x3"  # kinds of products: of cpu_product_driver, of cpu_tile_driver
BLOCK = 32  # numbers of a row that share a scale, or a row of a tile
TOP, TOP_OF_MATRIX = 16383, 4095  # the largest codes: 16383 · 4095 · 32 < 2^31
LANES = 16
ROWS, VECTORS = 3, 4  # of the sums that are kept in registers, as whole numbers and as floats
WIDE = LANES * VECTORS  # rows of the matrix that are packed together
TILE_ROWS = 32  # of what is multiplied, and of the matrix, whose products are summed in tiles at a time
QUERIES = 96  # tokens of an attention whose scores are there at a time: whole blocks, whole ROWS
DECODER_TABLES = (0, 1)  # how many tables the decoders of stored matrices have
WIDENED = ("F32", "F16", "BF16")  # plain types, which need none


def numbers_at_once(block: int, parts: int) -> int:
    """Of a block of a type that is decoded in so many parts: how many are decoded before they are packed."""
    assert block % BLOCK == 0
    return max(block // parts, BLOCK)
