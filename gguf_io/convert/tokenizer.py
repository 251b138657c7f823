"""The tokenizer part of the metadata: which kind of vocabulary a family has and what it adds to it.

The facts are those of llama.cpp's converter (`conversion/*.py: set_vocab`).
"""

from __future__ import annotations

from collections.abc import Callable

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer

from quantmill.gguf_io.convert import (
    chat_templates,
    keys,
    pretokenizer,
    special_tokens,
    tiktoken_files,
    vocabulary,
)
from quantmill.gguf_io.convert.config import load_optional_json
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tokenizer_files import has_sentencepiece
from quantmill.gguf_io.convert.tokenizer_json import TokenizerFiles, content
from quantmill.gguf_io.convert.vocabulary import Vocabulary
from quantmill.gguf_io.errors import GGUFError

TokenizerWriter = Callable[[GGUFWriter, TokenizerFiles, Config], None]

CODE_LLAMA_VOCAB = 32016
CODE_LLAMA_INFILL = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
GRANITE_SMALL_VOCAB = 49152
HUNYUAN_BEGINS, HUNYUAN_7B_WIDTH, HUNYUAN_7B_BEGINS = 127959, 4096, 127958
GEMMA_SHOWN = (
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    '<|"|>',
)


def bpe(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """Byte-level BPE, whichever files hold it."""
    tokenizer = vocabulary.load_tokenizer(files)
    special = special_tokens.load(files, merges=True, ids=tokenizer.token_to_id)
    _write_bpe(writer, files, config, tokenizer, special)


def sentencepiece_or_bpe(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    if has_sentencepiece(files):
        sentencepiece(writer, files, config)
    else:
        bpe(writer, files, config)


def sentencepiece(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    _write_sentencepiece(writer, files, vocabulary.sentencepiece(files, config["vocab_size"]))


def _sentencepiece_in_any_file(
    writer: GGUFWriter, files: TokenizerFiles, config: Config, family: str
) -> None:
    if has_sentencepiece(files):
        sentencepiece(writer, files, config)
        return
    if not vocabulary.is_byte_fallback_bpe(files):
        raise GGUFError(
            f"{files.directory}: no tokenizer.model and no tokenizer.json with a SentencePiece vocabulary; "
            f"{family} needs one, download it with the checkpoint"
        )
    tokenizer = vocabulary.load_tokenizer(files)
    _write_sentencepiece(writer, files, vocabulary.scored_by_merges(files, tokenizer, config["vocab_size"]))


def llama(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """SentencePiece, SentencePiece inside tokenizer.json, or byte-level BPE: all three are Llamas."""
    add_prefix_space = files.flag("add_prefix_space")
    if add_prefix_space is not None:
        writer.add_add_space_prefix(add_prefix_space)
    if has_sentencepiece(files):
        sentencepiece(writer, files, config)
    elif vocabulary.is_byte_fallback_bpe(files):
        tokenizer = vocabulary.load_tokenizer(files)
        found = vocabulary.byte_fallback_bpe(files, tokenizer, config["vocab_size"])
        _write_sentencepiece(writer, files, found)
    else:
        bpe(writer, files, config)
    if config["vocab_size"] == CODE_LLAMA_VOCAB:
        for kind, token_id in CODE_LLAMA_INFILL.items():
            getattr(writer, f"add_{kind}_token_id")(token_id)
    if config["vocab_size"] == GRANITE_SMALL_VOCAB:
        special_tokens.add_flag(writer, "bos", False)


def gemma2(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    _sentencepiece_in_any_file(writer, files, config, "Gemma")
    writer.add_add_space_prefix(False)


def gemma3(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    if has_sentencepiece(files) or vocabulary.is_byte_fallback_bpe(files):
        gemma2(writer, files, config)
    else:
        bpe(writer, files, config)


def gemma4(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """SentencePiece's BPE with its merges; what a chat parser must see is no control token."""
    if not vocabulary.is_byte_fallback_bpe(files):
        raise GGUFError(
            f"{files.path('tokenizer.json')}: holds no BPE with byte fallback, which Gemma 4 needs"
        )
    tokenizer = vocabulary.load_tokenizer(files)
    found = vocabulary.byte_fallback_bpe(files, tokenizer, config["vocab_size"])
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(found.texts)
    writer.add_token_scores(found.scores or [])
    writer.add_token_types(
        [
            int(TokenType.USER_DEFINED) if text in GEMMA_SHOWN else kind
            for text, kind in zip(found.texts, found.types, strict=True)
        ]
    )
    special_tokens.load(files, merges=True, ids=tokenizer.token_to_id).write(writer)
    writer.add_add_space_prefix(False)
    special_tokens.add_flag(writer, "bos", True)


def ernie(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    _sentencepiece_in_any_file(writer, files, config, "ERNIE")
    add_prefix_space = files.flag("add_prefix_space")
    if add_prefix_space is not None:
        writer.add_add_space_prefix(add_prefix_space)


def phi3(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """Phi-4 has GPT-2's byte-level BPE; Phi-3 a SentencePiece model with tokens added in three files."""
    if files.settings.get("tokenizer_class") == "GPT2Tokenizer":
        bpe(writer, files, config)
        return
    if not has_sentencepiece(files):
        _sentencepiece_in_any_file(writer, files, config, "Phi-3")
        return
    found = vocabulary.sentencepiece(files, config["vocab_size"], tokenizer_json_too=True)
    _write_sentencepiece(writer, files, found)


def glm4(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """GLM ends a turn with <|user|> and has <|endoftext|> for everything else."""
    roles = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>", "bos": "<|endoftext|>"}
    _write_glm(writer, files, config, roles)


def glm(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """GLM-4.5 and later begin with [gMASK], end a turn with <|user|> or <|observation|>."""
    roles = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}
    _write_glm(writer, files, config, roles)


def bpe_or_tiktoken(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """Byte-level BPE, or a vocabulary whose class is code of the checkpoint (tiktoken_files.py)."""
    _write_bpe_or_tiktoken(writer, files, config)


def kimi_linear(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """Where the vocabulary is tiktoken's, its class says what ends a text, not config.json."""
    found = _write_bpe_or_tiktoken(writer, files, config)
    end = content(files.settings.get("eos_token"))
    if found is not None and end in found.texts:
        keys.add(writer, "tokenizer.ggml", [("eos_token_id", keys.UINT32, found.texts.index(end))])


def kimi_k3(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """As Kimi-Linear's, but for what config.json says, which ends a turn."""
    kimi_linear(writer, files, config)
    end = config.get("eos_token_id")
    if isinstance(end, int) and end >= 0:
        keys.add(writer, "tokenizer.ggml", [("eos_token_id", keys.UINT32, end)])


def hunyuan_moe(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """config.json names a wrong beginning of text."""
    bpe_or_tiktoken(writer, files, config)
    keys.add(writer, "tokenizer.ggml", [("bos_token_id", keys.UINT32, HUNYUAN_BEGINS)])


def hunyuan(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """Hunyuan's files name a wrong end of text; where there are several, the first ends a turn. Of the 7B model, whose
    vocabulary has no tokenizer.json, the beginning is wrong too."""
    bpe_or_tiktoken(writer, files, config)
    if not files.has("tokenizer.json") and config["hidden_size"] == HUNYUAN_7B_WIDTH:
        keys.add(writer, "tokenizer.ggml", [("bos_token_id", keys.UINT32, HUNYUAN_7B_BEGINS)])
    end = files.config.get("eod_token_id")
    if isinstance(end, int) and end >= 0:
        keys.add(writer, "tokenizer.ggml", [("eos_token_id", keys.UINT32, end)])
    path = files.path("generation_config.json")
    ends = load_optional_json(path).get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1 and isinstance(ends[0], int):
        writer.add_eot_token_id(ends[0])


def laguna(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """Laguna ends a turn with a token of its own, which its files do not call special."""
    tokenizer = vocabulary.load_tokenizer(files)
    special = special_tokens.load(files, merges=True, ids=tokenizer.token_to_id)
    special.chat_templates = chat_templates.resolved(files, special.chat_templates)
    _write_bpe(writer, files, config, tokenizer, special, control=("</assistant>",))
    ends = files.config.get("eos_token_id")
    if isinstance(ends, list):
        others = [end for end in ends if isinstance(end, int) and end != files.config.get("bos_token_id")]
        if others:
            writer.add_eot_token_id(others[0])


def wordpiece(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    tokenizer = vocabulary.load_tokenizer(files, "WordPiece")
    found = vocabulary.wordpiece(files, tokenizer, config["vocab_size"])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre(pretokenizer.of_words(files, tokenizer))
    writer.add_token_list(found.texts)
    writer.add_token_types(found.types)
    special_tokens.load(files, n_vocab=len(found.texts), ids=tokenizer.token_to_id).write(writer)


def deepseek4(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """The chat template comes first in llama.cpp's converter, which has one for checkpoints without."""
    bpe(writer, files, config)
    items, key = writer.kv_data[0], "tokenizer.chat_template"
    if key in items:
        template, (architecture, *_) = items.pop(key), items
        writer.kv_data[0] = {architecture: items[architecture], key: template} | items


def muse_glimmer(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    bpe(writer, files, config)
    end = vocabulary.load_tokenizer(files).token_to_id("<|eot|>")
    if end is not None:
        writer.add_eot_token_id(end)


def modern_bert(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    special_tokens.add_flag(writer, "bos", True)
    special_tokens.add_flag(writer, "eos", True)
    special_tokens.add_flag(writer, "sep", True)
    bpe(writer, files, config)


def _write_bpe_or_tiktoken(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> Vocabulary | None:
    """The vocabulary, where it is tiktoken's."""
    found = tiktoken_files.read(files, config["vocab_size"])
    if found is None:
        bpe(writer, files, config)
        return None
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.vocabulary.texts)
    writer.add_token_types(found.vocabulary.types)
    writer.add_token_merges(found.merges)
    special_tokens.load(files).write(writer)
    return found.vocabulary


def _write_glm(writer: GGUFWriter, files: TokenizerFiles, config: Config, roles: dict[str, str]) -> None:
    tokenizer = vocabulary.load_tokenizer(files)
    special = special_tokens.load(files, merges=True, ids=tokenizer.token_to_id)
    for kind, text in roles.items():
        token_id = tokenizer.token_to_id(text)
        if token_id is None:
            raise GGUFError(f"{files.path('tokenizer.json')}: has no token {text}, which GLM needs as {kind}")
        special.set_id(kind, token_id)
    _write_bpe(writer, files, config, tokenizer, special)


def _write_bpe(
    writer: GGUFWriter,
    files: TokenizerFiles,
    config: Config,
    tokenizer: Tokenizer,
    special: special_tokens.SpecialTokens,
    control: tuple[str, ...] = (),
) -> None:
    """control: texts of tokens that are control tokens whatever the files say."""
    found = vocabulary.byte_level_bpe(files, tokenizer, config["vocab_size"])
    found.types = [
        int(TokenType.CONTROL) if text in control else kind
        for text, kind in zip(found.texts, found.types, strict=True)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pretokenizer.recognise(files, tokenizer))
    writer.add_token_list(found.texts)
    writer.add_token_types(found.types)
    special.write(writer)


def _write_sentencepiece(writer: GGUFWriter, files: TokenizerFiles, found: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(found.texts)
    writer.add_token_scores(found.scores or [])
    writer.add_token_types(found.types)
    special_tokens.load(files, n_vocab=len(found.texts), ids=found.named_elsewhere.get).write(writer)
