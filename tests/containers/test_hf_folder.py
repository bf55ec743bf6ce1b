"""Files of a Hugging Face folder: which belong to the tokenizer, and JSON that is none."""

from pathlib import Path

import pytest

from bitsmith.containers.hf_folder import TOKENIZER_FILES, read_object, tokenizer_files
from bitsmith.errors import FileError
from bitsmith.models import hub


def test_only_the_tokenizers_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja", "modeling_x.py"):
        (tmp_path / name).write_text("x")
    found = tokenizer_files(tmp_path)
    assert list(found) == ["tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja"]
    assert found["additional_chat_templates/tools.jinja"] == b"x"


def test_the_hub_is_asked_for_all_of_them() -> None:
    assert set(TOKENIZER_FILES) < set(hub.PATTERNS)


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "name": "ä"}', encoding="utf-8")
    assert read_object(tmp_path / "config.json") == {"model_type": "llama", "name": "ä"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON in UTF-8"),
        (b"{", "expected JSON in UTF-8"),
        (b'{"a": "\xff"}', "expected JSON in UTF-8"),
        (b"[" * 100_000, "expected JSON in UTF-8"),
        (b"[]", "expected a JSON object, found a list"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_object(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="missing"):
        read_object(tmp_path / "config.json")
    with pytest.raises(FileError, match="not a regular file"):
        read_object(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)  # sparse
    with pytest.raises(FileError, match="at most 8,388,608 bytes"):
        read_object(tmp_path / "config.json")
