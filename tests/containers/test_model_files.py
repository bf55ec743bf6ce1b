"""Files of a model folder that are none: devices, pipes, links to elsewhere, JSON that would fill the memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bitsmith
from bitsmith.containers import safetensors_header
from bitsmith.containers.bounded_json import MOST_MEMORY, depth_of, memory_of, parse_json
from bitsmith.containers.hf_folder import read_object, tokenizer_files
from bitsmith.containers.model_files import open_regular, read_small
from bitsmith.containers.safetensors_header import read_header
from bitsmith.errors import FileError


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    return folder


def test_a_pipe_or_device_is_refused_at_once(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(FileError, match=r"config\.json is not a regular file"):
        bitsmith.quantize(model, to="q8_0", out=model.parent / "out.gguf")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("/dev/zero")
    with pytest.raises(FileError, match=r"config\.json is not a regular file"):
        bitsmith.quantize(model, to="q8_0", out=model.parent / "out.gguf")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.gguf"])
def test_weights_are_regular_files(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileError, match="not a regular"):
        open_regular(tmp_path / name)


def test_a_link_out_of_the_folder_is_not_copied(model: Path) -> None:
    """A template that is a link to a private file would otherwise lie in the output."""
    secret = model.parent / "passwd"
    secret.write_text("root:x:0:0")
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(FileError, match=r"chat_template\.jinja is a link to .*passwd, outside the model's folder"):
        bitsmith.quantize(model, to="native/int8", out=model.parent / "out")
    assert not (model.parent / "out").exists()
    (model / "chat_template.jinja").unlink()
    (model / "additional_chat_templates").symlink_to(model.parent)
    (model.parent / "other.jinja").write_text("secret")
    with pytest.raises(FileError, match="outside the model's folder"):
        tokenizer_files(model)


def test_links_inside_the_folder_and_of_the_hubs_cache_work(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / "0123"
    blobs = snapshot.parents[1] / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "abcd").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    assert read_object(snapshot / "config.json") == {"a": 1}
    (snapshot / "tokenizer_config.json").symlink_to("config.json")
    assert list(tokenizer_files(snapshot)) == ["tokenizer_config.json"]
    local = tmp_path / "local"
    local.mkdir()
    (local / "config.json").symlink_to(blobs / "abcd")
    assert read_object(local / "config.json") == {"a": 1}


def test_a_file_is_read_only_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(FileError, match="expected at most 1,000 bytes"):
        read_small(path, 1000, folder=tmp_path)


@pytest.mark.parametrize(
    "unit",
    [b"{}", b'{"":0}', b"[]", b"1.5", b"12345678901", b'""', b'"\xf0\x9f\x98\x80"', b'{"a":{"b":[1.5]}}', b'{"a":"b"}'],
)
def test_memory_is_estimated_from_above(unit: bytes) -> None:
    """The values that Python makes of a text, counted by its own allocator."""
    text = b"[" + b",".join([unit] * 20_000) + b"]"
    code = (
        "import json, sys, tracemalloc\ntext = sys.stdin.buffer.read()\ntracemalloc.start()\n"
        "value = json.loads(text.decode())\nprint(tracemalloc.get_traced_memory()[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, check=True)
    assert int(done.stdout) < memory_of(text)


def test_json_with_too_many_values_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(FileError, match="too many values: they would take more than 640 MB"):
        parse_json(b"[" + b"{}," * (MOST_MEMORY // 240) + b"0]", "config.json")


def test_a_large_header_takes_bounded_memory(tmp_path: Path) -> None:
    """A header of 95 MB in a file that is otherwise empty: refused, or read below the bound."""
    entry = b'"layers.%d.weight":{"dtype":"F32","shape":[1,0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % number for number in range(1_200_000)) + b"}"
    assert 80 << 20 < len(header) < 100_000_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileError, match="too many values"):
        read_header(path)


def test_the_number_of_entries_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "_MOST_ENTRIES", 1000)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({str(number): entry for number in range(1001)}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FileError, match="has 1,001 entries, more than 1,000"):
        read_header(path)


def test_equal_names_are_found_in_linear_time(tmp_path: Path) -> None:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    text = b"{" + b"".join(entry % number for number in range(100_000)) + (entry % 99_999)[:-1] + b"}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FileError, match="two entries named '99999'"):
        read_header(path)


@pytest.mark.parametrize(
    ("text", "depth"),
    [("1", 0), ("[]", 1), ('{"a": [{"b": "[[[[{"}]}', 3), (r'["\\", "\"[[", [[]]]', 3), (r'["\\\"[[[[[["]', 1)],
)
def test_depth_of_json(text: str, depth: int) -> None:
    json.loads(text)
    assert depth_of(text.encode()) == depth
    padded = b" " * ((1 << 20) - len(text) // 2) + text.encode()  # over the border of two pieces
    assert depth_of(padded) == depth


def test_json_that_nests_deeply_is_refused() -> None:
    assert parse_json(b"[" * 99 + b"]" * 99, "x")
    with pytest.raises(FileError, match="nests too deeply"):
        parse_json(b"[" * 900 + b"]" * 900, "x")
