"""How checkpoints store matrices, a file for each kind of storage, and which methods of quantization use which."""
