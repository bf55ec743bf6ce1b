"""`publish`: uploads a folder of finished files to the Hugging Face hub, with a card and the receipts beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.containers.model_files import open_regular
from bitsmith.errors import FileError, UsageError, quoted
from bitsmith.handover.handing import HASHES, RECEIPT, sha256_of
from bitsmith.models.hub import explained
from bitsmith.models.hub_name import parse_hub_name
from bitsmith.system.options import REQUIRED, check_words, option, with_signature

CARD = "README.md"
_SECRETS = (  # patterns of names that are never uploaded, in lower case
    "id_*",
    "*.pem",
    "*.key",
    "*token*",
    "*secret*",
    "*credential*",
    "*password*",
    ".env*",
    "*.env",
    ".netrc",
)
_NO_SECRETS = ("tokenizer*", "*added_tokens*", "special_tokens_map*")  # "token" in these is a tokenizer's
_WEIGHTS = (".gguf", ".safetensors")
_LINE = "Made with bitsmith."


@dataclass(frozen=True)
class PublishConfig:
    """How a folder is published."""

    repo: str = option(REQUIRED, group="Options", metavar="OWNER/NAME", help="The model's name on the hub.")
    public: bool = option(False, group="Options", help="Let everybody see a new model; default: only you.")
    dry_run: bool = option(False, group="Options", help="Show every file with its size; upload nothing.")
    message: str = option(
        "Upload with bitsmith", group="Options", metavar="TEXT", help="The message of the commit on the hub."
    )


class PublishWords(TypedDict, total=False):
    """The keywords of `publish`."""

    repo: Required[str]
    public: bool
    dry_run: bool
    message: str


@dataclass(frozen=True)
class Published:
    """What was uploaded, or would be.

    files: bytes of every file, by its name on the hub
    card: where the card comes from: "compare" or "the folder" for a file that is there, "made" for a plain one
    url: the commit's address; "" after a dry run
    """

    repo: str
    private: bool
    files: Mapping[str, int]
    card: str
    notes: tuple[str, ...]
    url: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "files": dict(self.files), "notes": list(self.notes), "size": self.size}


def publish(
    folder: str | Path, *, announce: Callable[[Published], None] | None = None, **words: Unpack[PublishWords]
) -> Published:
    """Upload a folder to the hub. The other keywords are the options of `bitsmith publish`.

    announce: called with what will be uploaded, before that
    A new model is private unless `public`. The token is that of `hf auth login`. Raises UsageError for a wrong name or
    a folder without weights, FileError for a file that must not leave the machine and for what the hub refuses.
    """
    check_words("publish", PublishConfig, words, further=("announce",))
    return run_publish(folder, PublishConfig(**words), announce=announce)


with_signature(publish, PublishConfig)


def run_publish(
    folder: str | Path, config: PublishConfig, *, announce: Callable[[Published], None] | None = None
) -> Published:
    """The same as `publish`, with its options as one value."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder that holds the files to publish.")
    if not _is_repo(config.repo):
        raise UsageError(f"--repo={quoted(config.repo)}: expected OWNER/NAME.")
    paths = dict(_files(root))
    if not any(name.endswith(_WEIGHTS) for name in paths):
        raise UsageError(f"{root} holds no .gguf or .safetensors file; there is nothing to publish.")
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    card = None if CARD in paths else _plain_card(root, sizes).encode()
    if card is not None:
        sizes = {CARD: len(card), **sizes}
    origin = "made" if card is not None else "compare" if _by_compare(paths[CARD]) else "the folder"
    planned = Published(config.repo, not config.public, sizes, origin, tuple(_notes(paths, origin)))
    if announce is not None:
        announce(planned)
    return planned if config.dry_run else _upload(planned, paths, card, config)


def _is_repo(text: str) -> bool:
    """Whether a text is OWNER/NAME, and nothing more."""
    try:
        return parse_hub_name(text).repo == text
    except UsageError:
        return False


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file by its name on the hub. Raises FileError for links out of the folder, and names of secrets."""
    base = Path(os.path.realpath(root))
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() or any(part.startswith(".") and part != ".gitattributes" for part in name.split("/")):
            continue
        if any(_may_be_secret(part) for part in name.split("/")):
            raise FileError(f"{path}: a file of this name may hold a secret; move it out of the folder.")
        if not Path(os.path.realpath(path)).is_relative_to(base):
            raise FileError(f"{path} is a link out of the folder; copy the file there, or remove the link.")
        os.close(open_regular(path))
        yield name, path


def _may_be_secret(name: str) -> bool:
    """Whether a file or folder of this name may hold a secret."""
    lower = name.lower()
    known = any(fnmatchcase(lower, pattern) for pattern in _NO_SECRETS)
    return any(fnmatchcase(lower, pattern) for pattern in _SECRETS if not (known and pattern == "*token*"))


def _by_compare(path: Path) -> bool:
    return "bitsmith compare" in path.read_text(encoding="utf-8", errors="replace")


def _notes(paths: Mapping[str, Path], origin: str) -> Iterator[str]:
    if origin == "made":
        yield "there is no card, so a plain one is made; `bitsmith compare --card` makes one with what each file lost"
    receipts = [name for name in paths if name.rpartition("/")[2] == RECEIPT]
    if not receipts:
        yield "there is no receipt; `bitsmith handover --check` proves that a runtime runs the files"
    for name in receipts:
        yield from _notes_on_receipt(name, paths)


def _notes_on_receipt(name: str, paths: Mapping[str, Path]) -> Iterator[str]:
    """What a receipt does not prove of the files that are published."""
    try:
        receipt = json.loads(paths[name].read_text(encoding="utf-8"))
    except ValueError:
        receipt = None
    if not isinstance(receipt, dict):
        yield f"{name} is no receipt of `bitsmith handover`"
        return
    if receipt.get("good") is False:
        yield f"{name} says that a check FAILED"
    elif receipt.get("good") is not True:
        yield f"{name} says that nothing was checked; make it again with `bitsmith handover --check`"
    elif receipt.get("weights_compared_with") == []:
        yield f"{name} says that the weights were not checked against anything; make it again with `--original`"
    hashes = receipt.get(HASHES)
    if not isinstance(hashes, dict) or not hashes:
        yield f"{name} has no hashes of the model's files, so it may be of other files"
        return
    for file, recorded in hashes.items():
        found = [path for other, path in paths.items() if other.rpartition("/")[2] == file]
        if not found:
            yield f"{name} is of a model with the file {file}, which is not here"
        elif all(sha256_of(path) != recorded for path in found):
            yield f"{name} is of another {file} than the one here; run `bitsmith handover --check` again"


def _is_mlx(root: Path) -> bool:
    """Whether a folder is in MLX's layout: only that has an entry "quantization"."""
    path = root / CONFIG
    return path.is_file() and "quantization" in read_object(path)


def _plain_card(root: Path, sizes: Mapping[str, int]) -> str:
    """A card that says what the files are, and no more than is known."""
    rows = [f"| {name} | {size:,} |" for name, size in sizes.items() if name.endswith(_WEIGHTS)]
    library = "gguf" if any(name.endswith(".gguf") for name in sizes) else "mlx" if _is_mlx(root) else "transformers"
    front = ["---", f"library_name: {library}", "pipeline_tag: text-generation", "tags:", "- quantized", "---"]
    title = f"# {root.resolve().name}"
    table = ["| file | bytes |", "|---|---|", *rows]
    return "\n".join([*front, "", title, "", _LINE, "", *table, ""])


def _upload(planned: Published, paths: Mapping[str, Path], card: bytes | None, config: PublishConfig) -> Published:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    operations = [CommitOperationAdd(name, str(path)) for name, path in paths.items()]
    if card is not None:
        operations.insert(0, CommitOperationAdd(CARD, card))
    try:
        with explained(config.repo, None, None):
            api.create_repo(config.repo, repo_type="model", private=planned.private, exist_ok=True)
            done = api.create_commit(config.repo, operations, commit_message=config.message)
    except FileError as error:
        why = error.__cause__
        if isinstance(why, HfHubHTTPError | LocalTokenNotFoundError | ValueError):
            said = f"the hub did not take the files ({why}); check the name, and log in with `hf auth login`"
        else:
            said = f"nothing was uploaded, since the hub cannot be reached ({why}); connect to the network"
        raise FileError(f"{config.repo}: {said}.") from why
    return Published(**{**vars(planned), "url": str(done.commit_url)})
