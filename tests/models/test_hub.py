"""The hub, without a network: which files are asked for, and what each refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import errors

from bitsmith.errors import FileError
from bitsmith.models import hub
from bitsmith.models.checkpoint import open_checkpoint
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("owner/name:file.gguf", True),
        ("owner/name:sub/file-00001-of-00002.gguf", True),
        ("owner/name:file.bin", False),
        ("name", False),
        ("./owner/name", False),
        ("a/b/c", False),
    ],
)
def test_what_is_an_id(name: str, expected: bool) -> None:
    assert hub.looks_like_id(name) is expected


def test_only_safe_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "cached")
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(repo=repo, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    checkpoint = open_checkpoint("owner/model", revision="v2")
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
