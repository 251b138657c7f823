"""Files ↔ tensors: read GGUF, single or split, and Hugging Face checkpoints; write GGUF. Knows no kernels."""

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.gguf_io.sink import FileLayout, GGUFSink, OutputTensor, commit_all, lay_out
from quantmill.gguf_io.source import GGUFSource, TensorSource, TensorSpec, open_source
from quantmill.gguf_io.types import GGML_TYPES, GGMLType, type_by_id

__all__ = [
    "GGML_TYPES",
    "FileLayout",
    "GGMLType",
    "GGUFError",
    "GGUFSink",
    "GGUFSource",
    "GGUFValueType",
    "MetaValue",
    "Metadata",
    "OutputTensor",
    "TensorSource",
    "TensorSpec",
    "commit_all",
    "lay_out",
    "open_source",
    "type_by_id",
]
