"""Fetches config.json and headers of a hub model into a folder. Its weight files are sparse: they hold no weights.

The folder opens like any model: names, types, shapes and file sizes are right. Only some kilobytes of each weight
file are fetched.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitsmith.containers.hf_folder import CONFIG, TOKENIZER_FILES, read_object
from bitsmith.containers.safetensors_layout import INDEX_NAME
from bitsmith.errors import FileError
from bitsmith.models import hub
from bitsmith.models.gguf_choice import choose, models_among
from bitsmith.models.hub_name import parse_hub_name

_FIRST = 100_000  # bytes: most headers are shorter
_LARGEST = 100_000_000  # bytes; the limit in containers/safetensors_header.py
_GGUF_STEPS = (1 << 20, 16 << 20, 128 << 20)  # bytes; a GGUF header holds the tokenizer and can be long


def fetch_headers(model: str, scratch: Path, *, revision: str | None, tokenizer: bool) -> Path:
    """Fetch the headers of a hub model (see `hub_name.parse_hub_name`) into `scratch`. Returns the folder or file.

    tokenizer: fetch the tokenizer files too
    Raises FileError if the hub has no such model or refuses access, hub.UnreachableError if it cannot be reached.
    """
    found = hub.locate(model, revision)
    repo, file, revision = found.repo, found.file, found.revision
    folder = scratch / repo
    folder.mkdir(parents=True)
    with hub.explained(repo, file, revision), _quiet():
        if file is not None:
            _fetch_gguf(repo, file, revision, folder)
            return folder / Path(file).name
        for path in _small_files(repo, revision, tokenizer):
            shutil.copyfile(path, folder / path.name)
        for shard in _shards(folder):
            _fetch_safetensors(repo, shard, revision, folder / shard)
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns off the progress bars of huggingface_hub. The files are too small for them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def cached(model: str, revision: str | None) -> Path | None:
    """The folder or file of a model in the hub's cache, or None. The weights may be missing from it."""
    name = parse_hub_name(model)
    folder = hub.cached_snapshot(name.repo, revision or name.revision)
    if folder is None:
        return None
    file = name.file
    if file is None and (name.tag is not None or not (folder / CONFIG).is_file()):
        ggufs = models_among({path.relative_to(folder).as_posix(): 0 for path in folder.rglob("*.gguf")})
        file = choose(ggufs, name.tag, where=name.repo).first if ggufs else None
    if file is not None:
        return folder / file if (folder / file).is_file() else None
    return folder if (folder / CONFIG).is_file() else None


def holds_weights(folder: Path) -> bool:
    """Whether the folder has every weight file that its index names."""
    return all((folder / name).is_file() for name in _shards(folder))


def _small_files(repo: str, revision: str | None, tokenizer: bool) -> list[Path]:
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, INDEX_NAME, *(TOKENIZER_FILES if tokenizer else ())]
    found = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    wanted = [CONFIG, INDEX_NAME]
    files = [found / name for name in wanted if (found / name).is_file()]
    if not files or files[0].name != CONFIG:
        raise FileError(f"{repo} has no {CONFIG}, so its weights cannot be understood; take another repository.")
    if tokenizer:
        files += [path for pattern in TOKENIZER_FILES if "/" not in pattern for path in sorted(found.glob(pattern))]
    return files


def _shards(folder: Path) -> list[str]:
    """The names of the weight files. Raises FileError for a name outside the folder."""
    index = folder / INDEX_NAME
    if not index.is_file():
        return ["model.safetensors"]
    try:
        table = read_object(index)["weight_map"]
        names = sorted(set(table.values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{index} is not an index of safetensors files ({error!r}).") from None
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise FileError(f"{index} names files outside the model's folder.")
    return names


def _fetch_safetensors(repo: str, name: str, revision: str | None, target: Path) -> None:
    head, size = _read(repo, name, revision, _FIRST)
    length = struct.unpack("<Q", head[:8])[0] + 8 if len(head) >= 8 else 0
    if not 8 < length <= _LARGEST:
        raise FileError(f"{repo}: {name} is not a safetensors file; its header would have {length:,} bytes.")
    if length > len(head):
        head, size = _read(repo, name, revision, length)
    _write_hollow(target, head[:length], size)


def _fetch_gguf(repo: str, name: str, revision: str | None, folder: Path) -> None:
    """Fetch the header of a file, or of all parts of a split file.

    A GGUF file does not say how long its header is, so more is fetched until it can be read.
    """
    from bitsmith.containers.gguf.reader import GgufSource

    for step in _GGUF_STEPS:
        whole = True
        for part in hub.split_names(name) or [name]:
            head, size = _read(repo, part, revision, step)
            _write_hollow(folder / Path(part).name, head, size)
            whole &= len(head) == size
        try:
            GgufSource(folder / Path(name).name).close()
            return
        except FileError:
            if step == _GGUF_STEPS[-1] or whole:
                raise


def _read(repo: str, name: str, revision: str | None, count: int) -> tuple[bytes, int]:
    """The first `count` bytes of a file (fewer if it is shorter), and the size of the whole file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo, name, revision=revision)
    size = get_hf_file_metadata(url).size
    if size is None:
        raise FileError(f"{repo}: the hub does not say how large {name} is.")
    headers = {**build_hf_headers(), "Range": f"bytes=0-{min(count, size) - 1}"}
    answer = get_session().get(url, headers=headers, timeout=30)
    hf_raise_for_status(answer)
    return answer.content[:count], size


def _write_hollow(target: Path, head: bytes, size: int) -> None:
    with target.open("wb") as file:
        file.write(head)
        file.truncate(size)
