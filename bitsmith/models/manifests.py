"""The manifests and the recipe inside the files of an opened model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bitsmith.containers.base import Source
from bitsmith.containers.manifest import JSON_KEY, Manifest, from_gguf_keys, from_json
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError


def manifests_of(source: Source) -> list[Manifest]:
    """The manifests: one for a GGUF file or all of its parts, one for each safetensors file that has one.

    Raises FileError if a manifest is damaged.
    """
    if isinstance(source, SafetensorsSource):
        texts = [metadata[JSON_KEY] for metadata in source.file_metadata.values() if JSON_KEY in metadata]
        return [from_json(text) for text in texts]
    found = from_gguf_keys(source.metadata)
    return [] if found is None else [found]


def recipe_in(manifest: Manifest) -> dict[str, Any]:
    """The recipe of a manifest. Raises FileError if it is not a JSON object."""
    try:
        recipe = json.loads(manifest.recipe)
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        raise FileError("the recipe in the manifest is not a JSON object; the file was changed after it was made.")
    return recipe


def recipe_of(source: Source) -> Mapping[str, Any] | None:
    """The recipe of a file or folder that bitsmith made; None if it has no manifest. Raises FileError if damaged."""
    manifests = manifests_of(source)
    return recipe_in(manifests[0]) if manifests else None
