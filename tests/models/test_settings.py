"""A chat template, tokenizer or configuration that was changed after the writing is found without the original."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import bitsmith
from bitsmith.containers.gguf.metadata_values import string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.manifest import Manifest, from_gguf_keys, from_json, to_gguf_keys, to_json
from bitsmith.containers.settings import key_settings
from bitsmith.errors import FileError, TensorError
from bitsmith.models import verification
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.inspection import inspect


def problems(path: Path) -> tuple[str, ...]:
    return inspect(open_checkpoint(path).source, verify=True).problems


@pytest.mark.parametrize("to", ["compressed/w4a16", "native/nf4", "mlx/4bit"])
def test_each_file_of_a_folder(tmp_path: Path, to: str) -> None:
    good = bitsmith.quantize("reference", to=to, out=tmp_path / "good").out
    assert problems(good) == ()
    for name in ("config.json", "chat_template.jinja", "tokenizer.json", "generation_config.json"):
        bad = tmp_path / f"bad-{name}"
        shutil.copytree(good, bad)
        (bad / name).write_text((bad / name).read_text() + "\n")
        (said,) = problems(bad)
        assert f"its {name} is changed since the model was made" in said
    (bad / "generation_config.json").unlink()
    assert "generation_config.json is missing" in problems(bad)[0]
    (good / "chat_template.json").write_text(json.dumps({"chat_template": "x"}))
    assert "chat_template.json is new" in problems(good)[0]


def test_shards_and_copies_carry_them(tmp_path: Path) -> None:
    made = bitsmith.convert("reference", to="bf16", out=tmp_path / "parts", max_shard_size="4MB").out
    assert problems(made) == ()
    again = bitsmith.convert(made, to="same", out=tmp_path / "again").out
    assert problems(again) == ()
    (again / "config.json").write_text((again / "config.json").read_text() + " ")
    assert "config.json is changed" in problems(again)[0]


def test_the_keys_of_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = bitsmith.quantize("reference", to="q8_0", out=tmp_path / "good.gguf").out
    assert problems(good) == ()
    source = open_checkpoint(good).source
    assert isinstance(source, GgufSource)
    recorded = from_gguf_keys(source.metadata)
    assert recorded is not None
    assert set(recorded.settings) == {"chat template", "tokenizer", "configuration"}
    data = good.read_bytes()
    assert data.count(b"<|user|>") >= 2  # in the vocabulary and in the template
    at = data.rindex(b"<|user|>", 0, data.index(b"bitsmith.tensor.names"))
    (tmp_path / "bad.gguf").write_bytes(data[:at] + b"<|uses|>" + data[at + 8 :])
    (said,) = problems(tmp_path / "bad.gguf")
    assert "its chat template is changed" in said or "its tokenizer is changed" in said
    monkeypatch.setattr(verification, "key_settings", lambda keys: {})
    assert len(problems(good)) == 3


def test_names_of_a_gguf_file_may_change() -> None:
    keys = {"general.name": string("a"), "llama.block_count": u32(3), "tokenizer.chat_template": string("x")}
    first = key_settings(keys)
    assert key_settings({**keys, "general.name": string("b"), "bitsmith.recipe": string("c")}) == first
    assert key_settings(dict(reversed(keys.items()))) == first
    assert key_settings({**keys, "llama.block_count": u32(4)})["configuration"] != first["configuration"]
    assert key_settings({**keys, "tokenizer.chat_template": string("y")})["chat template"] != first["chat template"]


def test_they_are_read_back_and_checked() -> None:
    made = Manifest("1", "{}", (), {"config.json": "a" * 64})
    assert from_json(to_json(made)) == made
    plain = {name: value.plain() for name, value in to_gguf_keys(made).items()}
    assert from_gguf_keys(plain) == made
    assert from_json(to_json(replace(made, settings={}))).settings == {}
    with pytest.raises(TensorError, match=r"config\.json"):
        Manifest("1", "{}", (), {"config.json": "x"})
    with pytest.raises(FileError, match="settings"):
        from_json(to_json(made).replace("a" * 64, "b"))
    with pytest.raises(FileError, match="settings"):
        from_gguf_keys({**plain, "bitsmith.settings.sha256": []})
