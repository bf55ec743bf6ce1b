"""The manifest inside every file that bitsmith writes: source hash, hash and error of each tensor, hashes of settings.

All fields have a fixed width. A manifest of `placeholder` records has exactly the size of the final one, so a file's
size is known before any weight is read. There are no time stamps: the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.bounded_json import parse_json
from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, string
from bitsmith.errors import FileError, TensorError

JSON_KEY = "bitsmith.manifest"  # key in the safetensors `__metadata__`
SET_KEY = "bitsmith.set"  # key of `set_id`, in GGUF and in the safetensors `__metadata__`

_PREFIX = "bitsmith."
_NAMES = "bitsmith.tensor.names"
_SHA256 = "bitsmith.tensor.sha256"
_SOURCE = "bitsmith.tensor.source_sha256"
_ERROR = "bitsmith.tensor.error"
_SETTINGS = "bitsmith.settings.names"
_SETTINGS_SHA256 = "bitsmith.settings.sha256"
_HASH = re.compile(r"[0-9a-f]{64}")
_LARGEST_ERROR = 1e38
_SMALLEST_ERROR = 1.2e-38  # float32 loses digits below it, so smaller errors are stored as zero


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the written file.

    sha256: 64 hex digits, the hash of the tensor's bytes in the file without padding; for several parts `joined_hash`
    source_sha256: the same for the bytes of the source tensor
    error: sum of squared errors over sum of squared weights; 0 if nothing was lost; rounded to float32
    """

    name: str
    sha256: str
    source_sha256: str
    error: float

    def __post_init__(self) -> None:
        if not (_HASH.fullmatch(self.sha256) and _HASH.fullmatch(self.source_sha256)):
            raise TensorError(f"the manifest record of {self.name} needs hashes of 64 hex digits in lower case")
        if not (math.isfinite(self.error) and 0 <= self.error < _LARGEST_ERROR):
            raise TensorError(
                f"the error of tensor {self.name} is {self.error}; expected a finite number that is not negative. "
                "Its weights, or their quantized values, overflow: look for NaN, Inf or huge values in the source"
            )
        object.__setattr__(self, "error", float(np.float32(self.error)) if self.error >= _SMALLEST_ERROR else 0.0)


@dataclass(frozen=True)
class Manifest:
    """A manifest.

    version: version of bitsmith
    recipe: everything that decided the bytes, seed included, as one line of text
    settings: hashes of chat template, tokenizer and configuration, see `bitsmith.containers.settings`
    """

    version: str
    recipe: str
    tensors: tuple[TensorRecord, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = next((name for name, sha256 in self.settings.items() if not _HASH.fullmatch(sha256)), None)
        if wrong is not None:
            raise TensorError(f"the manifest's hash of {wrong} needs 64 hex digits in lower case")


def joined_hash(parts: Sequence[str]) -> str:
    """One hash for a tensor: the hash of its only part, or SHA-256 of the parts' hex digits, joined in order."""
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def placeholder(version: str, recipe: str, names: Iterable[str], settings: Mapping[str, str] | None = None) -> Manifest:
    """A manifest of zero hashes, with the same size in a file as the final one of the same names and settings."""
    records = tuple(TensorRecord(name, "0" * 64, "0" * 64, 0.0) for name in names)
    return Manifest(version, recipe, records, settings or {})


def set_id(manifest: Manifest) -> str:
    """What every file of a set carries, so that files of two sets are not taken for one: 64 hex digits.

    It is the hash of the whole set's manifest, and so a function of the set's bytes alone.
    """
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()


def check_one_set(found: Mapping[Path, str | None]) -> None:
    """Raise FileError if files that should be one set carry different identifiers.

    found: the value of SET_KEY by file, the first file first; None for a file without one
    Other programs copy the keys of a first GGUF file alone, so the first may have an identifier where no other has.
    """
    (first, own), *others = found.items()
    if not any(value is not None for _, value in others):
        return
    other = next((path for path, value in others if value != own), None)
    if other is not None:
        raise FileError(
            f"{first} and {other} belong to two different outputs, though their names are those of one set "
            f"({SET_KEY} differs); make the model again with --force, or download all its files again."
        )


def to_gguf_keys(manifest: Manifest) -> dict[str, Value]:
    """The `bitsmith.*` keys of a GGUF file; errors are float32."""
    records = manifest.tensors
    return {
        "bitsmith.version": string(manifest.version),
        "bitsmith.recipe": string(manifest.recipe),
        _NAMES: array([record.name for record in records], ValueType.STRING),
        _SHA256: array([record.sha256 for record in records], ValueType.STRING),
        _SOURCE: array([record.source_sha256 for record in records], ValueType.STRING),
        _ERROR: array([record.error for record in records], ValueType.FLOAT32),
        **_settings_keys(manifest.settings),
    }


def _settings_keys(settings: Mapping[str, str]) -> dict[str, Value]:
    if not settings:
        return {}
    return {
        _SETTINGS: array(list(settings), ValueType.STRING),
        _SETTINGS_SHA256: array(list(settings.values()), ValueType.STRING),
    }


def is_manifest_key(key: str) -> bool:
    """Whether a GGUF key belongs to a manifest; a rewrite drops the old one."""
    return key.startswith(_PREFIX)


def from_gguf_keys(metadata: Mapping[str, Any]) -> Manifest | None:
    """The manifest in a GGUF file's metadata (plain values); None if there is none.

    Raises FileError if the `bitsmith.*` keys contradict each other.
    """
    if _NAMES not in metadata:
        return None
    columns = [metadata.get(key) for key in (_NAMES, _SHA256, _SOURCE, _ERROR)]
    lengths = {len(column) if isinstance(column, Sequence | np.ndarray) else -1 for column in columns}
    if len(lengths) != 1 or -1 in lengths:
        raise _damaged("its arrays bitsmith.tensor.* are missing or differ in length")
    names, hashes = metadata.get(_SETTINGS, []), metadata.get(_SETTINGS_SHA256, [])
    if not (isinstance(names, list) and isinstance(hashes, list) and len(names) == len(hashes)):
        raise _damaged("its arrays bitsmith.settings.* are missing or differ in length")
    return _manifest(
        metadata.get("bitsmith.version"),
        metadata.get("bitsmith.recipe"),
        zip(*columns, strict=True),
        dict(zip(names, hashes, strict=True)),
    )


def to_json(manifest: Manifest) -> str:
    """The manifest as one JSON object of ASCII text, for the safetensors `__metadata__` entry JSON_KEY."""
    tensors = {
        record.name: {
            "sha256": record.sha256,
            "source_sha256": record.source_sha256,
            "error": _fixed(record.error),
        }
        for record in manifest.tensors
    }
    settings = {"settings": dict(manifest.settings)} if manifest.settings else {}
    return json.dumps(
        {"version": manifest.version, "recipe": manifest.recipe, **settings, "tensors": tensors}, separators=(",", ":")
    )


def from_json(text: str) -> Manifest:
    """The manifest in a JSON text from `to_json`. Raises FileError if the text is damaged."""
    try:
        content = parse_json(text.encode("utf-8", "surrogatepass"), JSON_KEY)
    except FileError as cause:
        raise _damaged(str(cause)) from None
    tensors = content.get("tensors") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(entry, dict) for entry in tensors.values()):
        raise _damaged('it is not an object with "version", "recipe" and "tensors"')
    rows = [
        (name, entry.get("sha256"), entry.get("source_sha256"), entry.get("error")) for name, entry in tensors.items()
    ]
    return _manifest(content.get("version"), content.get("recipe"), rows, content.get("settings", {}))


def _manifest(version: object, recipe: object, rows: Iterable[tuple[Any, Any, Any, Any]], settings: object) -> Manifest:
    if not isinstance(version, str) or not isinstance(recipe, str):
        raise _damaged("its version or its recipe is missing")
    records = []
    for name, sha256, source, error in rows:
        if not all(isinstance(text, str) for text in (name, sha256, source)):
            raise _damaged("a name or a hash is not a string")
        try:
            records.append(TensorRecord(name, sha256, source, float(error)))
        except (TypeError, ValueError, TensorError) as cause:
            raise _damaged(f"the record of {name}: {cause}") from None
    if not isinstance(settings, dict) or not all(
        isinstance(name, str) and isinstance(sha256, str) and _HASH.fullmatch(sha256)
        for name, sha256 in settings.items()
    ):
        raise _damaged("the hashes of its settings are no texts of 64 hex digits")
    return Manifest(version, recipe, tuple(records), settings)


def _fixed(error: float) -> str:
    """Fourteen characters, "1.23456789e-03": nine digits give a float32 back exactly."""
    return f"{error:.8e}"


def _damaged(what: str) -> FileError:
    return FileError(
        f"the manifest in the file is damaged: {what}. The hashes of its tensors cannot be checked; "
        "make the file again, or take it from a source you trust"
    )
