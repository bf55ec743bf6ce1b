"""Schemas that only endless values have the form of, and schemas that look like it."""

from __future__ import annotations

from typing import Any

import pytest

from bitsmith.serve.endless import endless

ITSELF = {"$ref": "#"}
MUTUAL = {
    "$defs": {
        "x": {"type": "object", "properties": {"y": {"$ref": "#/$defs/y"}}, "required": ["y"]},
        "y": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1},
    },
    "$ref": "#/$defs/x",
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": ITSELF}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"anyOf": [ITSELF, ITSELF]}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"allOf": [True, ITSELF]}}, "required": ["a"]},
        {"type": "array", "items": ITSELF, "minItems": 1},
        {"type": "array", "prefixItems": [True, ITSELF], "minItems": 2},
        MUTUAL,
    ],
)
def test_endless(schema: Any) -> None:
    assert endless(schema)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object", "properties": {"a": ITSELF}},
        {"type": ["object", "null"], "properties": {"a": ITSELF}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"anyOf": [ITSELF, {"type": "null"}]}}, "required": ["a"]},
        {"type": "array", "items": ITSELF},
        {"type": "array", "prefixItems": [True, ITSELF], "minItems": 1},
        {"type": "object", "properties": {"a": {"$ref": "#/nothing"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$id": "x", **ITSELF}}, "required": ["a"]},
        {"enum": [{}], "type": "object", "properties": {"a": ITSELF}, "required": ["a"]},
        {**MUTUAL, "$defs": {**MUTUAL["$defs"], "y": {"type": "array", "items": {"$ref": "#/$defs/x"}}}},  # type: ignore[dict-item]
    ],
)
def test_not_endless(schema: Any) -> None:
    assert not endless(schema)
