"""What `compare` keeps in the cache folder: files that it made, the original's predictions. Listed and removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsmith.comparison.candidates import RECORD
from bitsmith.errors import FileError
from bitsmith.system.folders import cache_folder


@dataclass(frozen=True)
class Cached:
    """One file or folder of the cache.

    kind: "made", "predictions" or "other"
    name: "q4_k_m of SmolLM2-135M"; for predictions what they are of, where that is known
    size: bytes on the disk
    used: when it was last written, seconds since 1970
    """

    kind: str
    name: str
    size: int
    used: float
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path)}


def compare_folder() -> Path:
    """Where `compare` keeps what it can make again. It need not exist."""
    return cache_folder() / "compare"


def list_cached() -> list[Cached]:
    """Everything in the cache of `compare`, the largest first. Raises FileError if it cannot be read."""
    folder = compare_folder()
    try:
        inner = [*_inside(folder / "made"), *_inside(folder / "logits")]
        rest = [path for path in _inside(folder) if path.name not in ("made", "logits")]
        found = [_cached(path) for path in (*inner, *rest)]
    except OSError as error:
        raise FileError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error
    return sorted(found, key=lambda each: -each.size)


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _cached(path: Path) -> Cached:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    size, used = sum(each.stat().st_size for each in files), path.stat().st_mtime
    if path.parent.name == "made":
        return Cached("made", _made_name(path), size, used, path)
    return Cached("predictions" if path.suffix == ".logits" else "other", path.name, size, used, path)


def _made_name(folder: Path) -> str:
    """What a made file is, from the record beside it."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        target, original = str(record["target"]).removeprefix("gguf/"), record.get("original", "")
        method = record.get("method", "")
        return " ".join([target, *([f"by {method}"] if method else []), *([f"of {original}"] if original else [])])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder.name}, not finished"


def clear(found: Sequence[Cached]) -> int:
    """Remove these. Returns the bytes that are free now. Raises FileError for one that cannot be removed."""
    freed = 0
    for each in found:
        try:
            with suppress(FileNotFoundError):  # another run was faster
                if each.path.is_dir() and not each.path.is_symlink():
                    shutil.rmtree(each.path)
                else:
                    each.path.unlink()
        except OSError as error:
            raise FileError(f"{each.path} cannot be removed ({error.strerror}); check its permissions.") from error
        freed += each.size
    return freed
