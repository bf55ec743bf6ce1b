"""Encoding, decoding and streaming."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from bitsmith.errors import FileError
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.vocabulary import byte_alphabet
from tests.models.tokenizer.folders import HOSTILE, write_folder
from tests.models.tokenizer.spm import merged_json, model_proto, small_model


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    return Tokenizer.from_folder(Path(str(files("bitsmith") / "reference")))


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """SentencePiece BPE."""
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    source = merged_json(small_model(), prefix=request.param)
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("spm"), source, config=config))


def test_facts(reference: Tokenizer) -> None:
    assert (reference.size, reference.bos, reference.adds_bos, reference.end_ids) == (4096, 0, False, {0})


def test_round_trip(reference: Tokenizer, pieces: Tokenizer) -> None:
    for tokenizer in (reference, pieces):
        for text in (HOSTILE, " x", "x ", "  ", "", "é", "🦙"):
            assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_special_tokens_are_text_unless_asked_for(reference: Tokenizer) -> None:
    text = "a<|user|>b"
    assert 2 not in reference.encode(text, add_special=True)
    ids = reference.encode(text, add_special=True, parse_special=True)
    assert ids.count(2) == 1
    assert reference.decode(ids) == "ab"
    assert reference.decode(ids, special=True) == text
    assert 2 not in reference.encode(text, add_special=True)  # asking once changes nothing later


def test_stream_gives_whole_characters(reference: Tokenizer, pieces: Tokenizer) -> None:
    for tokenizer in (reference, pieces):
        decoder = tokenizer.stream()
        parts = [decoder.feed(token) for token in tokenizer.encode(HOSTILE, add_special=False)]
        assert decoder.finish() == ""
        assert "".join(parts) == HOSTILE
        assert len([part for part in parts if part]) > 300
        assert "" in parts  # some character took several tokens
        assert all("\ufffd" not in part or part == "\ufffd" for part in parts)


def test_unfinished_and_impossible_bytes(reference: Tokenizer) -> None:
    ids = reference.encode("🦙", add_special=False)
    letter = reference.encode("a", add_special=False)
    assert len(ids) > 1
    assert reference.decode(ids[:-1]) == "\ufffd"
    assert reference.decode([*ids[:-1], *letter]) == "\ufffda"
    decoder = reference.stream()
    assert [decoder.feed(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert decoder.feed(letter[0]) == "\ufffda"


def test_leading_space(pieces: Tokenizer) -> None:
    ids = pieces.encode("the value", add_special=True)
    whole, continued = pieces.stream(), pieces.stream(continues=True)
    shown = "".join(map(whole.feed, ids))
    assert shown == "the value"
    prefix = " " if pieces.vocabulary.add_space_prefix else ""
    assert "".join(map(continued.feed, ids)) == prefix + shown


def test_ids_outside_the_vocabulary(reference: Tokenizer) -> None:
    for token in (-1, 4096):
        with pytest.raises(FileError, match=f"token {token} is outside the vocabulary of 4096 tokens"):
            reference.decode([token])


def test_lone_surrogates(reference: Tokenizer) -> None:
    with pytest.raises(FileError, match="lone surrogate"):
        reference.encode("a\ud800", add_special=False)


def test_what_the_library_refuses_is_a_file_error(tmp_path: Path) -> None:
    source = (Path(str(files("bitsmith") / "reference")) / "tokenizer.json").read_text("utf-8")
    folder = write_folder(tmp_path, source.replace('"version": "1.0"', '"version": "7.0"', 1))
    with pytest.raises(FileError, match="the tokenizers library cannot load it"):
        Tokenizer.from_folder(folder).encode("a", add_special=False)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path, reference: Tokenizer) -> None:
    import tokenizers

    folder = Path(str(files("bitsmith") / "reference"))
    changed = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    changed.enable_truncation(4)
    changed.enable_padding(length=512)
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, changed.to_str()))
    assert tokenizer.encode(HOSTILE, add_special=False) == reference.encode(HOSTILE, add_special=False)


def test_sentencepiece_file_alone(tmp_path: Path) -> None:
    model = small_model()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tokenizer.model").write_bytes(model_proto(model))
    from_model = Tokenizer.from_folder(tmp_path / "a")
    from_json = Tokenizer.from_folder(write_folder(tmp_path / "b", merged_json(model), config={"bos_token": "<s>"}))
    assert from_model.encode(HOSTILE, add_special=True) == from_json.encode(HOSTILE, add_special=True)


def test_byte_alphabet() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet.values())) == len(alphabet) == 256
    assert (alphabet[0x20], alphabet[0x0A], alphabet[0x41], alphabet[0xAD]) == ("Ġ", "Ċ", "A", "Ń")
