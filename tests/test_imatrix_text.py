"""Calibration texts: reading, cutting as llama-imatrix does, weights, order, conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantmill.errors import QuantmillError
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.imatrix import chat
from quantmill.imatrix.matrix import ImatrixError
from quantmill.imatrix.text import Cutting, Text, chunks_of, read_conversations, read_text


def tokens(first: int, n: int) -> list[int]:
    return list(range(first, first + n))


def test_one_newline_at_the_end_is_cut_off_as_llama_cpp_does(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a\nb\n\n")
    assert read_text(tmp_path / "t") == "a\nb\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"caf\xe9 au lait", r"byte 3 \(0xe9\) is not UTF-8")],
)
def test_texts_that_cannot_serve(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(QuantmillError, match=message):
        read_text(tmp_path / "t")


def test_chunks_are_whole_and_the_first_may_be_skipped() -> None:
    text = (Text(Path("t")), tokens(0, 47))
    assert chunks_of([text], Cutting(10))[:, 0].tolist() == [0, 10, 20, 30]
    assert chunks_of([text], Cutting(10, n_chunks=3, from_chunk=1))[:, 0].tolist() == [10, 20, 30]


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(
        ImatrixError, match=r"t: has 19 tokens; 2 chunks of 10 need at least 20: give a longer text$"
    ):
        chunks_of([(Text(Path("t")), tokens(0, 19))], Cutting(10))
    with pytest.raises(ImatrixError, match="after the first 3 chunks"):
        chunks_of([(Text(Path("t")), tokens(0, 47))], Cutting(10, from_chunk=3))
    with pytest.raises(ImatrixError, match="b: has 4 tokens"):
        chunks_of([(Text(Path("a")), tokens(0, 40)), (Text(Path("b")), tokens(0, 4))], Cutting(10))


@pytest.mark.parametrize("wrong", [{"n_ctx": 3}, {"n_chunks": 0}, {"from_chunk": -1}])
def test_impossible_cuts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ImatrixError):
        Cutting(**wrong)


def test_texts_follow_one_another_and_weights_give_shares() -> None:
    a, b = tokens(0, 80), tokens(1000, 40)
    plain = chunks_of([(Text(Path("a")), a), (Text(Path("b")), b)], Cutting(10))
    assert plain[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 1000, 1010, 1020, 1030]
    # b is to give three quarters: its 4 chunks allow a little more than one of a
    weighted = chunks_of([(Text(Path("a"), 1), a), (Text(Path("b"), 3), b)], Cutting(10))
    assert weighted[:, 0].tolist() == [0, 1000, 1010, 1020, 1030]
    limited = chunks_of([(Text(Path("a"), 1), a), (Text(Path("b"), 1), b)], Cutting(10, n_chunks=5))
    assert sorted((limited[:, 0] >= 1000).tolist()) in ([False] * 3 + [True] * 2, [False] * 2 + [True] * 3)
    with pytest.raises(ImatrixError, match="positive"):
        chunks_of([(Text(Path("a"), 0), a), (Text(Path("b"), 1), b)], Cutting(10))


def test_a_seed_shuffles_the_same_way_each_time() -> None:
    text = [(Text(Path("t")), tokens(0, 400))]
    one, again, other = (chunks_of(text, Cutting(10, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert sorted(one[:, 0].tolist()) == list(range(0, 400, 10))


TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ eos_token }}"


def metadata(template: str = TEMPLATE) -> Metadata:
    text, number = GGUFValueType.STRING, GGUFValueType.UINT32
    return Metadata(
        {
            "tokenizer.chat_template": MetaValue(text, template),
            "tokenizer.ggml.tokens": MetaValue(GGUFValueType.ARRAY, ["<s>", "</s>"], text),
            "tokenizer.ggml.bos_token_id": MetaValue(number, 0),
            "tokenizer.ggml.eos_token_id": MetaValue(number, 1),
        }
    )


def test_conversations_are_rendered_by_the_model_s_template(tmp_path: Path) -> None:
    lines: list[Any] = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        {"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]},
        [{"role": "system", "content": "S"}],
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    rendered = read_conversations(path, chat.from_metadata(metadata(), "m"))
    assert rendered == "<s><user>Hi<assistant>Ho</s><s><user>A<assistant>B</s><s><system>S</s>"


# Characters that str.splitlines takes for line ends; JSON lets them stand in strings.
NO_LINE_ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def test_only_line_feeds_end_a_conversation_and_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    content = f"a{NO_LINE_ENDS}b"
    line = json.dumps({"messages": [{"role": "user", "content": content}]}, ensure_ascii=False)
    line = line.translate({ord(c): c for c in NO_LINE_ENDS})
    for raw in (line + "\r\n\r\n" + line, "\ufeff" + line + "\n" + line + "\n"):
        path.write_bytes(raw.encode())
        rendered = read_conversations(path, chat.from_metadata(metadata(), "m"))
        assert rendered == 2 * f"<s><user>{content}</s>"


def test_a_byte_order_mark_of_a_plain_text_is_text_as_in_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes("\ufeffa\x85b\u2028c\r\n".encode())
    assert read_text(tmp_path / "t") == "\ufeffa\x85b\u2028c\r"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"text": "x"}', "line 2 holds no list of messages"),
        ('{"messages": [{"content": "x"}]}', "line 2: a message needs a role"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}]}\n' + line + "\n")
    with pytest.raises(QuantmillError, match=message):
        read_conversations(path, chat.from_metadata(metadata(), "m"))


def test_templates_that_are_missing_or_refuse(tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match=r"no tokenizer\.chat_template"):
        chat.from_metadata(Metadata(), "model.gguf")
    refusing = chat.from_metadata(metadata("{{ raise_exception('no system here') }}"), "m")
    with pytest.raises(ImatrixError, match="no system here"):
        refusing([{"role": "system", "content": "x"}])
    broken = chat.from_metadata(metadata("{% for m in"), "m")
    with pytest.raises(ImatrixError, match="chat template"):
        broken([{"role": "user", "content": "x"}])
