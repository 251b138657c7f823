"""Hugging Face checkpoints as GGUF: names, hyperparameters, tokenizer, lazily transformed tensors."""

from quantmill.gguf_io.convert.checkpoint import Checkpoint, is_packed, open_checkpoint
from quantmill.gguf_io.convert.families import SUPPORTED
from quantmill.gguf_io.convert.names import TensorTable, tensor_table

__all__ = ["SUPPORTED", "Checkpoint", "TensorTable", "is_packed", "open_checkpoint", "tensor_table"]
