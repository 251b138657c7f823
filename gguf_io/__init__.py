"""Files ↔ tensors: read GGUF, single or split, and Hugging Face checkpoints; write GGUF. Knows no kernels."""

from gguf_io.errors import GGUFError
from gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from gguf_io.sink import FileLayout, GGUFSink, OutputTensor, lay_out
from gguf_io.source import GGUFSource, TensorSource, TensorSpec, open_source
from gguf_io.types import GGML_TYPES, GGMLType, type_by_id

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
    "lay_out",
    "open_source",
    "type_by_id",
]
