"""Hub models: some kilobytes are read, never weights; without a network the cache, else a clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitsmith
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.quantization import quantize_each
from tests.fake_hub import Hub, serving


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[type[Hub], dict[str, str]]]:
    with serving(tmp_path) as served:
        yield served


def plan(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from bitsmith.cli import main; main()"
    command = [sys.executable, "-c", code, "plan", *arguments, "--device", "rtx-4090"]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def serve(handler: type[Hub], source: Path) -> None:
    for path in source.iterdir():
        (handler.folder / path.name).write_bytes(path.read_bytes())


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitsmith.quantize(
        "reference", to="native/f16", out=tmp_path_factory.mktemp("hub") / "sharded", max_shard_size="5MB"
    ).out


def test_headers_are_enough(hub: tuple[type[Hub], dict[str, str]], sharded: Path) -> None:
    handler, env = hub
    serve(handler, sharded)
    for path in handler.folder.glob("token*"):
        path.unlink()
    done = plan(env, "owner/name", "--json", "-f", "q4_k_m", "-f", "f16")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    local = {row.weights.target: row for row in bitsmith.plan("reference", formats=["q4_k_m", "f16"]).rows}
    for row in found["formats"]:
        if row["format"] != "as it is":
            assert row["tensor_bytes"] == local[row["format"]].weights.total
            assert (row["exact"], row["file_bytes"]) == ("exact tensors", None)
    weights = sum(path.stat().st_size for path in handler.folder.glob("*.safetensors"))
    shards = len(list(handler.folder.glob("*.safetensors")))
    assert shards > 2
    assert handler.given < 110_000 * (shards + 1) < weights


def test_with_the_tokenizer_files_are_exact(hub: tuple[type[Hub], dict[str, str]], sharded: Path) -> None:
    handler, env = hub
    serve(handler, sharded)
    done = plan(env, "owner/name", "--tokenizer", "--json", "-f", "q4_k_m")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["formats"] if row["format"] == "q4_k_m"]
    # the name is in the file: ours is "name" there and here
    named = handler.folder.parent / "name"
    handler.folder.rename(named)
    (dry,) = quantize_each(named, ["q4_k_m"], QuantizeConfig(dry_run=True))
    assert row["file_bytes"] == dry.size


def test_gguf_files(hub: tuple[type[Hub], dict[str, str]], tmp_path: Path) -> None:
    handler, env = hub
    made = bitsmith.quantize("reference", to="q8_0", out=handler.folder / "model-Q8_0.gguf")
    done = plan(env, "owner/name:model-Q8_0.gguf", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["formats"]
    assert (row["format"], row["file_bytes"]) == ("as it is", made.size)
    assert handler.given <= 1 << 20
    split = bitsmith.quantize("reference", to="q4_k_m", out=handler.folder / "model.gguf", max_shard_size="2MB")
    done = plan(env, f"owner/name:{split.out.name}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["formats"][0]["file_bytes"] == split.size
    missing = plan(env, "owner/name:other.gguf")
    assert missing.returncode == 1
    assert "no file 'other.gguf'" in missing.stderr


def test_without_the_hub_the_cache_is_used(hub: tuple[type[Hub], dict[str, str]], sharded: Path) -> None:
    handler, env = hub
    serve(handler, sharded)
    assert plan(env, "owner/name", "-f", "q4_k_m").returncode == 0
    (handler.folder / "model.safetensors.index.json").unlink()
    for path in handler.folder.glob("*.safetensors"):
        path.unlink()
    only_config = plan(env, "owner/name")  # no weights at all
    assert only_config.returncode == 1
    assert "model.safetensors" in only_config.stderr
    offline = {**env, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    again = plan(offline, "owner/name", "-f", "q4_k_m")
    assert again.returncode == 0, again.stderr
    assert "in the cache" in again.stdout
    for name, words in (
        ("owner/other", "is not in the cache"),
        ("meta-llama/Llama-2-7b-hf", "built-in shape llama-2-7b"),
    ):
        failed = plan(offline, name)
        assert failed.returncode == 1
        assert "Traceback" not in failed.stderr
        assert words in " ".join(failed.stderr.split())


@pytest.mark.parametrize("kind", ["long", "short", "escape"])
def test_headers_that_lie(hub: tuple[type[Hub], dict[str, str]], sharded: Path, kind: str) -> None:
    handler, env = hub
    serve(handler, sharded)
    shard = sorted(handler.folder.glob("*.safetensors"))[0]
    if kind == "long":
        shard.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    elif kind == "short":
        shard.write_bytes(b"{}")
    else:
        index = handler.folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    done = plan(env, "owner/name")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert ("outside" if kind == "escape" else shard.name) in " ".join(done.stderr.split()).replace("- ", "-")
