"""The files of a Hugging Face folder other than weights: their names, and reading of JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*")
_LARGEST = 256 << 20  # bytes; the largest known tokenizer.json has 35 MB


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of TOKENIZER_FILES that `folder` holds, by name relative to it, in a fixed order."""
    found = [path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in found}


def small_files(folder: Path) -> list[Path]:
    """Every file of a model's folder beside its weights, from which a configuration or a tokenizer may be read."""
    return sorted(path for pattern in _SMALL_FILES for path in folder.glob(pattern) if path.is_file())


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises FileError if the file is missing, too large, or not a JSON object."""
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise FileError(f"{path}: {size:,} bytes, expected at most {_LARGEST:,}; download it again.")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path}: missing; a model folder needs it.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(
            f"{path}: expected JSON in UTF-8, found something else ({error}); download it again."
        ) from error
    if not isinstance(value, dict):
        raise FileError(f"{path}: expected a JSON object, found a {type(value).__name__}; download it again.")
    return value
