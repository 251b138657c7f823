"""Measurements: `python -m bench.quantize` (searches) and `python -m bench.files` (whole files), beside llama.cpp.

No number is printed before its bytes have been compared with llama.cpp's.
"""
