"""Tokenizers whose steps can take years or gigabytes: encoded within limits, and known ones without."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from bitsmith.errors import FileError
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.encoders import LimitedEncoders, panics_named
from bitsmith.models.tokenizer.from_gguf import encodes_in_linear_time, to_tokenizers
from bitsmith.models.tokenizer.pipeline import is_linear
from bitsmith.models.tokenizer.pretokenizers import PRETOKENIZERS
from bitsmith.models.tokenizer.vocabulary import Vocabulary, byte_alphabet

REFERENCE = Path(str(files("bitsmith") / "reference"))


def folder(tmp_path: Path, **changes: Any) -> Path:
    """The reference's tokenizer with other steps."""
    shutil.copytree(REFERENCE, tmp_path / "model", ignore=lambda *_: ["model.safetensors"])
    file = tmp_path / "model" / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")
    return tmp_path / "model"


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def bytes_after(*steps: dict[str, Any]) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, level]}


def test_the_usual_tokenizers_are_known() -> None:
    assert is_linear(json.loads((REFERENCE / "tokenizer.json").read_text("utf-8")))
    far = {"superbpe", "tiny_aya", "afmoe"}
    for row in PRETOKENIZERS:
        vocabulary = Vocabulary("gpt2", ("a",), (1,), pre=row.name)
        assert encodes_in_linear_time(vocabulary) == (row.name not in far)
        assert is_linear(json.loads(to_tokenizers(vocabulary).to_str())) == (row.name not in far)
    llama = Vocabulary("llama", ("<unk>", "a"), (2, 1), scores=(0.0, 0.0), special={"unk": 0}, add_space_prefix=True)
    assert is_linear(json.loads(to_tokenizers(llama).to_str()))


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": bytes_after(split("(a+)+$"))},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x"}] * 3}},
        {"normalizer": {"type": "Prepend", "prepend": "x" * 9}},
        {"normalizer": {"type": "Unheard"}},
        {"normalizer": ["Lowercase"]},
        {"decoder": {"type": "Replace", "pattern": {"Regex": "(a{1000}){1000}"}, "content": ""}},
    ],
)
def test_other_steps_are_not(changes: dict[str, Any]) -> None:
    assert not is_linear(changes)


def test_an_unknown_pattern_encodes_as_the_library_does(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder(tmp_path, pre_tokenizer=bytes_after(split(r"\p{L}+|\p{N}{1,2}|."))))
    ids = tokenizer.encode("<|user|> some 1234 words", add_special=False)
    assert tokenizer.decode(ids) == "<|user|> some 1234 words"
    parsed = tokenizer.encode("<|user|> some 1234 words", add_special=False, parse_special=True)
    assert len(parsed) < len(ids)


def test_a_pattern_that_backtracks_is_stopped(tmp_path: Path) -> None:
    pre = bytes_after(split("(a|aa|a)+$"))
    tokenizer = Tokenizer.from_folder(folder(tmp_path, pre_tokenizer=pre))
    tokenizer._limited._process._seconds = 3.0
    with pytest.raises(FileError, match=r"tokenizer\.json: (encoding a text of|the tokenizers library fails)"):
        tokenizer.encode(("a" * 60 + "!") * 1000, add_special=False)


def test_a_text_that_doubles_is_stopped(tmp_path: Path) -> None:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    pipeline = {"type": "Sequence", "normalizers": [double] * 40}
    tokenizer = Tokenizer.from_folder(folder(tmp_path, normalizer=pipeline))
    tokenizer._limited._process._seconds = 3.0
    with pytest.raises(FileError, match=r"tokenizer\.json: encoding a text of 2 characters takes more than"):
        tokenizer.encode("ab", add_special=False)


def test_a_file_that_the_library_cannot_load() -> None:
    with pytest.raises(FileError, match=r"x\.json: the tokenizers library fails with it"):
        LimitedEncoders('{"model": 3}', "x.json").ids("a", plain=True)


def test_panics_have_a_name() -> None:
    class PanicException(BaseException):
        """As pyo3 makes it."""

    with (
        pytest.raises(FileError, match=r"x\.json: the tokenizers library breaks off with it: oh"),
        panics_named("x.json"),
    ):
        raise PanicException("oh")
    with pytest.raises(KeyboardInterrupt), panics_named("x.json"):
        raise KeyboardInterrupt


def test_one_long_token_takes_no_quadratic_time() -> None:
    """A SentencePiece vocabulary with a token of a megabyte, and one with many that are long."""
    texts = ("<unk>", "a", "b", "ab", "ab" * 500_000)
    vocabulary = Vocabulary("llama", texts, (2, 1, 1, 1, 1), scores=(0.0,) * 5, special={"unk": 0})
    assert to_tokenizers(vocabulary).encode("ab").ids == [3]
    many = tuple("x" * length for length in range(1, 3000))
    with pytest.raises(FileError, match="tokens that are too long to find how they merge"):
        to_tokenizers(Vocabulary("llama", many, (1,) * len(many), scores=(0.0,) * len(many)))


def test_the_size_of_a_vocabulary_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsmith.models.tokenizer.vocabulary.MOST_TOKENS", 3)
    with pytest.raises(FileError, match="has 4 tokens, more than 3"):
        Vocabulary("gpt2", ("a", "b", "c", "d"), (1, 1, 1, 1))
    with pytest.raises(FileError, match="an embedding of 2,000,000,000 tokens, more than 3"):
        Vocabulary("gpt2", ("a",), (1,)).padded(2_000_000_000)


@pytest.mark.parametrize("pre", ["superbpe", "tiny_aya", "afmoe"])
def test_patterns_that_look_far_ahead_encode_within_limits(pre: str) -> None:
    letters = tuple(byte_alphabet().values())
    vocabulary = Vocabulary("gpt2", letters, (1,) * len(letters), pre=pre)
    tokenizer = Tokenizer(vocabulary)
    text = "In 1234567 words, or 12: é"
    assert tokenizer.encode(text, add_special=False) == to_tokenizers(vocabulary).encode(text).ids
    assert tokenizer._limited._process._running
