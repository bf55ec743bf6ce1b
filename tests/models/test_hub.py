"""The hub, without a network: which files are asked for, and what each refusal says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import errors

from bitsmith.errors import FileError
from bitsmith.models import hub
from bitsmith.models.checkpoint import open_checkpoint
from tests.fake_hub import serving
from tests.tiny import make_folder


class Response:
    """What the hub's errors want to be made from."""

    status_code = 404
    headers: ClassVar[dict[str, str]] = {}
    request = None
    url = ""
    text = ""


def raiser(kind: type[Exception]) -> Any:
    def fail(*_: object, **__: object) -> str:
        if issubclass(kind, errors.HfHubHTTPError):
            raise kind("no", response=Response())  # type: ignore[call-arg]
        raise kind("no")

    return fail


def test_only_safe_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "models--owner--model" / "snapshots" / ("0" * 40))
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(repo=repo, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    checkpoint = open_checkpoint("owner/model", revision="v2")
    assert repr(checkpoint).startswith("<Checkpoint 'model': llama, 21 tensors, ")
    assert checkpoint.name == "model"
    assert checkpoint.config.layers == 2
    assert (asked["repo"], asked["revision"]) == ("owner/model", "v2")
    from huggingface_hub.utils import filter_repo_objects

    offered = ["model.safetensors", "pytorch_model.bin", "modeling_x.py", "config.json", "consolidated.safetensors"]
    offered += ["original/consolidated.00.pth", "tokenizer.json", "tokenizer.model", "onnx/model.onnx", "x.pt"]
    kept = filter_repo_objects(
        offered, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert set(kept) == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"}


def test_all_parts_of_a_split_gguf_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def one(repo: str, file: str, **_: Any) -> str:
        fetched.append(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    path = hub.download("owner/model:q/m-00002-of-00003.gguf")
    assert path == tmp_path / "q/m-00002-of-00003.gguf"
    assert set(fetched) == {f"q/m-{n:05d}-of-00003.gguf" for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (errors.GatedRepoError, "accept its terms"),
        (errors.RepositoryNotFoundError, "no such model"),
        (errors.RevisionNotFoundError, "check revision="),
        (errors.LocalEntryNotFoundError, "no network"),
        (OSError, "cannot be fetched"),
    ],
)
def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch, kind: type[Exception], expected: str) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raiser(kind))
    with pytest.raises(FileError, match=expected):
        hub.download("owner/model", "v9")


def test_a_missing_file_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raiser(errors.EntryNotFoundError))
    with pytest.raises(FileError, match="after the colon"):
        hub.download("owner/model:nothing.gguf")


PROGRAM = """
import logging, os, sys
from bitsmith.models import hub
logging.basicConfig(format="%(message)s")
progress = []
path = hub.download(sys.argv[1], report=progress.append)
folder = path.parent if path.is_file() else path
print(path.name, sorted(p.name for p in folder.iterdir()))
print([(p.stage, p.total, p.unit) for p in progress[-1:]], max(p.done for p in progress))
"""


def fetch(env: dict[str, str], name: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", PROGRAM, name]
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=120, check=False)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    with serving(tmp_path) as (handler, env):
        yield handler.folder, env


def test_gguf_repositories(served: tuple[Path, dict[str, str]]) -> None:
    folder, env = served
    sizes = {"m-Q2_K.gguf": 2000, "m-Q8_0.gguf": 8000, "mmproj-m-f16.gguf": 5, "README.md": 9}
    sizes |= {f"BF16/m-BF16-0000{n}-of-00002.gguf": 9000 for n in (1, 2)}
    for name, size in sizes.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    default = fetch(env, "owner/name")
    assert default.stdout.splitlines() == ["m-Q8_0.gguf ['m-Q8_0.gguf']", "[('download', 8000, 'B')] 8000"]
    assert default.stderr.strip() == "owner/name holds several GGUF files: taking Q8_0. Others: BF16, Q2_K"
    split = fetch(env, "hf.co/owner/name:bf16")
    assert split.stdout.splitlines() == [
        "m-BF16-00001-of-00002.gguf ['m-BF16-00001-of-00002.gguf', 'm-BF16-00002-of-00002.gguf']",
        "[('download', 18000, 'B')] 18000",
    ]
    assert split.stderr == ""
    wrong = fetch(env, "owner/name:Q4_K_M")
    assert "owner/name has no quantization 'Q4_K_M'; it has BF16, Q2_K, Q8_0." in wrong.stderr
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert fetch(offline, "owner/name:q8_0").stdout.startswith("m-Q8_0.gguf")
    assert "has no quantization 'Q2_K'; it has BF16, Q8_0" in fetch(offline, "owner/name:Q2_K").stderr
    assert "no GGUF file" in fetch({**offline, "HF_HOME": str(folder)}, "owner/name:Q2_K").stderr


def test_repositories_with_both_are_folders_unless_a_tag_is_given(served: tuple[Path, dict[str, str]]) -> None:
    folder, env = served
    for name in ("model.safetensors", "config.json", "m-Q8_0.gguf", "pytorch_model.bin"):
        (folder / name).write_bytes(bytes(100))
    both = fetch(env, "owner/name")
    assert both.stdout.splitlines()[0].endswith("['config.json', 'model.safetensors']")
    assert both.stdout.splitlines()[1] == "[('download', 200, 'B')] 200"
    assert fetch(env, "owner/name:q8_0").stdout.startswith("m-Q8_0.gguf")
    (folder / "m-Q8_0.gguf").unlink()
    assert "has no GGUF files, only safetensors; leave :q8_0 away" in fetch(env, "owner/name:q8_0").stderr
    (folder / "model.safetensors").unlink()
    assert "only pytorch_model.bin, which is pickled" in fetch(env, "owner/name").stderr
