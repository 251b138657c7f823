"""What must be true before a polish begins: the base is the original of the quant, the text is long enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantmill.gguf_io import TensorSource, TensorSpec
from quantmill.gguf_io.filesystem import open_regular
from quantmill.imatrix.reading import read_texts, read_tokens
from quantmill.imatrix.text import N_CTX, Cutting, Render, Text
from quantmill.imatrix.text import chunks_of as by_weight
from quantmill.jobs.errors import JobError
from quantmill.jobs.runnable import require_runnable
from quantmill.models.tokenizer import Tokenizer
from quantmill.qkernels import TYPES, to_float32

DEFAULT_CHUNKS = 72  # of 512 tokens; those to train on are cut in two
HELD_BACK = 8
# Of one text, more and shorter steps bring more. SmolLM2's Q4_0 file, 12288 tokens, divergence of 12 chunks that no
# training saw and of text of another genre over that before: 24 steps of 512 tokens 0.654, 0.712; 48 of 256 0.611,
# 0.690, for 7 to 29 % more time (on a loaded machine).
TRAINED_CTX = 256
FEWEST_HELD_BACK = 6  # with fewer no difference could be called one (2 in 2⁶ is 3 %)
FEWEST_TRAINED = 4
SAMPLE_ROWS = 64
# Unlike values of one bit a weight still point the way of the original's: their cosine is about 0.8.
LEAST_COSINE = 0.4
# Tensors that one file has and another of the same model does not: tied heads, and what follows from the settings.
OPTIONAL = ("output.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_OF_EVERY_LAYER = "per_layer_token_embd.weight"
FACTORS = (".scale", ".input_scale")  # of a whole matrix, beside blocks of NVFP4


@dataclass(frozen=True)
class Chunks:
    """Chunks of a text [n, n_ctx] i32: to train on, which may be shorter, and held back to judge by."""

    trained: np.ndarray
    held_back: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """Where both are of one length."""
        return np.concatenate([self.held_back, self.trained])

    @property
    def n_tokens(self) -> int:
        return self.held_back.size + self.trained.size


def chunks_of(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    renderer: Callable[[], Render],
    n_chunks: int | None,
    skip_chunks: int = 0,
    n_ctx: int = N_CTX,
) -> Chunks:
    """Cut texts into chunks and take n_chunks of them, evenly spread over all; every so many is held back.

    renderer: of conversations. skip_chunks: so many at the beginning are left out. n_ctx: tokens of the chunks to train
    on, of which there are as many more as they are shorter, spread over all that is not held back. Raises JobError for
    texts that are too short, and as imatrix.reading.read_tokens does.
    """
    for text in texts:  # the result names their digests: they are read again at the end
        open_regular(text.path).close()
    tokens = read_tokens(texts, read_texts(texts), tokenizer, renderer)
    if any(text.weight is not None for text in texts):
        chunks = by_weight(tokens, Cutting(N_CTX))[skip_chunks:]
    else:
        pieces = [ids[: len(ids) // N_CTX * N_CTX] for _, ids in tokens]
        chunks = np.array([token for piece in pieces for token in piece], np.int32).reshape(-1, N_CTX)[
            skip_chunks:
        ]
    there, n_tokens = len(chunks), sum(len(ids) for _, ids in tokens)
    wanted = min(there, n_chunks or DEFAULT_CHUNKS)
    if wanted < FEWEST_HELD_BACK + FEWEST_TRAINED:
        fewest = FEWEST_HELD_BACK + FEWEST_TRAINED
        if there >= fewest:
            raise JobError(
                f"--chunks {n_chunks}: at least {fewest} are needed, {FEWEST_HELD_BACK} to judge by"
            )
        raise JobError(
            f"{texts[0].path}: has {n_tokens} tokens; to train and to judge takes at least {fewest} chunks of {N_CTX}, "
            f"{fewest * N_CTX} tokens: give a longer text"
        )
    taken = np.arange(wanted) * there // wanted
    n_held = max(FEWEST_HELD_BACK, min(HELD_BACK, wanted // 5))
    held = np.zeros(wanted, bool)
    held[(np.arange(n_held) * 2 + 1) * wanted // (2 * n_held)] = True
    if n_ctx == N_CTX:
        trained = chunks[taken[~held]]
    else:
        rest = np.delete(chunks, taken[held], 0).reshape(-1, n_ctx)
        n = (wanted - n_held) * (N_CTX // n_ctx)
        trained = rest[np.arange(n) * len(rest) // n]
    found = Chunks(trained, chunks[taken[held]])
    if tokenizer.first is not None:
        found.trained[:, 0] = found.held_back[:, 0] = tokenizer.first
    return found


def check_trainable(path: Path, source: TensorSource) -> None:
    """Raises ModelError for a model that cannot be run, JobError for one that cannot be trained."""
    require_runnable(path, source)
    if any(spec.name == _OF_EVERY_LAYER for spec in source.specs()):
        raise JobError(
            f"{path}: has an embedding for every layer ({_OF_EVERY_LAYER}), which polish does not run; "
            "quantize --search thorough makes such a file better"
        )


def check_base(quant: TensorSource, base: TensorSource) -> None:
    """Raises JobError, naming the first tensor that differs, unless `base` is a finer copy of the model of `quant`."""
    names = f"{quant.paths[0]} and the base {base.paths[0]}"
    ours, theirs = (source.metadata.value("general.architecture") for source in (quant, base))
    if ours != theirs:
        raise JobError(f"{names} are different models: architecture {ours!r} and {theirs!r}")
    for what in _differences(quant, base):
        raise JobError(f"{names} are different models: {what}")
    tokens = [source.metadata.value("tokenizer.ggml.tokens") for source in (quant, base)]
    if all(found is not None for found in tokens) and list(tokens[0] or ()) != list(tokens[1] or ()):
        first = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
        raise JobError(f"{names} have different vocabularies: token {first} is another")
    bits = [bits_per_weight(source) for source in (quant, base)]
    if bits[1] <= bits[0]:
        raise JobError(
            f"the base {base.paths[0]} has {bits[1]:.2f} bits a weight, {quant.paths[0]} has {bits[0]:.2f}: "
            "there is nothing to learn from it; give the original"
        )


def bits_per_weight(source: TensorSource) -> float:
    """Of all matrices."""
    specs = [spec for spec in source.specs() if len(spec.shape) > 1]
    return 8 * sum(spec.n_bytes for spec in specs) / max(1, sum(spec.n_cols * spec.n_rows for spec in specs))


def quantized_base(base: TensorSource) -> str | None:
    """The coarsest quantized type of a base, to be said; None where it is in floating point."""
    types = {spec.type for spec in base.specs()} - {"F32", "F16", "BF16"}
    found = [TYPES[name] for name in types if name in TYPES]
    return min(found, key=lambda row: row.bits_per_weight).name if found else None


def _differences(quant: TensorSource, base: TensorSource) -> Iterator[str]:
    theirs = {spec.name: spec for spec in base.specs()}
    names = {spec.name for spec in quant.specs()}
    for spec in quant.specs():
        other = theirs.get(spec.name)
        if other is None:
            if not is_optional(spec.name):
                yield f"the base has no tensor {spec.name}"
        elif other.shape != spec.shape:
            yield f"{spec.name} has shape {list(spec.shape)} in one, {list(other.shape)} in the other"
    for name in theirs:
        if name not in names and not is_optional(name):
            yield f"the base has a tensor {name} besides"
    for spec in quant.specs():
        if len(spec.shape) < 2 or spec.name not in theirs:
            continue
        if "I32" in (spec.type, theirs[spec.name].type):  # whole numbers, as of the experts of each token
            n = min(SAMPLE_ROWS, spec.n_rows)
            if not np.array_equal(quant.read(spec.name, 0, n), base.read(spec.name, 0, n)):
                yield f"the first rows of {spec.name} are others"
        else:
            cosine = _cosine(quant, base, spec, theirs[spec.name])
            if cosine < LEAST_COSINE:
                yield f"the first rows of {spec.name} are others (cosine {cosine:.2f})"


def is_optional(name: str) -> bool:
    return name in OPTIONAL or name.endswith(FACTORS)


def _cosine(quant: TensorSource, base: TensorSource, ours: TensorSpec, theirs: TensorSpec) -> float:
    """Of the first rows of a tensor, in both. 1 where a row holds nothing to compare."""
    n = min(SAMPLE_ROWS, ours.n_rows)
    a, b = (
        to_float32(np.ascontiguousarray(source.read(spec.name, 0, n)), spec.type).astype(np.float64).ravel()
        for source, spec in ((quant, ours), (base, theirs))
    )
    for what, values in ((quant, a), (base, b)):
        if not np.isfinite(values).all():
            raise JobError(f"{what.paths[0]}: {ours.name} holds values that are not finite")
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 1.0
