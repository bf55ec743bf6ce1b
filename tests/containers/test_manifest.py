import json

import numpy as np
import pytest

from bitsmith.containers.gguf.writer import header_bytes
from bitsmith.containers.manifest import (
    Manifest,
    TensorRecord,
    from_gguf_keys,
    from_json,
    is_manifest_key,
    joined_hash,
    placeholder,
    to_gguf_keys,
    to_json,
)
from bitsmith.errors import FileError, TensorError

A, B = "a" * 64, "0123456789abcdef" * 4
ERRORS = [0.0, 1e-3, 1 / 3, 9.999999e-7, 1.17e-38, 1e-300, 1.0, 12345.678, 9.9e37]


def made(errors: list[float]) -> Manifest:
    records = tuple(TensorRecord(f"blk.{i}.ünï", A, B, error) for i, error in enumerate(errors))
    return Manifest("0.1.0", '{"to": "q4_k_m"}', records)


def plain(manifest: Manifest) -> dict[str, object]:
    return {key: value.plain() for key, value in to_gguf_keys(manifest).items()}


def test_both_containers_give_back_the_same_manifest() -> None:
    manifest = made(ERRORS)
    assert from_json(to_json(manifest)) == manifest
    assert from_gguf_keys(plain(manifest)) == manifest
    assert [record.error for record in manifest.tensors[:4]] == [float(np.float32(error)) for error in ERRORS[:4]]


def test_a_placeholder_takes_as_many_bytes() -> None:
    manifest = made(ERRORS)
    empty = placeholder(manifest.version, manifest.recipe, [record.name for record in manifest.tensors])
    assert len(to_json(empty)) == len(to_json(manifest))
    assert len(json.dumps({"m": to_json(empty)})) == len(json.dumps({"m": to_json(manifest)}))
    assert len(header_bytes(to_gguf_keys(empty), [])) == len(header_bytes(to_gguf_keys(manifest), []))


def test_a_manifest_of_no_tensors() -> None:
    manifest = made([])
    assert from_json(to_json(manifest)) == manifest
    assert from_gguf_keys(plain(manifest)) == manifest


def test_keys_are_known_as_the_manifests() -> None:
    assert all(is_manifest_key(key) for key in to_gguf_keys(made([0])))
    assert not is_manifest_key("general.name")


def test_a_file_without_a_manifest() -> None:
    assert from_gguf_keys({"general.name": "x"}) is None


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -1e-9, 1e39])
def test_errors_that_are_no_errors(error: float) -> None:
    with pytest.raises(TensorError, match="tensor w"):
        TensorRecord("w", A, B, error)


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "g" * 64, A + "\n"])
def test_hashes_of_another_form(digest: str) -> None:
    with pytest.raises(TensorError, match="64 hex digits"):
        TensorRecord("w", digest, B, 0)
    with pytest.raises(TensorError, match="64 hex digits"):
        TensorRecord("w", A, digest, 0)


RECORD = {"sha256": A, "source_sha256": B, "error": "0"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100000,
        json.dumps({"version": "1", "recipe": "r", "tensors": []}),
        json.dumps({"version": "1", "recipe": "r", "tensors": {"w": 3}}),
        json.dumps({"version": 1, "recipe": "r", "tensors": {}}),
        json.dumps({"version": "1", "tensors": {}}),
        json.dumps({"version": "1", "recipe": "r", "tensors": {"w": {**RECORD, "error": "nan"}}}),
        json.dumps({"version": "1", "recipe": "r", "tensors": {"w": {**RECORD, "error": "x"}}}),
        json.dumps({"version": "1", "recipe": "r", "tensors": {"w": {**RECORD, "error": None}}}),
        json.dumps({"version": "1", "recipe": "r", "tensors": {"w": {**RECORD, "sha256": "x"}}}),
        json.dumps({"version": "1", "recipe": "r", "tensors": {"w": {"sha256": A}}}),
    ],
)
def test_damaged_json(text: str) -> None:
    with pytest.raises(FileError, match="manifest"):
        from_json(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bitsmith.tensor.sha256", [A]),
        ("bitsmith.tensor.sha256", [A, 3]),
        ("bitsmith.tensor.sha256", 3),
        ("bitsmith.tensor.source_sha256", None),
        ("bitsmith.tensor.error", np.float32([0, np.nan])),
        ("bitsmith.tensor.error", [0, "x"]),
        ("bitsmith.tensor.names", [1, 2]),
        ("bitsmith.version", 1),
        ("bitsmith.recipe", None),
    ],
)
def test_damaged_keys(key: str, value: object) -> None:
    with pytest.raises(FileError, match="manifest"):
        from_gguf_keys({**plain(made([0, 0])), key: value})


def test_hash_of_parts() -> None:
    assert joined_hash([A]) == A
    assert joined_hash([A, B]) != joined_hash([B, A])
    assert len(joined_hash([A, B])) == 64
