"""quantmill turns a language model into the best GGUF its owner can run."""
