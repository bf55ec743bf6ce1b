"""Models on this machine: what is listed, and what may be removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import huggingface_hub.constants
import pytest

import bitsmith
from bitsmith.errors import FileError, UsageError
from bitsmith.models.removal import find_removal
from bitsmith.models.stored import StoredModel, list_models
from tests.cli.command import Command

MAIN, OLD = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the current folder is empty too."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def put(cache: Path, repo: str, files: dict[str, bytes], *, commit: str = MAIN, ref: str | None = "main") -> Path:
    """A repository in the cache as huggingface_hub lays it out; its snapshot."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for name, data in files.items():
        blob = root / "blobs" / f"{abs(hash((name, data))):x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    if ref:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return snapshot


GGUF = {"m-Q4_K_M.gguf": bytes(4000), "m-Q8_0.gguf": bytes(8000), "mmproj-f16.gguf": bytes(5), "README.md": b"x"}
CONFIG = json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}).encode()
FOLDER = {"config.json": CONFIG, "model.safetensors": bytes(500), "tokenizer.json": b"{}"}


def seen(models: list[StoredModel]) -> list[tuple[object, ...]]:
    return [(each.name, each.kind, each.quantization, each.size, each.complete) for each in models]


def test_the_cache_is_listed_by_name(cache: Path) -> None:
    put(cache, "owner/two", GGUF)
    put(cache, "owner/one", FOLDER)
    put(cache, "owner/only-a-config", {"config.json": CONFIG})
    (cache / "datasets--owner--data").mkdir()
    assert seen(list_models()) == [
        ("owner/one", "safetensors", "BF16", len(CONFIG) + 502, True),
        ("owner/two:Q4_K_M", "gguf", "Q4_K_M", 4000, True),
        ("owner/two:Q8_0", "gguf", "Q8_0", 8000, True),
    ]
    assert all(model.in_cache and model.last_used > 1e9 for model in list_models())
    assert bitsmith.list_models() == list_models()


def test_other_revisions_and_incomplete_sets_say_so(cache: Path) -> None:
    put(cache, "o/r", {"m-Q8_0.gguf": bytes(10)}, commit=OLD, ref="v1")
    put(cache, "o/r", {"m-Q8_0.gguf": bytes(20)})
    put(cache, "o/split", {"m-F16-00002-of-00002.gguf": bytes(7)})
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    put(cache, "o/shards", {"config.json": CONFIG, "model.safetensors.index.json": index, "model-1.safetensors": b"1"})
    found = list_models()
    assert [(each.name, each.revision, each.size) for each in found if "o/r:" in each.name] == [
        ("o/r:Q8_0", None, 20),
        ("o/r:Q8_0", OLD, 10),
    ]
    assert [(each.name, each.complete) for each in found if "o/s" in each.name] == [
        ("o/shards", False),
        ("o/split:F16", False),
    ]


def test_a_folder_is_searched_two_levels_deep(cache: Path, tiny: Path) -> None:
    made = bitsmith.quantize(tiny, to="q8_0", out="unnamed.gguf").out
    bitsmith.quantize(tiny, to="native/nf4", out="sub")
    for name in ("a/b/m-Q4_0.gguf", "a/b/c/deeper-Q4_0.gguf", ".hidden/m-Q4_0.gguf"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(bytes(9))
    found = seen(list_models())
    assert [row[:3] for row in found] == [
        ("unnamed.gguf", "gguf", "Q8_0"),
        ("sub", "safetensors", "bitsmith, nf4"),
        ("a/b/m-Q4_0.gguf", "gguf", "Q4_0"),
    ]
    assert found[0][3] == made.stat().st_size
    assert [each.name for each in list_models(tiny.parent) if each.name == str(tiny)] == [str(tiny)]
    with pytest.raises(FileError, match="no such folder"):
        list_models("nowhere")


def test_list_in_words_and_as_json(cache: Path, bitsmith_command: Command) -> None:
    nothing = bitsmith_command("list")
    assert (nothing.code, nothing.out) == (0, "")
    assert "bitsmith pull" in nothing.err
    put(cache, "owner/two", GGUF)
    words = bitsmith_command("list")
    assert words.out.splitlines()[0].split() == ["model", "kind", "quantization", "size", "last", "used"]
    assert words.out.splitlines()[1].split() == ["owner/two:Q4_K_M", "gguf", "Q4_K_M", "4", "kB", "today"]
    assert "12 kB" in words.err
    assert [each["name"] for each in json.loads(bitsmith_command("list", "--json").out)] == [
        "owner/two:Q4_K_M",
        "owner/two:Q8_0",
    ]


def test_one_quantization_is_removed_and_the_rest_stays(cache: Path, bitsmith_command: Command) -> None:
    snapshot = put(cache, "owner/two", GGUF)
    done = bitsmith_command("rm", "hf.co/owner/two:q4_k_m", "--yes")
    assert (done.code, done.out) == (0, "Removed hf.co/owner/two:q4_k_m: 4 kB freed.\n")
    assert sorted(path.name for path in snapshot.iterdir()) == ["README.md", "m-Q8_0.gguf", "mmproj-f16.gguf"]
    assert sum(path.stat().st_size for path in (snapshot.parents[1] / "blobs").iterdir()) == 8006
    assert [each.name for each in list_models()] == ["owner/two:Q8_0"]
    assert "has no quantization 'Q4_K_M'" in bitsmith_command.fails(1, "rm", "owner/two:Q4_K_M", "--yes")
    assert "it has m-Q8_0.gguf" in bitsmith_command.fails(1, "rm", "owner/two:x.gguf", "--yes")


def test_a_whole_repository_is_removed(cache: Path) -> None:
    put(cache, "owner/one", FOLDER)
    put(cache, "owner/two", GGUF, commit=OLD, ref=None)
    removed = bitsmith.remove("owner/one")
    assert (removed.size, len(removed.files)) == (len(CONFIG) + 502, 3)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["models--owner--two"]
    bitsmith.remove("owner/two:Q4_K_M")
    assert (cache / "models--owner--two" / "snapshots" / OLD / "m-Q8_0.gguf").exists()
    bitsmith.remove("owner/two:m-Q8_0.gguf")
    assert list_models() == []


def test_files_of_two_revisions_share_their_bytes(cache: Path) -> None:
    put(cache, "o/r", {"m-Q8_0.gguf": bytes(10), "n-Q4_0.gguf": bytes(3)}, commit=OLD, ref="v1")
    put(cache, "o/r", {"m-Q8_0.gguf": bytes(10)})
    removed = bitsmith.remove("o/r", revision="v1")
    assert removed.size == 3
    assert [each.name for each in list_models()] == ["o/r:Q8_0"]
    with pytest.raises(FileError, match="no revision 'v2'"):
        bitsmith.remove("o/r", revision="v2")


def test_rm_asks_and_is_refused_where_nobody_answers(
    cache: Path, bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = put(cache, "owner/two", GGUF)
    assert "--yes" in bitsmith_command.fails(2, "rm", "owner/two")
    monkeypatch.setattr("bitsmith.cli.stored.asked", lambda: True)
    for answer, code, left in (("n\n", 1, True), ("y\n", 0, False)):
        monkeypatch.setattr("sys.stdin", __import__("io").StringIO(answer))
        result = bitsmith_command("rm", "owner/two")
        assert (result.code, snapshot.exists()) == (code, left), result
        assert "12 kB" in result.err + result.out


@pytest.mark.parametrize("name", [".", "here.gguf", "/etc", "../hub"])
def test_paths_are_never_removed(cache: Path, name: str) -> None:
    Path("here.gguf").write_bytes(b"x")
    with pytest.raises(UsageError, match="only models in the hub's cache"):
        find_removal(name)
    assert Path("here.gguf").exists()


@pytest.mark.parametrize("name", ["a/b:../../x", "nothing", "a/../b", "a/b"])
def test_what_the_cache_does_not_have(cache: Path, name: str) -> None:
    with pytest.raises((UsageError, FileError)):
        find_removal(name)


def test_links_out_of_the_cache_are_refused(cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "mine.gguf"
    outside.write_bytes(bytes(30))
    snapshot = put(cache, "o/r", {"m-Q8_0.gguf": bytes(10)})
    (snapshot / "n-Q4_0.gguf").symlink_to(outside)
    with pytest.raises(FileError, match="outside the hub's cache"):
        bitsmith.remove("o/r:Q4_0")
    assert outside.exists()
    elsewhere = tmp_path / "elsewhere"
    (cache / "models--o--r").rename(elsewhere)
    (cache / "models--o--r").symlink_to(elsewhere)
    with pytest.raises(FileError, match="outside the hub's cache"):
        bitsmith.remove("o/r")
    assert (elsewhere / "snapshots" / MAIN / "m-Q8_0.gguf").exists()
