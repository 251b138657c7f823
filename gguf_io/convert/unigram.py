"""Vocabularies of SentencePiece's Unigram, which llama.cpp calls T5's: of XLM-R and the embedding models made of it.

Tokens, scores and types are those of llama.cpp's converter (conversion/bert.py: _xlmroberta_set_vocab): of
sentencepiece.bpe.model where it is there, numbered as fairseq numbered them, else of tokenizer.json.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGUFWriter, TokenType

from quantmill.gguf_io.convert import special_tokens
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.sentencepiece_model import UNIGRAM, read_normalizer, read_pieces
from quantmill.gguf_io.convert.tokenizer_json import KINDS, TokenizerFiles, charsmap, content
from quantmill.gguf_io.convert.vocabulary import Vocabulary, load_tokenizer, unnamed
from quantmill.gguf_io.errors import GGUFError

FILE = "sentencepiece.bpe.model"
FIRST = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's; SentencePiece's own first three are <unk>, <s>, </s>


@dataclass(frozen=True)
class Unigram:
    """charsmap: SentencePiece's table of characters that are replaced. adds_space: before a text. trims: whether
    further spaces are removed."""

    vocabulary: Vocabulary
    charsmap: bytes
    adds_space: bool
    trims: bool


def write(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    found = (_of_sentencepiece if files.has(FILE) else _of_json)(files, config["vocab_size"])
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(found.vocabulary.texts)
    writer.add_token_scores(found.vocabulary.scores or [])
    writer.add_token_types(found.vocabulary.types)
    writer.add_add_space_prefix(found.adds_space)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_remove_extra_whitespaces(found.trims)
    if found.charsmap:
        writer.add_precompiled_charsmap(found.charsmap)
    special_tokens.load(files, n_vocab=len(found.vocabulary.texts)).write(writer)


def _of_sentencepiece(files: TokenizerFiles, vocab_size: int) -> Unigram:
    path = files.path(FILE)
    pieces, normalizer = read_pieces(path), read_normalizer(path)
    if normalizer.model != UNIGRAM:
        raise GGUFError(f"{path}: holds no Unigram vocabulary, which this architecture needs")
    found = unnamed(max(vocab_size, len(pieces)))
    for i, piece in enumerate(pieces):
        user_defined = piece.kind == TokenType.USER_DEFINED
        found.texts[i], found.types[i] = piece.text, int(TokenType.NORMAL if user_defined else piece.kind)
        if found.scores is not None:
            found.scores[i] = piece.score
    kinds = [int(TokenType.CONTROL)] * 3 + [int(TokenType.UNKNOWN)]
    vocabulary = Vocabulary(
        [*FIRST, *found.texts[3:-1]], kinds + found.types[3:-1], [0.0] * 4 + (found.scores or [])[3:-1]
    )
    return Unigram(vocabulary, normalizer.charsmap, normalizer.adds_space, normalizer.trims)


def _of_json(files: TokenizerFiles, vocab_size: int) -> Unigram:
    if not files.has("tokenizer.json"):
        raise GGUFError(
            f"{files.directory}: no {FILE} and no tokenizer.json; download one of them with the checkpoint"
        )
    tokenizer, model = load_tokenizer(files, "Unigram"), files.tokenizer["model"]
    pairs, added = model["vocab"], tokenizer.get_added_tokens_decoder()
    named = {content(files.settings.get(f"{kind}_token")) for kind in KINDS}
    named |= {content(token) for token in files.settings.get("additional_special_tokens") or []}
    unknown = tokenizer.token_to_id(str(content(files.settings.get("unk_token"))))
    unknown = model.get("unk_id", 3) if unknown is None else unknown
    found = unnamed(max(vocab_size, len(pairs)))
    for i, (text, score) in enumerate(pairs):
        special = text in named
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED if i in added else TokenType.NORMAL
        found.texts[i], found.types[i] = text, int(TokenType.UNKNOWN if i == unknown else kind)
        if found.scores is not None:
            found.scores[i] = score
    spaces, trims = files.flag("add_prefix_space"), files.flag("clean_up_tokenization_spaces")
    table = charsmap(files.path("tokenizer.json"), files.tokenizer)
    return Unigram(found, table, spaces is not False, bool(trims))
