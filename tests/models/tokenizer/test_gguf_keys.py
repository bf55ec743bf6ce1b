"""Vocabularies to GGUF keys and back, and files that contradict themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bitsmith.containers.gguf.metadata_values import ValueType
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer.from_gguf import vocabulary_from_gguf
from bitsmith.models.tokenizer.pretokenizers import BY_NAME, PRETOKENIZERS
from bitsmith.models.tokenizer.to_gguf import vocabulary_keys
from bitsmith.models.tokenizer.vocabulary import Vocabulary, end_ids_by_text
from tests.models.tokenizer.folders import plain

BYTES = Vocabulary(
    model="gpt2",
    tokens=("a", "b", "ab", "<end>", "<|eom_id|>", "<other>", "[PAD6]"),
    types=(1, 1, 1, 3, 3, 3, 5),
    merges=("a b",),
    pre="qwen2",
    special={"bos": 3, "eos": 3, "pad": 5},
    end_ids=frozenset({3, 4, 5}),
    add_bos=True,
    chat_template="{{ messages }}",
    chat_templates={"tool_use": "{{ tools }}"},
)
PIECES = Vocabulary(
    model="llama",
    tokens=("<unk>", "<s>", "</s>", "▁a"),
    types=(2, 3, 3, 1),
    scores=(0.0, 0.0, 0.0, -1.5),
    special={"unk": 0, "bos": 1, "eos": 2},
    end_ids=frozenset({2}),
    add_bos=True,
    add_space_prefix=True,
)


@pytest.mark.parametrize("vocabulary", [BYTES, PIECES, replace(PIECES, add_bos=False, add_eos=True)])
def test_round_trip(vocabulary: Vocabulary) -> None:
    assert vocabulary_from_gguf(plain(vocabulary_keys(vocabulary))) == vocabulary


def test_types_of_values() -> None:
    keys = vocabulary_keys(BYTES)
    arrays = {key: value.value.item for key, value in keys.items() if value.type is ValueType.ARRAY}  # type: ignore[union-attr]
    assert arrays == {
        "tokenizer.ggml.tokens": ValueType.STRING,
        "tokenizer.ggml.token_type": ValueType.INT32,
        "tokenizer.ggml.merges": ValueType.STRING,
        "tokenizer.ggml.eos_token_ids": ValueType.INT32,
        "tokenizer.chat_templates": ValueType.STRING,
    }
    assert keys["tokenizer.ggml.bos_token_id"].type is ValueType.UINT32
    assert keys["tokenizer.ggml.add_bos_token"].type is ValueType.BOOL
    assert vocabulary_keys(PIECES)["tokenizer.ggml.scores"].value.item is ValueType.FLOAT32  # type: ignore[union-attr]


def test_ends_that_llamacpp_would_not_find() -> None:
    """Padding is an end here, but has a role of its own; <|eom_id|> is found by its text; <other> becomes eot."""
    keys = plain(vocabulary_keys(replace(BYTES, special={"eos": 3})))
    assert keys["tokenizer.ggml.eot_token_id"] == 5
    assert "tokenizer.ggml.eom_token_id" not in keys
    assert list(keys["tokenizer.ggml.eos_token_ids"]) == [3, 4, 5]


def test_merges_with_spaces_keep_two_parts() -> None:
    merges = plain(vocabulary_keys(replace(BYTES, merges=("a  ",))))["tokenizer.ggml.merges"]
    assert merges == ["a Ġ"]


def test_ends_by_text() -> None:
    assert end_ids_by_text(["<|end|>", "<|return|>"]) == {0, 1}
    assert end_ids_by_text(["<|end|>", "<|return|>", "<|call|>"]) == {1, 2}
    assert end_ids_by_text(["</s>", "<|tool_response>"]) == {1}
    assert end_ids_by_text(["<PAD>", "x", "[PAD]", "<|repo_name|>"]) == {0, 3}


def _changed(**changes: Any) -> dict[str, Any]:
    metadata = {**plain(vocabulary_keys(BYTES)), **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    return {key: value for key, value in metadata.items() if value is not None}


def test_defaults_of_missing_keys() -> None:
    bare = vocabulary_from_gguf({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list(PIECES.tokens)})
    assert bare.special == {"unk": 0, "bos": 1, "eos": 2}
    assert (bare.add_bos, bare.add_eos, bare.add_space_prefix) == (True, False, True)
    assert bare.types == (1, 1, 3, 1)  # llama.cpp knows "</s>" by its text
    assert vocabulary_from_gguf(_changed(pre=None)).pre == "default"
    assert vocabulary_from_gguf(_changed(pre="llama3", add_bos_token=None)).add_bos is True
    assert vocabulary_from_gguf(_changed(add_bos_token=None)).add_bos is False
    assert vocabulary_from_gguf(_changed(eos_token_id=99, eos_token_ids=[99])).end_ids == {4}


def test_a_missing_end_token_is_no_number() -> None:
    """llama.cpp takes token 11 of a byte-level BPE and token 2 of a SentencePiece BPE, whatever they are: "(", say."""
    tokens = [*"!\"#$%&'()*+,-./", "<end>"]
    keys = {"model": "gpt2", "tokens": tokens, "merges": [], "pre": "gpt-2", "token_type": [1] * len(tokens)}
    bare = vocabulary_from_gguf({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert (bare.special, bare.end_ids) == ({}, frozenset())
    assert bare.token("eos") == ""
    keys |= {"model": "llama", "scores": [0.0] * len(tokens), "add_bos_token": False}
    other = vocabulary_from_gguf({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert (other.special, other.end_ids) == ({}, frozenset())
    named = vocabulary_from_gguf(
        {f"tokenizer.ggml.{key}": value for key, value in {**keys, "eos_token_id": 15}.items()}
    )
    assert named.end_ids == {15}


def test_empty_tokens_get_llamacpps_name() -> None:
    tokens = [*BYTES.tokens[:-1], ""]
    assert vocabulary_from_gguf(_changed(tokens=tokens)).tokens[-1] == "[EMPTY_6]"


def test_pre_can_be_overridden() -> None:
    with pytest.raises(UnsupportedError, match=r"'brand-new' is unknown; known: .*qwen2.*pre="):
        vocabulary_from_gguf(_changed(pre="brand-new"))
    assert vocabulary_from_gguf(_changed(pre="brand-new"), pre="tekken").pre == "tekken"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, UnsupportedError, "'missing'"),
        ({"model": "bert"}, UnsupportedError, "'bert'"),
        ({"model": "t5"}, UnsupportedError, "'t5'"),
        ({"tokens": None}, FileError, r"the key tokenizer\.ggml\.tokens is missing"),
        ({"merges": None}, FileError, r"the key tokenizer\.ggml\.merges is missing"),
        ({"token_type": [1, 1]}, FileError, "token_type has 2 entries for 7 tokens"),
        ({"scores": [0.0, float("nan")]}, FileError, "array of finite numbers"),
        ({"scores": "high"}, FileError, "array of finite numbers"),
        ({"tokens": [1, 2, 3]}, FileError, "array of strings"),
        ({"tokens": "abc"}, FileError, "array of strings"),
        ({"eos_token_id": "x"}, FileError, "expected the id of a token, found 'x'"),
        ({"eos_token_ids": 7}, FileError, "array of finite numbers"),
        ({"tokens": [*BYTES.tokens[:-1], "\udcff"]}, FileError, "token 6 of the vocabulary is not UTF-8"),
        ({"token_type": [6] * 7}, FileError, "token 0 of the vocabulary stands for a byte: .* not 'a'"),
        ({"tokens": ["a"] * 7}, FileError, "tokens 0 and 1 .* same text"),
        ({"bos_token_id": None, "model": "gpt2"}, FileError, "add_bos_token is set"),
    ],
)
def test_contradictions(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vocabulary_from_gguf(_changed(**changes))


def test_special_ids_are_checked() -> None:
    with pytest.raises(FileError, match="the bos token has id 7"):
        replace(BYTES, special={"bos": 7})


def test_table_of_pretokenizers() -> None:
    assert len(BY_NAME) == sum(1 + len(row.aliases) for row in PRETOKENIZERS)  # no name twice
    written = [splits for row in PRETOKENIZERS for splits in row.written]
    assert not set(written) & {row.splits for row in PRETOKENIZERS}
