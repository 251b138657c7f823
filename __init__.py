"""quantmill turns a language model into the best GGUF its owner can run."""

__version__ = "0.1.0"
