"""The files of a Hugging Face folder other than weights: their names, and reading of JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitsmith.containers.bounded_json import parse_json
from bitsmith.containers.model_files import read_small
from bitsmith.errors import FileError

CONFIG = "config.json"
TOKENIZER_FILES = (  # patterns of files that are downloaded from the hub and copied to a new folder
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_MB = 1 << 20
_TEXT, _JSON = 4 * _MB, 16 * _MB  # most bytes of a template, and of a file that is not named below
_LARGEST = {  # most bytes by name; the largest known are a tokenizer.json of 35 MB and a config.json of 3 MB
    CONFIG: 8 * _MB,
    "tokenizer.json": 64 * _MB,
    "tokenizer.model": 32 * _MB,
    "model.safetensors.index.json": 64 * _MB,
}
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*")


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of TOKENIZER_FILES that `folder` holds, by name relative to it, in a fixed order.

    Raises FileError if one is too large, not a regular file, or a link out of the folder.
    """
    found = [path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern)) if not path.is_dir()]
    return {path.relative_to(folder).as_posix(): read_file(path, folder) for path in found}


def read_file(path: Path, folder: Path | None = None) -> bytes:
    """The bytes of a file of a model folder other than weights.

    folder: the model's folder; None: the file's own
    Raises FileError if it is missing, too large, not a regular file, or a link out of the folder.
    """
    limit = _LARGEST.get(path.name, _TEXT if path.suffix == ".jinja" else _JSON)
    return read_small(path, limit, folder=folder or path.parent)


def read_text(path: Path, folder: Path | None = None) -> str:
    """The same as text. Raises FileError, also if it is not UTF-8."""
    try:
        return read_file(path, folder).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected a UTF-8 text: {error}") from error


def small_files(folder: Path) -> list[Path]:
    """Every file of a model's folder beside its weights, from which a configuration or a tokenizer may be read."""
    return sorted(path for pattern in _SMALL_FILES for path in folder.glob(pattern) if path.is_file())


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises FileError as `read_file`, and if it is not a JSON object."""
    value = parse_json(read_file(path), path)
    if not isinstance(value, dict):
        raise FileError(f"{path}: expected a JSON object, found a {type(value).__name__}; download it again.")
    return value
