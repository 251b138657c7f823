"""llama.cpp itself, through the C API that xllamacpp's extension module exports: logits and tokens of a GGUF.

Everything is computed in float32: no flash attention, a float32 cache.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
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


def encodes_images(projector: Path, text: Path) -> bool:
    """Whether llama.cpp's mtmd loads a --mmproj file beside a text model, and encodes an empty image with it."""
    llama = _llama()
    llama.mtmd_log_set(_QUIET, None)
    llama.mtmd_context_params_default.restype = _Params
    llama.mtmd_init_from_file.restype = ctypes.c_void_p
    llama.mtmd_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p, _Params]
    llama.mtmd_support_vision.argtypes = llama.mtmd_free.argtypes = [ctypes.c_void_p]
    llama.mtmd_support_vision.restype = ctypes.c_bool
    with LlamaModel(text) as model:
        found = llama.mtmd_init_from_file(bytes(projector), model._model, llama.mtmd_context_params_default())
        if not found:
            return False
        sees = bool(llama.mtmd_support_vision(found))
        llama.mtmd_free(found)
        return sees
