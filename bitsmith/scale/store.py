"""Store: the files of a graph's results, in a folder or in any storage that fsspec knows (memory://, s3://, ...).

Each file ends with its hash (`bitsmith.work.state`). It is there whole or not at all; what is torn, damaged or lost is
noticed when it is read.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from bitsmith.errors import FileError, UsageError
from bitsmith.scale.task import scratch_name
from bitsmith.work.state import Arrays, DamagedError, State, write_state

_SUFFIX = ".state"
_POLL_HERE, _POLL_THERE = 0.05, 2.0  # seconds


class LostError(Exception):
    """A file of a store is missing or damaged. key: its name"""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key} {why}")
        self.key, self.why = key, why


class Store(Protocol):
    """Where results lie, by key.

    url: under which workers open it
    poll_seconds: how often to look whether something new is there
    """

    url: str
    poll_seconds: float

    def write(self, key: str, values: Mapping[str, Any], arrays: Arrays) -> None:
        """Keep a result. Raises FileError if that is impossible."""
        ...

    def read(self, key: str) -> State:
        """A result, whose arrays are checked when they are read. Raises LostError."""
        ...

    def drop(self, key: str) -> None:
        """Remove a result, if it is there."""
        ...

    def present(self) -> set[str]:
        """Keys of all results that seem to be there."""
        ...

    def remove(self) -> None:
        """Remove everything."""
        ...


def open_store(url: str | Path) -> Store:
    """The store at a path or an address. Raises UsageError for an address that fsspec cannot open."""
    text = str(url)
    if "://" not in text or text.startswith("file://"):
        return FolderStore(Path(text.removeprefix("file://")).expanduser().absolute())
    return RemoteStore(text)


class FolderStore:
    """A store in a folder."""

    poll_seconds = _POLL_HERE

    def __init__(self, folder: Path) -> None:
        """Make the folder, if it is missing. Raises FileError."""
        self.folder, self.url = folder, str(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.url, error) from error

    def write(self, key: str, values: Mapping[str, Any], arrays: Arrays) -> None:
        """See `Store`."""
        path = self._path(key)
        temporary = scratch_name(path)
        try:
            write_state(temporary, values, arrays, durable=False)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _cannot_write(self.url, error) from error

    def read(self, key: str) -> State:
        """See `Store`."""
        try:
            return State(self._path(key), lazily=True)
        except FileNotFoundError:
            raise LostError(key, "is not there") from None
        except (DamagedError, FileError, OSError) as error:
            raise LostError(key, f"is damaged ({error})") from error

    def drop(self, key: str) -> None:
        """See `Store`."""
        with suppress(OSError):
            self._path(key).unlink()

    def present(self) -> set[str]:
        """See `Store`."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set()
        return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}

    def remove(self) -> None:
        """See `Store`."""
        import shutil

        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


class RemoteStore:
    """A store in a storage of fsspec. Files pass through temporary files, so that no result must fit in memory."""

    def __init__(self, url: str) -> None:
        """Raises UsageError if fsspec, or its plug-in for this kind of address, is not installed."""
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UsageError(
                f"--work={url}: {error}. Install what this kind of storage needs (s3fs for s3://), here and where "
                "workers run."
            ) from error
        except ValueError as error:
            raise UsageError(f"--work={url}: {error}; give a folder, or an address that fsspec knows.") from error
        self.url = url
        self.poll_seconds = _POLL_HERE if url.startswith("memory://") else _POLL_THERE

    def write(self, key: str, values: Mapping[str, Any], arrays: Arrays) -> None:
        """See `Store`."""
        with tempfile.TemporaryDirectory(prefix="bitsmith-") as folder:
            path = Path(folder) / f"{key}{_SUFFIX}"
            try:
                write_state(path, values, arrays, durable=False)
                self._files.makedirs(self._root, exist_ok=True)
                self._files.put_file(str(path), self._path(key))
            except OSError as error:
                raise _cannot_write(self.url, error) from error

    def read(self, key: str) -> State:
        """See `Store`."""
        with tempfile.TemporaryDirectory(prefix="bitsmith-") as folder:
            path = Path(folder) / f"{key}{_SUFFIX}"
            try:
                self._files.get_file(self._path(key), str(path))
                return State(path, lazily=True)  # stays readable after the file has lost its name
            except FileNotFoundError:
                raise LostError(key, "is not there") from None
            except (DamagedError, FileError, OSError) as error:
                raise LostError(key, f"is damaged ({error})") from error

    def drop(self, key: str) -> None:
        """See `Store`."""
        with suppress(OSError):
            self._files.rm_file(self._path(key))

    def present(self) -> set[str]:
        """See `Store`."""
        self._files.invalidate_cache(self._root)
        try:
            names = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return set()
        return {name.rsplit("/", 1)[-1].removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}

    def remove(self) -> None:
        """See `Store`."""
        with suppress(OSError):
            self._files.rm(self._root, recursive=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}{_SUFFIX}"


def wait_a_moment(store: Store) -> None:
    """Wait until it makes sense to look at the store again."""
    time.sleep(store.poll_seconds)


def _cannot_write(url: str, error: OSError) -> FileError:
    return FileError(
        f"{url}: results of tasks cannot be written there ({error.strerror or error}); check space and permissions."
    )
