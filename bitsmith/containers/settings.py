"""Hashes of what a model's file says beside its weights: chat template, tokenizer, configuration.

The manifest stores them (`bitsmith.containers.manifest`), so that a change after the writing is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatch

from bitsmith.containers.gguf.metadata_values import Value
from bitsmith.containers.gguf.writer import key_bytes
from bitsmith.containers.hf_folder import CONFIG, TOKENIZER_FILES

_TEMPLATE, _TOKENIZER = "tokenizer.chat_template", "tokenizer."
_FREE = ("general.", "bitsmith.", "split.")  # names and numbers of files; readers do not compute with them


def file_settings(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of config.json and of the tokenizer's files among `files`, by name, as hexadecimal digits."""
    return {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if any(fnmatch(name, pattern) for pattern in (CONFIG, *TOKENIZER_FILES))
    }


def key_settings(keys: Mapping[str, Value]) -> dict[str, str]:
    """SHA-256 of the keys of a GGUF file as they are stored, in the order of their names, for each group of keys."""
    found: dict[str, hashlib._Hash] = {}
    for name in sorted(keys):
        if not name.startswith(_FREE):
            found.setdefault(_group(name), hashlib.sha256()).update(key_bytes(name, keys[name]))
    return {group: digest.hexdigest() for group, digest in found.items()}


def _group(name: str) -> str:
    if name.startswith(_TEMPLATE):
        return "chat template"
    return "tokenizer" if name.startswith(_TOKENIZER) else "configuration"
