"""Calibration tokens from every source: which windows, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitsmith.calibration.sources import CalibrationTokens, Request, read_tokens
from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.reference.texts import calibration_text
from bitsmith.texts import hub

TEXT = "\n\n".join(f"Paragraph {n}: the quick brown fox jumps over {n * n} lazy dogs." for n in range(200))
VOCAB = 4096


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_checkpoint("reference").tokenizer()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def read(source: object, tokenizer: Tokenizer, tokens: int = 64 * 32, context: int = 32, seed: int = 0) -> np.ndarray:
    request = Request.of(str(source), limit=1024, tokens=tokens, context=context, seed=seed)
    return read_tokens(request, tokenizer, vocab=VOCAB).tokens


def test_defaults_follow_the_model() -> None:
    assert Request.of(None, limit=8192) == Request(("default",), 128, 512, 0)
    assert Request.of(None, limit=256) == Request(("default",), 128, 256, 0)
    assert Request.of("x", limit=8192, tokens=1000, context=300, seed=4) == Request(("x",), 3, 300, 4)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"context": 2048}, "calibration_context=2048: expected 8 to 1024"),
        ({"context": 4}, "calibration_context=4"),
        ({"tokens": 100, "context": 128}, "calibration_tokens=100: expected at least one window of 128"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_calls(words: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Request.of(None, limit=1024, **words)


def test_all_windows_of_a_short_text_in_order(text: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT, add_special=True)
    found = read(text, tokenizer, tokens=10**6)
    assert found.dtype == np.int64
    assert found.reshape(-1).tolist() == ids[: len(ids) // 32 * 32]


def test_the_seed_draws_windows_that_keep_their_order(text: Path, tokenizer: Tokenizer) -> None:
    every = [row.tobytes() for row in read(text, tokenizer, tokens=10**6)]
    first, again, other = (read(text, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (64, 32)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    places = [every.index(row.tobytes()) for row in first]
    assert places == sorted(places)
    assert places != list(range(64))


def test_a_start_token_replaces_each_first_one(
    text: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = read(text, tokenizer, tokens=10**6)
    monkeypatch.setattr(Tokenizer, "adds_bos", True)
    found = read(text, tokenizer, tokens=10**6)
    assert (found[:, 0] == tokenizer.bos).all()
    np.testing.assert_array_equal(found[: len(without), 1:], without[:, 1:])


def test_the_built_in_text(tokenizer: Tokenizer) -> None:
    request = Request.of(None, limit=1024, tokens=10 * 64, context=64)
    found = read_tokens(request, tokenizer, vocab=VOCAB)
    assert found.source.startswith("pydoc_data.topics")
    assert tokenizer.decode(found.tokens[0]) in calibration_text()


def test_the_record_tells_the_tokens_apart(text: Path, tokenizer: Tokenizer) -> None:
    tokens = read(text, tokenizer)
    record = CalibrationTokens("text.txt", tokens, 0).record
    assert (record.source, record.tokens, record.context, record.seed) == ("text.txt", 2048, 32, 0)
    assert record == CalibrationTokens("text.txt", tokens.astype(">i8"), 0).record
    changed = tokens.copy()
    changed[3, 4] += 1
    assert record.sha256 != CalibrationTokens("text.txt", changed, 0).record.sha256


def jsonl(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n", encoding="utf-8")
    return path


def test_chats_go_through_the_template_and_follow_each_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    chats = [
        [{"role": "user", "content": f"What is {n} squared?"}, {"role": "assistant", "content": f"It is {n * n}."}]
        for n in range(20)
    ]
    path = jsonl(tmp_path / "chats.jsonl", *({"messages": chat, "id": 7} for chat in chats), "", {"text": TEXT})
    ids = [token for chat in chats for token in tokenizer.encode_chat(chat, add_generation_prompt=False)]
    ids += tokenizer.encode(TEXT, add_special=True)
    assert read(path, tokenizer, tokens=10**6).reshape(-1).tolist() == ids[: len(ids) // 32 * 32]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (['{"text": "fine"}', "{broken"], r"x\.jsonl, line 2: not JSON"),
        (['{"text": "fine"}', "[1]"], "line 2: expected .* found a list, no object"),
        (['{"prompt": "fine"}'], "line 1: expected .* found an object with prompt. Rename"),
        (['{"text": 5}'], 'line 1: expected "text" to be a string, found a number'),
        (['{"messages": "hello"}'], 'line 1: expected "messages" to be a list'),
        (['{"messages": [{"content": "hello"}]}'], 'line 1, message 1: expected "messages" to be a list'),
        (['{"messages": []}', '{"messages": [{"role": "user", "content": ""}]}', '{"text": "  "}'], "all .* are empty"),
        (['{"text": "short"}'], "one window needs 32"),
        (["[" * 100_000], "line 1: not JSON that can be read: nested too deep"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, tokenizer: Tokenizer, lines: list[str], named: str) -> None:
    with pytest.raises(FileError, match=named):
        read(jsonl(tmp_path / "x.jsonl", *lines), tokenizer)


def test_a_chat_that_the_template_refuses_names_the_line(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "x.jsonl", {"messages": [{"role": "user", "content": "hello"}]})

    def refuse(*words: object, **options: object) -> list[int]:
        raise UnsupportedError("the model's chat template refuses this conversation: no")

    monkeypatch.setattr(Tokenizer, "encode_chat", refuse)
    with pytest.raises(UnsupportedError, match=r"x\.jsonl, line 1: the model's chat template refuses"):
        read(path, tokenizer)


def test_texts_that_cannot_be_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"caf\xe9 noir" * 100)
    with pytest.raises(FileError, match="byte 0xe9 at position 3"):
        read(path, tokenizer)
    path.write_bytes(b" \n")
    with pytest.raises(FileError, match="is empty"):
        read(path, tokenizer)
    path.write_text("too short")
    with pytest.raises(FileError, match=r"text\.txt: the text has \d tokens, but one window needs 32"):
        read(path, tokenizer)
    for missing in (tmp_path / "none.txt", "none/here.jsonl", "nowhere", tmp_path):
        with pytest.raises(FileError, match=f'calibration="{missing}": (there is no such file|is a folder)'):
            read(missing, tokenizer)


def test_tokens_outside_the_model_are_refused(text: Path, tokenizer: Tokenizer) -> None:
    request = Request.of(str(text), limit=1024, context=32)
    with pytest.raises(UsageError, match="the model has 50 tokens"):
        read_tokens(request, tokenizer, vocab=50)


def test_a_data_set_is_fetched_by_name(text: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(source: str, option: str) -> Path:
        asked.append(source)
        return text

    monkeypatch.setattr(hub, "download_text", fetch)
    np.testing.assert_array_equal(read("owner/name", tokenizer), read(text, tokenizer))
    assert asked == ["owner/name"]


def test_without_a_network_the_error_names_the_way(tokenizer: Tokenizer) -> None:
    with pytest.raises(FileError, match=r'"owner/name": there is no such file.*give a local file'):
        read("owner/name", tokenizer)
