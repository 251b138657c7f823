"""Run a model in torch: a GGUF on its packed blocks, or a Hugging Face directory. Importing this loads no torch."""

from quantmill.models.errors import ModelError

__all__ = ["ModelError"]
