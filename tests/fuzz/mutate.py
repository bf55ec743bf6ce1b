"""Changes to files that keep their structure, so that a reader gets past the first check."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from bitsmith.containers.gguf.metadata_values import (
    DTYPES,
    GgufArray,
    Value,
    ValueType,
    array,
    boolean,
    scalar,
    string,
)
from bitsmith.containers.gguf.types import TYPES

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    31,
    32,
    63,
    64,
    255,
    256,
    4096,
    65535,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    1 << 63,
    -(1 << 31),
]
TEXTS = [
    "",
    "a",
    "\x1b[31m",
    "\x00",
    "é" * 300,
    "../../x",
    "/etc/passwd",
    "%s%n",
    "9" * 30,
    "\ud800",
    "\u202e",
    "x" * 5000,
    "▁",
]
REGEXES = [
    "(a+)+$",
    "(",
    "[",
    "(?=(.*))*",
    ".*",
    "(?i)",
    r"\p{L}",
    "a{99999999}",
    "(a{1000}){1000}",
    "^",
    "(?<!a)b",
    r"(x)\1",
]
TEMPLATES = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 999999999999 }}",
    "{{ raise_exception('\\x1b]0;owned\\x07') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ messages[0].content.__class__ }}",
    "{{ messages|map(attribute='role')|join(', ') }}",
    "{% set ns = namespace(v=(1,)) %}{% for i in range(60) %}{% set ns.v = (ns.v, ns.v) %}{% endfor %}{{ ns.v }}",
    "{{",
    "",
    "{{ 1 / 0 }}",
    "{% include 'x' %}",
    "{{ '1' * 950000 }}",
]
_JSON = [
    "null",
    "true",
    "[]",
    "{}",
    "1e400",
    "NaN",
    "-Infinity",
    "1.5",
    "[[]]",
    '{"type": "Sequence"}',
    '["a"]',
    "-7",
    "1e3",
]


_STEP = '{"type":"Sequence","normalizers":[', '{"type":"Sequence","pretokenizers":['
_NESTED = {  # written into the text, since json.dumps cannot nest so deep
    "@lists": "[" * 900 + "]" * 900,
    "@many-lists": "[" * 100_000 + "]" * 100_000,
    "@objects": '{"a":' * 400 + "1" + "}" * 400,
    "@normalizers": _STEP[0] * 300 + "]}" * 300,
    "@pretokenizers": _STEP[1] * 300 + "]}" * 300,
}


def flipped(data: bytes, rng: random.Random, limit: int | None = None) -> bytes:
    """Some bytes changed, among the first `limit`."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if changed:
            changed[rng.randrange(min(len(changed), limit or len(changed)))] = rng.choice(
                [0, 1, 255, 128, rng.randrange(256)]
            )
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The beginning, or without a piece, or with a piece twice."""
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return rng.choice([data[:a], data[:a] + data[b:], data[:b] + data[a:], data + data[a:b], b""])


def number_put(data: bytes, rng: random.Random, limit: int | None = None) -> bytes:
    """A number of 2, 4 or 8 bytes, or a float, written somewhere among the first `limit` bytes."""
    form = rng.choice(["<H", "<I", "<Q", "<i", "<q", "<f"])
    size = struct.calcsize(form)
    if len(data) < size:
        return data
    at = rng.randrange(min(len(data) - size + 1, limit or len(data)))
    if form == "<f":
        piece = struct.pack(form, rng.choice([float("nan"), float("inf"), -1.0, 1e38, 1e-45]))
    else:
        bits = 8 * size
        piece = (rng.choice(NUMBERS) & ((1 << bits) - 1)).to_bytes(size, "little")
    return data[:at] + piece + data[at + size :]


def value(rng: random.Random) -> Any:
    """A value of JSON that is rarely expected."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice([*NUMBERS, 10**400])
    if kind == 1:
        return rng.choice(TEXTS)
    if kind == 2:
        return rng.choice(REGEXES)
    if kind == 3:
        return rng.choice(list(_NESTED))
    return json.loads(rng.choice(_JSON))


def dump(content: Any) -> bytes:
    """JSON, with the texts of _NESTED replaced by what nests so deep."""
    text = json.dumps(content)
    for mark, nested in _NESTED.items():
        text = text.replace(f'"{mark}"', nested)
    return text.encode()


def json_value(content: Any, rng: random.Random, depth: int = 0) -> Any:
    """The value with one part, at any depth, replaced, left out, doubled or renamed."""
    if isinstance(content, dict) and content and (depth == 0 or rng.random() < 0.85):
        key = rng.choice(list(content))
        how = rng.random()
        if how < 0.05:
            return {k: v for k, v in content.items() if k != key}
        if how < 0.1:
            return {**content, rng.choice(TEXTS): content[key]}
        return {**content, key: json_value(content[key], rng, depth + 1)}
    if isinstance(content, list) and content and rng.random() < 0.8:
        at = rng.randrange(len(content))
        if rng.random() < 0.1:
            return content[:at] + content[at:] + content[at:]
        return [*content[:at], json_value(content[at], rng, depth + 1), *content[at + 1 :]]
    if isinstance(content, int) and not isinstance(content, bool) and rng.random() < 0.6:
        return rng.choice([content + 1, content - 1, content * 2, -content, content * 1000, *NUMBERS])
    return value(rng)


def json_file(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with values, or bytes, changed."""
    if rng.random() < 0.1:
        return rng.choice([flipped, cut])(data, rng)
    content = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        content = json_value(content, rng)
    return dump(content)


def safetensors_file(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with changes in its header, its metadata or its data."""
    end = 8 + int.from_bytes(data[:8], "little")
    how = rng.random()
    if how < 0.15:
        return rng.choice([flipped, number_put])(data, rng, end)
    if how < 0.25:
        return data[:end] + rng.choice([flipped, number_put])(data[end:], rng)
    if how < 0.3:
        return cut(data, rng)
    header = json.loads(data[8:end])
    if how < 0.5 and "__metadata__" in header:
        key = rng.choice(list(header["__metadata__"]))
        text = header["__metadata__"][key]
        header["__metadata__"][key] = (
            json_file(text.encode(), rng).decode("utf-8", "replace") if text.startswith("{") else rng.choice(TEXTS)
        )
    else:
        header = json_value(header, rng)
    text = dump(header)
    return len(text).to_bytes(8, "little") + text + data[end:]


def gguf_value(now: Value | None, rng: random.Random) -> Value:
    """Another value for a key: mostly of the type that it has."""
    kind = now.type if now is not None and rng.random() < 0.7 else rng.choice(list(ValueType))
    if kind is ValueType.STRING:
        text = rng.choice([*TEXTS, *TEMPLATES, "llama", "gpt2", "superbpe"]).replace("\ud800", "?")
        return string(text)
    if kind is ValueType.BOOL:
        return boolean(rng.random() < 0.5)
    if kind is ValueType.ARRAY:
        items = now.value.items if now is not None and isinstance(now.value, GgufArray) else ()
        if len(items) == 0 or rng.random() < 0.3:
            return array(rng.choice([["a"] * 5, [1] * 4096, [0.5], ["x" * 100_000, "y"], list(range(5000))]))
        return Value(kind, GgufArray(now.value.item, items[: rng.randrange(len(items) + 1)]))  # type: ignore[union-attr]
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return scalar(kind, rng.choice([0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")]))
    width = 8 * DTYPES[kind].itemsize
    number = rng.choice(NUMBERS) & ((1 << width) - 1)
    return scalar(kind, number - (1 << width) if DTYPES[kind].kind == "i" and number >> (width - 1) else number)


def gguf_file(data: bytes, rng: random.Random, header: int) -> bytes:
    """A GGUF file with changes in its header (its first `header` bytes) or its data."""
    how = rng.random()
    if how < 0.2:
        return rng.choice([flipped, number_put])(data, rng, header)
    if how < 0.3:
        return data[:header] + rng.choice([flipped, number_put])(data[header:], rng)
    if how < 0.35:
        return cut(data, rng)
    if how < 0.5:
        return _other_type(data, rng, header)
    changed = data
    for _ in range(rng.choice([1, 1, 2, 3])):
        changed = _other_text(changed, rng, header) if rng.random() < 0.3 else _near_name(changed, rng, header)
    return changed


def _places(data: bytes, header: int, words: list[bytes]) -> list[int]:
    found = []
    for word in words:
        at = data.find(word, 0, header)
        while at >= 0:
            found.append(at + len(word))
            at = data.find(word, at + 1, header)
    return found


def _near_name(data: bytes, rng: random.Random, header: int) -> bytes:
    """Another number just behind the name of a key or tensor, where its type, length or value stands."""
    places = _places(data, header, [b"llama.", b"tokenizer.ggml", b"general.", b".weight", b"bitsmith.", b"split."])
    if not places:
        return flipped(data, rng, header)
    at = rng.choice(places) + rng.randrange(48)
    size = rng.choice([1, 4, 8])
    if at + size > len(data):
        return data
    number = rng.choice([*NUMBERS, *range(13)]) & ((1 << 8 * size) - 1)
    return data[:at] + number.to_bytes(size, "little") + data[at + size :]


def _other_type(data: bytes, rng: random.Random, header: int) -> bytes:
    """A tensor of another type: all ggml types, those that lie about their data among them."""
    places = _places(data, header, [b".weight"])
    if not places:
        return data
    at = rng.choice(places)
    dimensions = int.from_bytes(data[at : at + 4], "little")
    at += 4 + 8 * min(dimensions, 4)
    number = rng.choice([kind.number for kind in TYPES.values()])
    return data[:at] + number.to_bytes(4, "little") + data[at + 4 :]


def _other_text(data: bytes, rng: random.Random, header: int) -> bytes:
    """Another text of the same length in place of a known one."""
    words = [b"llama", b"gpt2", b"default", b"blk.0", b"<|user|>", b"<|endoftext|>", b"{%", b"token_embd"]
    words = [word for word in words if word in data[:header]]
    if not words:
        return data
    word = rng.choice(words)
    other = rng.choice([bytes(len(word)), b"\x1b" * len(word), b"\xff" * len(word), word[::-1], b"a" * len(word)])
    at = rng.choice(_places(data, header, [word])) - len(word)
    return data[:at] + other + data[at + len(word) :]


Mutator = Callable[[bytes, random.Random], bytes]
