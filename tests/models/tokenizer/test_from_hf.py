"""Vocabularies read from Hugging Face folders: types, padding, special ids, templates, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.from_gguf import to_tokenizers
from bitsmith.models.tokenizer.from_hf import read_tokenizer
from bitsmith.models.tokenizer.to_hf import tokenizer_files
from bitsmith.models.tokenizer.vocabulary import TokenType
from tests.models.tokenizer.folders import (
    HOSTILE,
    SPECIAL,
    USER_DEFINED,
    byte_level,
    edited,
    split,
    train,
    write_folder,
)
from tests.models.tokenizer.spm import merged_json, model_proto, small_model

SIZE = 901


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    return train(byte_level(use_regex=True))


def test_types_and_padding(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, trained.to_str())
    vocabulary = read_tokenizer(folder, vocab_size=SIZE + 4)
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert [kinds[text] for text in SPECIAL] == [TokenType.CONTROL] * 2
    assert kinds[USER_DEFINED] == TokenType.USER_DEFINED
    assert vocabulary.tokens[SIZE:] == tuple(f"[PAD{i}]" for i in range(SIZE, SIZE + 4))
    assert vocabulary.types[SIZE:] == (TokenType.UNUSED,) * 4
    with pytest.raises(FileError, match=rf"'{USER_DEFINED}' has id {SIZE - 1}, .* for {SIZE - 1} tokens only"):
        read_tokenizer(folder, vocab_size=SIZE - 1)


def test_holes_are_padding_and_special_looking_tokens_are_control(
    trained: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    added = [*json.loads(trained.to_str())["added_tokens"]]
    added.append({**added[-1], "id": SIZE + 2, "content": "<|later|>", "special": False})
    vocabulary = read_tokenizer(write_folder(tmp_path, edited(trained, added_tokens=added)), vocab_size=SIZE + 3)
    assert vocabulary.tokens[SIZE:] == (f"[PAD{SIZE}]", f"[PAD{SIZE + 1}]", "<|later|>")
    assert vocabulary.types[SIZE:] == (TokenType.UNUSED, TokenType.UNUSED, TokenType.CONTROL)


def test_several_ends(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        trained.to_str(),
        config={"eos_token": {"content": "<|user|>"}, "pad_token": None},
        generation_config={"eos_token_id": [1, 5], "pad_token_id": 7, "bos_token_id": 6},
        special_tokens_map={"eos_token": "<tool>", "unk_token": "<tool>"},
    )
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 9, "bos_token_id": 8}))
    vocabulary = read_tokenizer(folder, vocab_size=SIZE)
    # tokenizer_config.json wins over special_tokens_map.json, config.json over generation_config.json;
    # <|endoftext|> ends by its text, as in llama.cpp
    assert vocabulary.special == {"eos": 1, "bos": 8, "pad": 7, "unk": SIZE - 1}
    assert vocabulary.end_ids == {0, 1, 5, 9}


_BOS = {"SpecialToken": {"id": "<|user|>", "type_id": 0}}
_TEXT = {"Sequence": {"id": "A", "type_id": 0}}
_EOS = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
_IDS = {text: {"id": text, "ids": [token], "tokens": [text]} for token, text in enumerate(SPECIAL)}


def _template(*single: Any) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(single), "pair": [_TEXT], "special_tokens": _IDS}


@pytest.mark.parametrize(
    ("processor", "config", "expected"),
    [
        (_template(_BOS, _TEXT), {}, (True, False)),
        (_template(_BOS, _TEXT, _EOS), {}, (True, True)),
        ({"type": "Sequence", "processors": [_template(_BOS, _TEXT)]}, {"add_bos_token": False}, (True, False)),
        (_template(_TEXT), {"add_bos_token": True}, (False, False)),
        (_template(_TEXT), {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, (True, False)),
        (None, {"add_bos_token": True, "add_eos_token": True}, (True, True)),
        (None, {}, (False, False)),
        (_template(_EOS, _TEXT), {}, (False, False)),  # begins with a token that is not the start token
    ],
)
def test_start_and_end(
    processor: dict[str, Any] | None,
    config: dict[str, Any],
    expected: tuple[bool, bool],
    trained: tokenizers.Tokenizer,
    tmp_path: Path,
) -> None:
    config = {"bos_token": "<|user|>", "eos_token": "<|endoftext|>", **config}
    folder = write_folder(tmp_path, edited(trained, post_processor=processor), config=config)
    vocabulary = read_tokenizer(folder, vocab_size=SIZE)
    assert (vocabulary.add_bos, vocabulary.add_eos) == expected
    ids = Tokenizer.from_folder(folder).encode("x", add_special=True)
    assert (ids[0] == 1, ids[-1] == 0) == expected
    assert len(ids) == 1 + sum(expected)


def test_chat_templates(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "tools"}]
    folder = write_folder(tmp_path, trained.to_str(), config={"chat_template": named})
    read = read_tokenizer(folder, vocab_size=SIZE)
    assert (read.chat_template, read.chat_templates) == ("old", {"tool_use": "tools"})
    (folder / "chat_template.jinja").write_text("new")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("documents")
    read = read_tokenizer(folder, vocab_size=SIZE)
    assert (read.chat_template, read.chat_templates) == ("new", {"tool_use": "tools", "rag": "documents"})
    alone = write_folder(tmp_path / "alone", trained.to_str(), chat_template={"chat_template": "third"})
    assert read_tokenizer(alone, vocab_size=SIZE).chat_template == "third"


def test_unknown_pretokenizer_lists_the_known(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    odd = pre_tokenizers.Sequence([split(r"\p{Lu}+"), byte_level(use_regex=False)])
    folder = write_folder(tmp_path, train(odd).to_str())
    with pytest.raises(UnsupportedError, match=r"Lu.*known: .*llama-bpe.*qwen2.*pre="):
        read_tokenizer(folder, vocab_size=SIZE)
    assert read_tokenizer(folder, pre="qwen2", vocab_size=SIZE).pre == "qwen2"
    with pytest.raises(UnsupportedError, match="'qwen9' is unknown; known:"):
        read_tokenizer(folder, pre="qwen9", vocab_size=SIZE)


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
)
def test_words_cut_otherwise_are_not_taken_for_gpt2(
    changes: dict[str, Any], trained: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=r"no pre-tokenizer of llama\.cpp"):
        read_tokenizer(write_folder(tmp_path, edited(trained, **changes)), vocab_size=SIZE)


def test_ignored_merges_matter_only_where_a_token_needs_it(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    whole = json.loads(trained.to_str())
    whole["model"]["ignore_merges"] = True
    assert read_tokenizer(write_folder(tmp_path / "a", json.dumps(whole)), vocab_size=SIZE).pre == "gpt-2"
    whole["model"]["merges"] = whole["model"]["merges"][:-1]
    with pytest.raises(UnsupportedError, match="ignore_merges is True, and 1 tokens"):
        read_tokenizer(write_folder(tmp_path / "b", json.dumps(whole)), vocab_size=SIZE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"type": "WordPiece", "vocab": {"a": 0}}, "of type WordPiece"),
        ({"type": "Unigram", "vocab": [["a", 0.0]]}, "of type Unigram"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>'"),
    ],
)
def test_other_algorithms_are_refused(
    model: dict[str, Any], message: str, trained: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_tokenizer(write_folder(tmp_path, edited(trained, model=model)), vocab_size=SIZE)


def test_characters_without_bytes_are_refused(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, edited(trained, pre_tokenizer=None, decoder=None))
    with pytest.raises(UnsupportedError, match="not byte-level and has no byte fallback"):
        read_tokenizer(folder, vocab_size=SIZE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, found a list"),
        ("[" * 100_000, "expected JSON"),
        ('{"model": null}', "expected model to be an object, found None"),
        ('{"model": {"type": "BPE", "vocab": [], "merges": []}, "decoder": {"type": "ByteLevel"}}', "model.vocab"),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}, "decoder": {"type": "ByteLevel"}}',
            "expected pairs",
        ),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 123456789}, "merges": []}, "decoder": {"type": "ByteLevel"}}',
            "has id 123456789",
        ),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "decoder": {"type": "ByteLevel"}, '
            '"added_tokens": [{"id": 1, "content": "a"}]}',
            "tokens 0 and 1 of the vocabulary have the same text",
        ),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "decoder": {"type": "ByteLevel"}, '
            '"added_tokens": [{"id": -1, "content": "b"}]}',
            "expected added tokens with an id",
        ),
    ],
)
def test_damaged_files(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message):
        read_tokenizer(write_folder(tmp_path, text), pre="gpt-2", vocab_size=10)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"expected tokenizer.json or tokenizer.model, found neither"):
        read_tokenizer(tmp_path, vocab_size=10)


def test_sentencepiece_types_and_added_tokens(tmp_path: Path) -> None:
    model = small_model()
    folder = write_folder(
        tmp_path,
        None,
        config={"added_tokens_decoder": {str(len(model) + 1): {"content": "<|im_end|>", "special": True}}},
        added_tokens={"▁▁tool": len(model)},
    )
    (folder / "tokenizer.model").write_bytes(model_proto(model))
    vocabulary = read_tokenizer(folder, vocab_size=len(model) + 3)
    assert vocabulary.model == "llama"
    assert vocabulary.special == {"unk": 0, "bos": 1, "eos": 2}
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, False, True)
    assert vocabulary.types[:4] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE)
    last = len(model)
    assert vocabulary.tokens[last:] == ("  tool", "<|im_end|>", f"[PAD{last + 2}]")
    assert vocabulary.types[last:] == (TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNUSED)
    assert vocabulary.end_ids == {2, last + 1}
    with pytest.raises(UnsupportedError, match="SentencePiece BPE"):
        read_tokenizer(folder, pre="gpt-2", vocab_size=len(model) + 3)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_written_folder_encodes_the_same(kind: str, trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    source = trained.to_str() if kind == "bytes" else merged_json(small_model())
    config = {"bos_token": "<|user|>" if kind == "bytes" else "<s>", "add_bos_token": True, "eos_token": None}
    folder = write_folder(tmp_path / "a", source, config=config)
    vocabulary = read_tokenizer(folder, vocab_size=5000)
    copy = tmp_path / "b"
    copy.mkdir()
    for name, content in tokenizer_files(vocabulary).items():
        (copy / name).write_bytes(content)
    first, second = Tokenizer.from_folder(folder), Tokenizer.from_folder(copy)
    encoder = to_tokenizers(vocabulary)
    for text in (HOSTILE, "", "x"):
        ids = first.encode(text, add_special=True, parse_special=True)
        assert second.encode(text, add_special=True, parse_special=True) == ids
        assert encoder.encode(text).ids == first.encode(text, add_special=False, parse_special=True)
        assert second.decode(ids, special=True) == first.decode(ids, special=True)
    assert second.end_ids == first.end_ids
    assert second.adds_bos is first.adds_bos is True


def test_normal_form_is_accepted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train(byte_level(use_regex=True), normalizer=normalizers.NFC()).to_str())
    assert read_tokenizer(folder, vocab_size=SIZE).pre == "gpt-2"


def test_a_long_list_of_end_tokens_takes_linear_time(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, trained.to_str())
    ends = list(range(SIZE)) * 1000
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert read_tokenizer(folder, vocab_size=SIZE).end_ids >= set(range(SIZE))
