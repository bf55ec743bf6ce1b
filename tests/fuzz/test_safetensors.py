"""Mutated safetensors files, native tensors among them: read, or refused by a named error in bounded memory."""

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitsmith.containers.native import NativeCodec
from bitsmith.containers.native import metadata as native_metadata
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError, TensorError, UnsupportedError
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor

FORMATS = ("int4-g32", "nf4", "fp8", "q4_k")


def valid_file(path: Path) -> bytes:
    w = np.random.default_rng(0).standard_normal((3, 256), np.float32)
    entries: dict[str, np.ndarray] = {"plain": w, "half": w.astype(np.float16), "scalar": np.array(1.0, np.float32)}
    for name in FORMATS:
        format = get_format(name)
        parts = NativeCodec(format).encode(QuantTensor(format, *nearest(w, format)))
        entries |= {f"n.{name}.{part}": data for part, data in parts.items()}
    metadata = native_metadata({f"n.{name}": (name, w.shape) for name in FORMATS})
    save_file(entries, path, {"format": "pt", **metadata})
    return path.read_bytes()


def opens(path: Path, content: bytes) -> bool:
    """Open and decode all; False where it was refused."""
    path.write_bytes(content)
    try:
        source = SafetensorsSource(path)
    except (FileError, UnsupportedError):
        return False
    for name, info in source.tensors.items():
        try:
            decoded = source.rows(name)
        except (TensorError, UnsupportedError):
            return False
        assert decoded.shape == (info.rows, info.cols)
    return True


def test_the_file_itself_is_sound(tmp_path: Path) -> None:
    assert opens(tmp_path / "m.safetensors", valid_file(tmp_path / "whole.safetensors"))


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = valid_file(tmp_path / "whole.safetensors")
    for length in range(0, len(content), 13):
        assert not opens(tmp_path / "m.safetensors", content[:length])


@pytest.mark.parametrize("seed", range(2))
def test_mutated_bytes(tmp_path: Path, seed: int) -> None:
    content = valid_file(tmp_path / "whole.safetensors")
    header = 8 + int.from_bytes(content[:8], "little")
    random_source = random.Random(seed)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(600):
            mutated = bytearray(content)
            for _ in range(random_source.choice([1, 1, 2, 5])):
                at = random_source.randrange(header)
                mutated[at] = random_source.choice([*b'0129-,:[]{}"\\e.', random_source.randrange(256)])
            refused += not opens(tmp_path / "m.safetensors", bytes(mutated))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert 200 < refused < 600


SPLICES = ["0", "-1", "1e3", "1.5", "true", "null", "[]", "{}", '""', "9" * 30, "NaN", "Infinity", "[1]", '"q4_k"']


@pytest.mark.parametrize("seed", range(2))
def test_mutated_json(tmp_path: Path, seed: int) -> None:
    """Values of the header, and of the JSON texts inside it, replaced by others of any type."""
    content = valid_file(tmp_path / "whole.safetensors")
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    random_source = random.Random(seed)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(400):
            text = json.dumps(mutated(header, random_source)).encode()
            refused += not opens(tmp_path / "m.safetensors", len(text).to_bytes(8, "little") + text + content[end:])
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert refused > 100


def mutated(value: object, random_source: random.Random) -> object:
    """`value` with one value, at any depth, replaced."""
    if isinstance(value, dict) and value:
        key = random_source.choice(list(value))
        return {**value, key: mutated(value[key], random_source)}
    if isinstance(value, list) and value and random_source.random() < 0.8:
        at = random_source.randrange(len(value))
        return [*value[:at], mutated(value[at], random_source), *value[at + 1 :]]
    if isinstance(value, str) and value.startswith("{") and random_source.random() < 0.9:
        return json.dumps(mutated(json.loads(value), random_source))
    if isinstance(value, str) and random_source.random() < 0.5:
        at = random_source.randrange(len(value) + 1)
        return value[:at] + random_source.choice("0123456789-gx") + value[at + random_source.randrange(2) :]
    return json.loads(random_source.choice(SPLICES))
