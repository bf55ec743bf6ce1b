"""Names of texts: files, data sets of the hub, the built-in text; several are joined in order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.system.progress import Progress
from bitsmith.texts import sources
from bitsmith.texts.hub import choose_file, looks_like_data_set
from bitsmith.texts.sources import PlainText, Texts, open_texts, read_utf8
from bitsmith.texts.tokens import encode_texts


@dataclass(frozen=True)
class Bytes:
    """One token a byte; a chat begins with token 300."""

    has_chat_template: bool = True
    adds_bos: bool = False
    bos: int | None = None

    def encode(self, text: str, *, add_special: bool) -> Sequence[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> Sequence[int]:
        if not self.has_chat_template:
            raise UnsupportedError("this model has no chat template")
        return [300, *(byte for each in messages for byte in each["content"].encode())]


def opened(*names: str | Path) -> Texts:
    return open_texts(names, option="--text", built_in=lambda: "built in")


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_several_texts_are_joined_in_order(tmp_path: Path) -> None:
    a = written(tmp_path / "a.txt", "first ")
    b = written(tmp_path / "b.json", json.dumps([{"text": "second "}, {"instruction": "x", "output": "y"}]))
    found = opened(a, "default", b)
    assert found.name == f"a.txt + {sources.built_in_name()} + b.json"
    ids = encode_texts(found, Bytes()).ids.tolist()
    assert ids == [*b"first built in" + b"second ", 300, *b"xy"]
    assert found.sha256() == hashlib.sha256(a.read_bytes() + b"built in" + b.read_bytes()).hexdigest()
    assert encode_texts(found, Bytes(has_chat_template=False)).ids.tolist()[-4:] == [*b"x\n\ny"]


def test_without_names_the_built_in_text() -> None:
    assert opened() == Texts((PlainText(sources.built_in_name(), sources.built_in_name(), "built in"),))


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", '{"text": "a"}\n{"messages": [{"role": "user", "content": "b"}]}')
    with pytest.raises(UnsupportedError, match=r"x\.jsonl, line 2: this model has no chat template"):
        encode_texts(opened(path), Bytes(has_chat_template=False))


def test_tokens_are_bounded_and_a_note_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", "\n".join('{"text": "abcd"}' for _ in range(100)) + "\nnot JSON, and not read")
    found = encode_texts(opened(path), Bytes(), most=10)
    assert found.ids.tolist() == [*b"abcdabcdab"]
    assert found.notes == (f"x.jsonl: only the first 10 tokens are used; the text goes on in {path}, line 3",)
    assert encode_texts(opened(written(tmp_path / "y.txt", "ab")), Bytes(), most=2).notes == ()


def test_reading_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", "\n".join('{"text": "abcd"}' for _ in range(1000)))
    seen: list[Progress] = []
    encode_texts(opened(path), Bytes(), report=seen.append)
    assert len(seen) == 4
    assert {each.stage for each in seen} == {"read"}
    assert [each.done for each in seen] == sorted(each.done for each in seen)


def test_text_is_read_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("a\r\nb\u2019 \U0001f600\n".encode())
    assert read_utf8(path) == "a\r\nb\u2019 \U0001f600\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b" \n\t\n", "empty"), (b"abc\xff\n", "0xff at position 3"), (b"ab\xe2\x82", "position 2")],
)
def test_text_that_cannot_be_used(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(FileError, match=message) as caught:
        read_utf8(path)
    assert str(path) in str(caught.value)


def test_plain_text_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_TEXT", 1 << 20)
    path = written(tmp_path / "text.txt", "x" * (1 << 20))
    assert len(read_utf8(path)) == 1 << 20
    for large in (written(path, "x" * ((1 << 20) + 1)), Path("/dev/zero")):
        with pytest.raises(FileError, match="a plain text may have 1 MiB, and this has more"):
            opened(large)


def test_names_without_a_file(tmp_path: Path) -> None:
    for name in ("none.txt", "none/here.jsonl", "nowhere", str(tmp_path), "x" * 5000, "a\0b"):
        with pytest.raises(FileError, match=r"(there is no such file|is a folder); expected UTF-8 text"):
            opened(name)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(FileError, match="records can be read from a regular file only"):
        opened(tmp_path / "pipe.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": " "}\n{"messages": []}', "[]"])
def test_files_without_words(tmp_path: Path, content: str) -> None:
    with pytest.raises(FileError, match=r"x\.jsonl: .* empty; give a file with text"):
        encode_texts(opened(written(tmp_path / "x.jsonl", content)), Bytes())


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        *(("owner/name", True), ("owner/name:data/train.jsonl", True), ("dir/text.txt", False), ("name", False)),
        ("dir/rows.parquet", False),
    ],
)
def test_what_looks_like_a_data_set(source: str, is_one: bool) -> None:
    assert looks_like_data_set(source) is is_one


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["README.md", "test.jsonl", "data/train.jsonl", "a.txt"], "data/train.jsonl"),
        (["data/train.parquet", "test.jsonl"], "test.jsonl"),
        (["README.md", "data/test-0.parquet", "data/train-0.parquet", "dataset_infos.json"], "data/train-0.parquet"),
        (["dataset_infos.json", "alpaca.json"], "alpaca.json"),
    ],
)
def test_the_file_of_a_data_set(files: list[str], chosen: str) -> None:
    assert choose_file("a/b", files, "--text") == chosen


def test_a_data_set_without_texts() -> None:
    with pytest.raises(UnsupportedError, match=r'text="a/b": the data set has no .* file \(it has .arrow\)'):
        choose_file("a/b", ["README.md", "x.arrow", "dataset_info.json"][:2], "--text")
