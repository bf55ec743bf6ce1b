"""Files that broke commands off: each is an error with its name, or works."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.cli import prompt
from bitsmith.containers.gguf.blocks import CODECS
from bitsmith.containers.gguf.metadata_values import string
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.quant.formats.base import VectorFormat
from tests.cli.command import Command
from tests.gguf_files import random_stored, raw_file, write_gguf
from tests.tiny import make_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model", intermediate_size=256)


def test_a_gguf_without_tensors(bitsmith_command: Command, tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(raw_file())
    assert "0 tensors" in bitsmith_command("inspect", path).out
    write_gguf(path, {"general.architecture": string("llama"), "llama.block_count": string("x")}, {})
    for words in (("quantize", path, "--to", "q8_0", "-o", tmp_path / "o.gguf"), ("plan", path)):
        assert "empty.gguf" in bitsmith_command.fails(1, *words)


def test_weights_without_any_number(bitsmith_command: Command, tmp_path: Path) -> None:
    tensors = {"model.norm.weight": np.zeros(0, np.float32)}
    folder = make_folder(tmp_path / "hollow", tensors=tensors, model_type="odd", architectures=["Odd"])
    message = bitsmith_command.fails(1, "quantize", folder, "--to", "native/int8", "-o", tmp_path / "out")
    assert "holds no weights" in message


@pytest.mark.parametrize("layout", ["mxfp4", "nvfp4", "q8_0", "i8", "q8_1"])
def test_random_bytes_as_weights(bitsmith_command: Command, model: Path, tmp_path: Path, layout: str) -> None:
    """Types that a file claims for what is none: a result or an error, on every command that reads them."""
    bitsmith.quantize(model, to="q8_0", out=tmp_path / "q.gguf", threads=1)
    source = GgufSource(tmp_path / "q.gguf")
    tensors: dict[str, Any] = {
        name: random_stored(layout, info.shape) if len(info.shape) > 1 else source.rows(name)[0]
        for name, info in source.tensors.items()
    }
    path = tmp_path / f"{layout}.gguf"
    write_gguf(path, dict(source.keys), tensors)
    for words in (
        ("run", path, "-p", "a", "-n", "2"),
        ("eval", path, "--context", "32", "--max-windows", "1"),
        ("inspect", path, "--verify"),
    ):
        result = bitsmith_command(*words)
        assert result.code in (0, 1)
        assert "Traceback" not in result.err
        assert result.code == 0 or result.err.strip()


@pytest.mark.parametrize("name", CODECS)
def test_no_rows_of_a_type(name: str) -> None:
    codec = CODECS[name]
    ((_, row_bytes), _) = codec.layout((1, 256))["data"]
    found = codec.decode({"data": np.empty((0, row_bytes), np.uint8)}, 256)
    columns = 256 // 8 if isinstance(found.format, VectorFormat) else 256
    assert np.asarray(found.codes).shape == (0, columns)
    assert codec.encode(found)["data"].shape == (0, row_bytes)


STEP = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", [], "expected model to be an object, found list"),
        ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": 3}, r"expected model.merges to be a list, found 3"),
        ("added_tokens", 7, "expected added_tokens to be a list, found 7"),
        ("pre_tokenizer", ["ByteLevel"], "expected pre_tokenizer to be an object, found list"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": {}},
            r"expected pre_tokenizer.pretokenizers to be a list",
        ),
        ("pre_tokenizer", {"type": ["Split"]}, r"expected pre_tokenizer.type to be a text, found list"),
        ("pre_tokenizer", {"type": "Split", "pattern": [[]]}, r"expected pre_tokenizer.pattern to be an object"),
        (
            "normalizer",
            {"type": "Sequence", "normalizers": [3]},
            r"expected normalizer.normalizers\[0\] to be an object",
        ),
        ("post_processor", {"type": "TemplateProcessing", "single": [{}]}, "objects that hold an object each"),
        ("decoder", {"decoders": [{"decoders": [{"decoders": [{"decoders": [{}] * 2}] * 2}] * 2}]}, None),
        ("normalizer", "@deep", "at most 8 steps inside each other"),
        ("normalizer", "@deeper", "nests too deeply"),
    ],
)
@pytest.mark.parametrize("command", ["run", "quantize"])
def test_a_tokenizer_with_lists_for_objects(
    bitsmith_command: Command, model: Path, tmp_path: Path, command: str, key: str, value: Any, message: str | None
) -> None:
    file = model / "tokenizer.json"
    text = json.dumps({**json.loads(file.read_text("utf-8")), key: value})
    for mark, depth in (("@deep", 20), ("@deeper", 400)):
        text = text.replace(f'"{mark}"', '{"type":"Sequence","normalizers":[' * depth + "]}" * depth)
    file.write_text(text, "utf-8")
    words = ("run", model, "-p", "a", "-n", "1")
    if command == "quantize":
        words = ("quantize", model, "--to", "q8_0", "-o", tmp_path / "o.gguf")
    result = bitsmith_command(*words)
    assert "Traceback" not in result.err
    if message is not None:
        assert result.code == 1
        assert re.search(message, " ".join(result.err.split()))
        assert "tokenizer.json" in result.err


def test_orders_to_the_terminal_in_names(bitsmith_command: Command, model: Path, tmp_path: Path) -> None:
    """Architectures, shard names, templates that refuse: messages show escapes, and send none."""
    order = "\x1b]0;owned\x07\u202e"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": [order], "model_type": order}))
    said = [bitsmith_command.fails(1, "run", model, "-p", "a")]
    (model / "config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").write_text("{{ raise_exception('" + order + "') }}")
    said.append(bitsmith_command.fails(1, "chat", model))
    sharded = tmp_path / "sharded"
    shutil.copytree(model, sharded)
    (sharded / "model.safetensors").unlink()
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": order}}))
    said.append(bitsmith_command.fails(1, "inspect", sharded))
    gguf = tmp_path / "a.gguf"
    write_gguf(gguf, {"general.architecture": string(order)}, {order: np.ones((2, 32), np.float32)})
    said.append(bitsmith_command.fails(1, "run", gguf, "-p", "a"))
    shown = bitsmith_command("inspect", gguf)
    said += [shown.out, shown.err, bitsmith_command("plan", gguf).err]
    for text in said:
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert all("\\x1b]0;owned\\x07\\u202e" in text for text in said[:5])


def test_a_pipe_in_place_of_a_tokenizer_is_not_left_out(bitsmith_command: Command, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    os.mkfifo(folder / "tokenizer.json")
    done = bitsmith_command.fails(1, "quantize", folder, "--to", "native/int8", "--out", tmp_path / "out")
    assert "tokenizer.json" in done
    assert "not a regular file" in done
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_cannot_be_parsed_is_not_replaced(bitsmith_command: Command, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "config.json").write_text("[" * 900)
    done = bitsmith_command.fails(1, "quantize", folder, "--to", "native/int8", "--out", tmp_path / "out")
    assert "config.json" in done
    assert not (tmp_path / "out").exists()
    inspected = bitsmith_command("inspect", folder)
    assert "cannot run this model" in inspected.err


def test_prompts_are_bounded(bitsmith_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "LONGEST", 100)
    (tmp_path / "long.txt").write_text("a" * 200)
    done = bitsmith_command.fails(1, "run", make_folder(tmp_path / "m"), "-f", tmp_path / "long.txt")
    assert "long.txt has more than" in done
