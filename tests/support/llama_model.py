"""llama.cpp itself, through the C API that xllamacpp's extension module exports: logits and tokens of a GGUF.

Everything is computed in float32: no flash attention, a float32 cache.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_F16, _F32 = 1, 0  # ggml.h: enum ggml_type
# Positions in llama_context_params, counted in 32-bit words (llama.h).
_N_CTX, _N_THREADS, _N_THREADS_BATCH, _KIND, _FLASH_ATTENTION, _TYPE_K, _TYPE_V = 0, 7, 8, 9, 13, 26, 27
_OF_NEXTN = 1  # llama.h: LLAMA_CONTEXT_TYPE_MTP
# In llama_model_params: four of its flags, one a byte: vocab_only, check_tensors, use_extra_bufts, no_host.
_BOOLS, _VOCAB_ONLY, _EXTRA_BUFFERS = 18, 0x1, 0x10000
_MORE_BOOLS, _LOAD_NEXTN = 19, 0x100


class _Params(ctypes.Structure):
    """Larger than any of the parameter structures, which are passed last and by value."""

    _fields_ = (("words", ctypes.c_int32 * 128),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_QUIET = _LOG(lambda level, text, data: None)


@functools.cache
def _llama() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise RuntimeError("xllamacpp, the oracle, is not installed: pip install 'quantmill[test]'")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(library, name).restype = _Params
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Params]
    library.llama_init_from_model.restype = ctypes.c_void_p
    library.llama_init_from_model.argtypes = [ctypes.c_void_p, _Params]
    library.llama_model_get_vocab.restype = ctypes.c_void_p
    library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    library.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
    library.llama_tokenize.argtypes = [
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)),
        *(ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    ]
    library.llama_batch_init.restype = _Batch
    library.llama_decode.argtypes = [ctypes.c_void_p, _Batch]
    library.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_free.argtypes = library.llama_model_free.argtypes = [ctypes.c_void_p]
    library.llama_log_set(_QUIET, None)
    library.llama_backend_init()
    return library


def _tokenize(llama: ctypes.CDLL, vocab: Any, text: str, add_special: bool, parse_special: bool) -> list[int]:
    raw = text.encode()
    ids = (ctypes.c_int32 * (len(raw) + 8))()
    count = llama.llama_tokenize(vocab, raw, len(raw), ids, len(ids), add_special, parse_special)
    assert count >= 0
    return list(ids[:count])


class LlamaModel:
    """A GGUF that llama.cpp has loaded. Use as a context manager. nextn: to run the layer that predicts further tokens
    instead of the others."""

    def __init__(self, path: Path, n_ctx: int = 64, nextn: bool = False) -> None:
        self._llama = _llama()
        self._context = None
        of_model = self._llama.llama_model_default_params()
        assert of_model.words[_BOOLS] == _EXTRA_BUFFERS
        of_model.words[_MORE_BOOLS] = _LOAD_NEXTN if nextn else 0
        self._model = self._llama.llama_model_load_from_file(bytes(path), of_model)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        params = self._llama.llama_context_default_params()
        assert (params.words[_N_CTX], params.words[_TYPE_K], params.words[_TYPE_V]) == (512, _F16, _F16)
        params.words[_N_CTX] = n_ctx
        params.words[_N_THREADS] = params.words[_N_THREADS_BATCH] = 1
        params.words[_FLASH_ATTENTION] = 0
        params.words[_KIND] = _OF_NEXTN if nextn else 0
        params.words[_TYPE_K] = params.words[_TYPE_V] = _F32
        self._context = self._llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self.n_vocab = self._llama.llama_vocab_n_tokens(self._vocab)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text` without added BOS or EOS."""
        return _tokenize(self._llama, self._vocab, text, False, special)

    def logits(self, tokens: list[int], hidden: np.ndarray | None = None) -> np.ndarray:
        """float32 [len(tokens), n_vocab] of one sequence; once for a model, whose cache it fills. hidden: of nextn, the
        states [len(tokens), n_embd] of the tokens before."""
        batch = self._llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        states = None if hidden is None else np.ascontiguousarray(hidden, np.float32)
        if states is not None:
            batch.embd = states.ctypes.data
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        assert self._llama.llama_decode(self._context, batch) == 0
        rows = [self._llama.llama_get_logits_ith(self._context, i) for i in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (self.n_vocab,)).copy() for row in rows])

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._context:
            self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)


class LlamaVocabulary:
    """The vocabulary of a GGUF that llama.cpp has loaded, without any tensor. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._llama = _llama()
        params = self._llama.llama_model_default_params()
        assert params.words[_BOOLS] == _EXTRA_BUFFERS
        params.words[_BOOLS] |= _VOCAB_ONLY
        self._model = self._llama.llama_model_load_from_file(bytes(path), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self._vocab = self._llama.llama_model_get_vocab(self._model)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids as llama_tokenize gives them."""
        return _tokenize(self._llama, self._vocab, text, add_special, parse_special)

    def __enter__(self) -> LlamaVocabulary:
        return self

    def __exit__(self, *exception: object) -> None:
        self._llama.llama_model_free(self._model)


class _Words(ctypes.Structure):
    """mtmd.h: mtmd_input_text."""

    _fields_ = (
        ("text", ctypes.c_char_p),
        ("text_len", ctypes.c_size_t),
        ("add_special", ctypes.c_bool),
        ("parse_special", ctypes.c_bool),
    )


# Positions in mtmd_context_params, counted in 32-bit words (mtmd.h): threads, fewest and most tokens of an image.
_MTMD_THREADS, _FEWEST, _MOST = 5, 12, 13
_IMAGE = 1  # mtmd.h: MTMD_INPUT_CHUNK_TYPE_IMAGE
_P, _SIZE = ctypes.c_void_p, ctypes.c_size_t


@functools.cache
def _mtmd() -> ctypes.CDLL:
    llama = _llama()
    llama.mtmd_log_set(_QUIET, None)
    llama.mtmd_context_params_default.restype = _Params
    llama.mtmd_init_from_file.restype = llama.mtmd_bitmap_init.restype = _P
    llama.mtmd_input_chunks_init.restype = llama.mtmd_input_chunks_get.restype = _P
    llama.mtmd_input_chunks_size.restype = llama.mtmd_input_chunk_get_n_tokens.restype = _SIZE
    llama.mtmd_default_marker.restype = ctypes.c_char_p
    llama.mtmd_get_output_embd.restype = ctypes.POINTER(ctypes.c_float)
    llama.mtmd_init_from_file.argtypes = [ctypes.c_char_p, _P, _Params]
    llama.mtmd_bitmap_init.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p]
    llama.mtmd_tokenize.argtypes = [_P, _P, ctypes.POINTER(_Words), _P, _SIZE]
    llama.mtmd_input_chunks_get.argtypes = [_P, _SIZE]
    llama.mtmd_encode_chunk.argtypes = [_P, _P]
    for name in ("free", "bitmap_free", "input_chunks_free", "input_chunks_size", "get_output_embd"):
        getattr(llama, f"mtmd_{name}").argtypes = [_P]
    for name in ("get_type", "get_n_tokens"):
        getattr(llama, f"mtmd_input_chunk_{name}").argtypes = [_P]
    llama.llama_model_n_embd.argtypes = [_P]
    return llama


def embeddings_of_images(
    projector: Path, text: Path, images: Sequence[np.ndarray], most: int = 0
) -> list[np.ndarray]:
    """What llama.cpp's mtmd makes of images [height, width, 3] u8 with a --mmproj file beside a text model: float32
    [n_tokens, n_embd] of each. most: tokens that an image may have at most, 0: as many as the model says."""
    mtmd = _mtmd()
    params = mtmd.mtmd_context_params_default()
    assert (params.words[_MTMD_THREADS], params.words[_FEWEST], params.words[_MOST]) == (4, -1, -1)
    params.words[_MTMD_THREADS] = 1
    if most:
        params.words[_FEWEST], params.words[_MOST] = 1, most
    with LlamaModel(text) as model:
        context = mtmd.mtmd_init_from_file(bytes(projector), model._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp's mtmd does not load {projector}")
        found = [_embeddings(mtmd, context, model, image) for image in images]
        mtmd.mtmd_free(context)
    return found


def _embeddings(mtmd: ctypes.CDLL, context: Any, model: LlamaModel, image: np.ndarray) -> np.ndarray:
    bitmap = mtmd.mtmd_bitmap_init(image.shape[1], image.shape[0], image.tobytes())
    chunks, marker = mtmd.mtmd_input_chunks_init(), mtmd.mtmd_default_marker()
    assert (
        mtmd.mtmd_tokenize(context, chunks, _Words(marker, len(marker), False, True), (_P * 1)(bitmap), 1)
        == 0
    )
    rows = []
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        if mtmd.mtmd_input_chunk_get_type(chunk) == _IMAGE:
            assert mtmd.mtmd_encode_chunk(context, chunk) == 0
            shape = mtmd.mtmd_input_chunk_get_n_tokens(chunk), mtmd.llama_model_n_embd(model._model)
            rows.append(np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), shape).copy())
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(bitmap)
    return np.concatenate(rows)
