"""Tokenizers held against llama.cpp: its ids on a hostile text, ours from the same GGUF keys, and Hugging Face's."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.from_gguf import to_tokenizers, vocabulary_from_gguf
from bitsmith.models.tokenizer.from_hf import read_tokenizer
from bitsmith.models.tokenizer.pretokenizers import BY_NAME
from bitsmith.models.tokenizer.to_gguf import vocabulary_keys
from bitsmith.models.tokenizer.vocabulary import Vocabulary
from tests.models.tokenizer.folders import (
    HOSTILE,
    PLAIN,
    byte_level,
    plain,
    split,
    train,
    write_folder,
    write_vocabulary,
)
from tests.models.tokenizer.spm import merged_json, model_proto, small_model
from tests.oracle import llama

SIZE = 912
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED.replace("END", "").replace("DIGITS", "")
_GPT4O = _CASED.replace("END", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", "{1,3}")
_BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
_CJK, _KANA = "[一-龥ࠀ-一가-퟿]+", "[一-龥぀-ゟ゠-ヿ]+"

_Step = pre_tokenizers.PreTokenizer


def _digits() -> _Step:
    return pre_tokenizers.Digits(individual_digits=True)


def _sequence(*steps: _Step) -> _Step:
    return pre_tokenizers.Sequence(list(steps))


def _split_and_bytes(*patterns: str) -> _Step:
    return _sequence(*(split(pattern) for pattern in patterns), byte_level(use_regex=False))


# the structure of the models' own tokenizer.json -> the name it must be recognised as; whether llama.cpp follows it on
# every text, or (its expressions know no case beyond ASCII) on plain ones only
MODELS: dict[str, tuple[str, Callable[[], _Step], bool, bool]] = {
    "gpt2": ("gpt-2", lambda: byte_level(use_regex=True), False, True),
    "llama-3": ("llama-bpe", lambda: _split_and_bytes(_LLAMA3), True, True),
    "llama-3-removed": (
        *("llama-bpe", lambda: _sequence(split(_LLAMA3, "removed", True), byte_level(use_regex=False))),
        *(True, True),
    ),
    "dbrx": ("dbrx", lambda: _split_and_bytes(_LLAMA3), False, True),
    "qwen2": ("qwen2", lambda: _split_and_bytes(_QWEN2), False, True),
    "starcoder": ("starcoder", lambda: _sequence(_digits(), byte_level(use_regex=True)), False, True),
    "falcon": (
        "falcon",
        lambda: _sequence(
            pre_tokenizers.Punctuation("contiguous"),
            byte_level(use_regex=True),
            pre_tokenizers.Digits(individual_digits=False),
            split("[0-9][0-9][0-9]"),
        ),
        *(False, True),
    ),
    "deepseek-coder": (
        "deepseek-coder",
        lambda: _sequence(
            *(split(pattern) for pattern in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)),
            _digits(),
            byte_level(use_regex=False),
        ),
        *(False, True),
    ),
    "deepseek-v3": ("deepseek-v3", lambda: _split_and_bytes(r"\p{N}{1,3}", _KANA, _V3), False, True),
    "tekken": ("tekken", lambda: _split_and_bytes(_TEKKEN), True, False),
    "gpt-4o": ("gpt-4o", lambda: _split_and_bytes(_GPT4O), False, False),
    "bloom": ("bloom", lambda: _split_and_bytes(_BLOOM), False, True),
    "viking": ("viking", lambda: _sequence(split(_BLOOM), _digits(), byte_level(use_regex=False)), False, True),
    "bailing": (
        "bailingmoe",
        lambda: _split_and_bytes(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        *(False, True),
    ),
    "seed-coder": (
        "seed-coder",
        lambda: _split_and_bytes(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+"
            "|\\s+(?!\\S)|\\s+"
        ),
        *(False, True),
    ),
    "superbpe": ("superbpe", lambda: _split_and_bytes(r"\p{N}+", r"(?=(\d{3})+(?!\d))"), False, True),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, tokenizers.Tokenizer, Vocabulary, bool]:
    """A small tokenizer built as the model's is, and the vocabulary read from its folder."""
    name, make, ignore_merges, exact = MODELS[request.param]
    trained = train(make(), ignore_merges=ignore_merges)
    folder = write_folder(tmp_path / "hf", trained.to_str(), config={"eos_token": "<|endoftext|>"})
    return name, trained, read_tokenizer(folder, pre=None, vocab_size=SIZE), exact


def test_llamacpp_gives_the_ids_of_the_models_tokenizer(
    case: tuple[str, tokenizers.Tokenizer, Vocabulary, bool], tmp_path: Path
) -> None:
    name, trained, vocabulary, exact = case
    assert vocabulary.pre == name
    assert vocabulary.tokens[-1] == f"[PAD{SIZE - 1}]"
    keys = vocabulary_keys(vocabulary)
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    ours = Tokenizer.from_gguf(plain(keys))
    assert oracle.n_vocab == SIZE
    assert oracle.end_ids == ours.end_ids == vocabulary.end_ids
    for parse_special in (False, True):
        trained.encode_special_tokens = not parse_special
        for text in (HOSTILE, PLAIN, *HOSTILE.split("\n")):
            ids = oracle.tokenize(text, parse_special=parse_special)
            assert ours.encode(text, add_special=False, parse_special=parse_special) == ids
            if exact or text == PLAIN:
                assert trained.encode(text, add_special_tokens=False).ids == ids
            assert ours.decode(ids, special=True) == text
            assert oracle.detokenize(ids, special=True).decode("utf-8", "replace").replace(" ", "") == text.replace(
                " ", ""
            )
    oracle.close()


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A vocabulary whose merges cross every border between words, so that its ids depend on each cut."""
    trained = train(_split_and_bytes("\n"), size=1400)
    folder = write_folder(tmp_path_factory.mktemp("unsplit"), trained.to_str(), config={"eos_token": "<|endoftext|>"})
    return read_tokenizer(folder, pre="gpt-2", vocab_size=1401)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_pretokenizer_cuts_as_llamacpp_does(name: str, unsplit: Vocabulary, tmp_path: Path) -> None:
    keys = vocabulary_keys(replace(unsplit, pre=name))
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    encoder = to_tokenizers(vocabulary_from_gguf(plain(keys)))
    encoder.encode_special_tokens = True
    for text in (HOSTILE, PLAIN):
        assert encoder.encode(text).ids == oracle.tokenize(text)
    oracle.close()


def test_composed_characters_are_the_callers_business(tmp_path: Path) -> None:
    """llama.cpp does not normalize: it and a tokenizer with NFC agree on text in NFC, and only there."""
    trained = train(_split_and_bytes(_QWEN2), normalizer=normalizers.NFC())
    folder = write_folder(tmp_path / "hf", trained.to_str(), config={"eos_token": "<|endoftext|>"})
    keys = vocabulary_keys(read_tokenizer(folder, vocab_size=SIZE))
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    trained.encode_special_tokens = True
    composed = unicodedata.normalize("NFC", HOSTILE)
    assert (
        oracle.tokenize(composed)
        == trained.encode(composed).ids
        == Tokenizer.from_folder(folder).encode(composed, add_special=False)
    )
    assert oracle.tokenize("o\u0308") != trained.encode("o\u0308").ids
    assert oracle.tokenize("o\u0308") == Tokenizer.from_gguf(plain(keys)).encode("o\u0308", add_special=False)
    oracle.close()


def test_reference_model(tmp_path: Path) -> None:
    folder = Path(str(files("bitsmith") / "reference"))
    keys = vocabulary_keys(read_tokenizer(folder, vocab_size=4096))
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    source, ours = Tokenizer.from_folder(folder), Tokenizer.from_gguf(plain(keys))
    for text in (HOSTILE, PLAIN, ""):
        for special in (False, True):
            ids = oracle.tokenize(text, add_special=True, parse_special=special)
            assert source.encode(text, add_special=True, parse_special=special) == ids
            assert ours.encode(text, add_special=True, parse_special=special) == ids
    assert source.end_ids == ours.end_ids == oracle.end_ids
    oracle.close()


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("source", ["tokenizer.model", "tokenizer.json"])
def test_sentencepiece(prefix: bool, source: str, tmp_path: Path) -> None:
    """A SentencePiece model of our own making; without its file, the scores come from the order of the merges."""
    model = small_model()
    folder = write_folder(
        tmp_path / "hf", None, config={"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    )
    if source == "tokenizer.model":
        (folder / source).write_bytes(model_proto(model, add_dummy_prefix=prefix))
    else:
        (folder / source).write_text(merged_json(model, prefix=prefix), "utf-8")
    vocabulary = read_tokenizer(folder, vocab_size=len(model) + 3)
    keys = vocabulary_keys(vocabulary)
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    tokenizer, ours = Tokenizer.from_folder(folder), Tokenizer.from_gguf(plain(keys))
    assert vocabulary.add_space_prefix is prefix
    for text in (HOSTILE, PLAIN, "", " ", "▁", "   x", *HOSTILE.split("\n")):
        for special in (False, True):
            ids = oracle.tokenize(text, add_special=True, parse_special=special)
            assert tokenizer.encode(text, add_special=True, parse_special=special) == ids
            assert ours.encode(text, add_special=True, parse_special=special) == ids
            assert ids[0] == oracle.bos == tokenizer.bos
    assert oracle.end_ids == ours.end_ids == tokenizer.end_ids
    oracle.close()


def test_gemma4(tmp_path: Path) -> None:
    """SentencePiece with merges, as Gemma 4 has it: control tokens are those that the files name."""
    model = [*small_model(), ("<|turn>", 0.0, 1), ("<|channel>", 0.0, 1), ("<unused1>", 0.0, 1)]
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "extra_special_tokens": {"turn": "<|turn>"},
        "add_bos_token": True,
    }
    folder = write_folder(tmp_path / "hf", merged_json(model, prefix=False), config=config)
    vocabulary = read_tokenizer(folder, vocab_size=len(model) + 3, fallback="gemma4")
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert [types[text] for text in ("<s>", "<|turn>", "<|channel>", "<unused1>", "<0x41>")] == [3, 3, 4, 1, 6]
    keys = vocabulary_keys(vocabulary)
    assert keys["tokenizer.ggml.model"].plain() == "gemma4"
    assert "tokenizer.ggml.pre" not in keys
    assert set(keys["tokenizer.ggml.scores"].plain()[: len(model)]) == {-1000.0}
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    ours = Tokenizer.from_gguf(plain(keys))
    for text in (HOSTILE, PLAIN, "", " ", "▁", "   x", "a\n\n\nb<|turn>c<|channel>", *HOSTILE.split("\n")):
        for special in (False, True):
            ids = oracle.tokenize(text, add_special=True, parse_special=special)
            assert ours.encode(text, add_special=True, parse_special=special) == ids
            assert ids[0] == oracle.bos == ours.bos
    oracle.close()


@pytest.mark.parametrize("kind", ["byte-level", "prefix", "no prefix"])
def test_messages_are_encoded_as_llamacpp_encodes_text(kind: str, tmp_path: Path) -> None:
    """Between special tokens of the template, a message has the ids of a text without special tokens."""
    first, last = ("<|user|>", "<|endoftext|>") if kind == "byte-level" else ("<s>", "</s>")
    if kind == "byte-level":
        source = train(_split_and_bytes(_LLAMA3)).to_str()
    else:
        source = merged_json(small_model(), prefix=kind == "prefix")
    template = "{% for m in messages %}" + first + "{{ m.content }}" + last + "{% endfor %}"
    folder = write_folder(tmp_path / "hf", source, config={"eos_token": last, "chat_template": template})
    keys = vocabulary_keys(read_tokenizer(folder, vocab_size=SIZE))
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    ends = oracle.tokenize(first, parse_special=True), oracle.tokenize(last, parse_special=True)
    for ours in (Tokenizer.from_gguf(plain(keys)), Tokenizer.from_folder(folder)):
        for text in (f"a{last} b{first}", f"{first}{last}", PLAIN, "<|user|> x <s>"):
            ids = ours.encode_chat([{"role": "user", "content": text}] * 2)
            assert ids == [*ends[0], *oracle.tokenize(text, parse_special=False), *ends[1]] * 2
    oracle.close()
