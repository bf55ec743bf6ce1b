"""`publish` with a hub that only notes what it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import bitsmith
from bitsmith.errors import FileError, UsageError
from tests.cli.command import Command


class FakeApi:
    asked: dict[str, Any]

    def __init__(self) -> None:
        FakeApi.asked = {}

    def create_repo(self, repo: str, **words: Any) -> None:
        FakeApi.asked["repo"] = (repo, words)

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> Any:
        FakeApi.asked["files"] = [each.path_in_repo for each in operations]
        return type("Done", (), {"commit_url": f"hub/{repo}/commit/1"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    FakeApi.asked = {}
    made = tmp_path / "model"
    made.mkdir()
    bitsmith.quantize("reference", to="q4_0", out=made / "ref.gguf")
    return made


def test_a_folder_is_private_and_gets_a_card(folder: Path) -> None:
    (folder / "receipt.json").write_text(json.dumps({"good": False}))
    (folder / ".secret").write_text("x")
    found = bitsmith.publish(folder, repo="me/ref")
    assert FakeApi.asked["repo"] == ("me/ref", {"repo_type": "model", "private": True, "exist_ok": True})
    assert FakeApi.asked["files"] == ["README.md", "receipt.json", "ref.gguf"]
    assert found.url == "hub/me/ref/commit/1"
    assert found.card == "made"
    assert any("a check FAILED" in note for note in found.notes)


def test_a_receipt_of_other_files_or_without_a_check_is_noted(tmp_path: Path) -> None:
    made = bitsmith.convert("reference", to="bf16", out=tmp_path / "floats").out
    bitsmith.hand_over(made, runtime="vllm", out=made / "vllm")
    path = made / "vllm" / "receipt.json"
    receipt = json.loads(path.read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(receipt["model_files"])

    def notes() -> list[str]:
        found = bitsmith.publish(made, repo="me/ref", dry_run=True).notes
        return [note for note in found if note.startswith("vllm/receipt.json")]

    assert len(notes()) == 1
    assert "nothing was checked" in notes()[0]
    path.write_text(json.dumps({**receipt, "good": True}))
    assert "the weights were not checked against anything" in notes()[0]
    path.write_text(json.dumps({**receipt, "good": True, "weights_compared_with": ["manifest"]}))
    assert notes() == []
    (made / "config.json").write_text((made / "config.json").read_text() + "\n")
    assert len(notes()) == 1
    assert "of another config.json" in notes()[0]
    path.write_text(json.dumps({"good": True}))
    assert "no hashes" in notes()[0]
    path.write_text("[]")
    assert "is no receipt" in notes()[0]


def test_a_dry_run_shows_every_file_and_asks_nothing(folder: Path, bitsmith_command: Command) -> None:
    (folder / "README.md").write_text("made by `bitsmith compare`")
    done = bitsmith_command("publish", str(folder), "--repo", "me/ref", "--dry-run", "--public")
    assert done.code == 0
    assert "ref.gguf" in done.out
    assert "(public)" in done.out
    assert "nothing was uploaded" in done.out
    assert FakeApi.asked == {}


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--repo|OWNER"):
        bitsmith.publish(folder, repo="me/ref:Q4")
    with pytest.raises(UsageError, match=r'^repo="a/b/c": expected OWNER/NAME\.$'):
        bitsmith.publish(folder, repo="a/b/c")
    with pytest.raises(UsageError, match="not a folder"):
        bitsmith.publish(folder / "ref.gguf", repo="me/ref")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="nothing to publish"):
        bitsmith.publish(empty, repo="me/ref")
    (tmp_path / "outside").write_text("x")
    (folder / "link.json").symlink_to(tmp_path / "outside")
    with pytest.raises(FileError, match="link out of the folder"):
        bitsmith.publish(folder, repo="me/ref")
    (folder / "link.json").unlink()


@pytest.mark.parametrize(
    "name", ["token", "token.txt", "id_rsa", "secrets.json", "My_Secret/x.txt", "a.pem", "b.key", "hf_tokenizer-token"]
)
def test_names_of_secrets_are_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(FileError, match="may hold a secret"):
        bitsmith.publish(folder, repo="me/ref")
    assert FakeApi.asked == {}


def test_files_of_a_tokenizer_are_no_secrets(folder: Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"]
    for name in names:
        (folder / name).write_text("{}")
    assert set(names) < set(bitsmith.publish(folder, repo="me/ref", dry_run=True).files)


def test_without_the_hub_nothing_is_said_to_be_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: FakeApi, repo: str, **words: Any) -> None:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(FakeApi, "create_repo", offline)
    with pytest.raises(FileError, match=r"nothing was uploaded, since the hub cannot be reached") as found:
        bitsmith.publish(folder, repo="me/ref")
    assert "fetched" not in str(found.value)

    def refused(self: FakeApi, repo: str, **words: Any) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("no token")

    monkeypatch.setattr(FakeApi, "create_repo", refused)
    with pytest.raises(FileError, match=r"did not take the files \(no token\).*hf auth login"):
        bitsmith.publish(folder, repo="me/ref")


def test_the_card_of_an_mlx_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = []

    class Keeping(FakeApi):
        def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> Any:
            cards.extend(each.path_or_fileobj for each in operations if each.path_in_repo == "README.md")
            return super().create_commit(repo, operations, commit_message=commit_message)

    monkeypatch.setattr(huggingface_hub, "HfApi", Keeping)
    for to, library in (("mlx/4bit", "mlx"), ("compressed/w4a16", "transformers")):
        made = bitsmith.quantize("reference", to=to, out=tmp_path / library).out
        bitsmith.publish(made, repo="me/ref")
        assert f"library_name: {library}\n".encode() in cards.pop()
