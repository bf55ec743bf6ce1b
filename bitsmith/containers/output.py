"""Writes files that either exist complete under their final name or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from bitsmith.containers.destination import check_destination
from bitsmith.containers.layout import FileLayout, Region
from bitsmith.errors import FileError
from bitsmith.system.progress import Progress, Report, silent

_READ_BACK_BYTES = 1 << 20


class OutputFiles:
    """The files of one output, written under temporary names and renamed together at the end.

    `target` is a file (its shards lie beside it) or, with `as_folder`, a folder that holds every file.
    Use it as a context manager: leaving it without `commit` removes everything that was written.
    """

    def __init__(
        self,
        target: Path,
        layouts: Sequence[FileLayout],
        *,
        extras: Mapping[str, bytes] | None = None,
        as_folder: bool = False,
        force: bool = False,
    ) -> None:
        """Create the temporary files with their provisional headers.

        extras: content of small files by name; only with `as_folder`
        Raises UsageError if the target exists and `force` is not given, FileError if it cannot be written.
        """
        self.target = target
        self.layouts = tuple(layouts)
        self.extras = dict(extras or {})
        self.as_folder = as_folder
        self._handles: dict[str, int] = {}
        self._cursor: dict[tuple[str, str], int] = {}
        self._hashes: dict[tuple[str, str], hashlib._Hash] = {}
        self._where: dict[tuple[str, str], tuple[str, Region]] = {
            (region.tensor, region.part): (layout.filename, region)
            for layout in self.layouts
            for region in layout.regions
        }
        self._committed = False
        self._work = target.parent / f".{target.name}.{os.getpid()}.partial"
        self._made: list[Path] = []
        # runs at the latest when the process ends: an interrupt may come before a `with` holds this object
        self._remove_made = weakref.finalize(self, _remove, self._made, os.getpid())
        try:
            check_destination(target, layouts, extras=self.extras, as_folder=as_folder, force=force)
            self._remove_stale()
            self._create()
        except OSError as error:
            self.abort()
            raise self._cannot_write(error) from error
        except BaseException:  # such as Ctrl-C, before a caller can call abort
            self.abort()
            raise

    # -- writing

    def write(self, tensor: str, part: str, data: memoryview) -> None:
        """Append bytes to one part of one tensor. Raises FileError if they cannot be written."""
        filename, region = self._where[tensor, part]
        key = (tensor, part)
        cursor = self._cursor.get(key, 0)
        if cursor + len(data) > region.nbytes:
            raise ValueError(f"{tensor}.{part}: {cursor + len(data)} bytes for a region of {region.nbytes}")
        try:
            _write_all(self._handles[filename], data, region.offset + cursor)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._hashes.setdefault(key, hashlib.sha256()).update(data)
        self._cursor[key] = cursor + len(data)

    def commit(self, final: Sequence[FileLayout], report: Report = silent, *, threads: int = 1) -> None:
        """Write the final headers, flush to disk, read everything back, and rename.

        final: the same layouts with their final headers and the same offsets
        threads: number of threads that hash the data read back
        Reports progress as the stage "verify".
        Raises FileError if the data read back differs from the data written.
        """
        for (tensor, part), (_, region) in self._where.items():
            if self._cursor.get((tensor, part), 0) != region.nbytes:
                raise ValueError(f"{tensor}.{part} was not written whole")
        report(Progress("verify", 0, sum(layout.size for layout in final), "B"))
        try:
            for meant, layout in zip(self.layouts, final, strict=True):
                if (len(meant.header), meant.regions, meant.size) != (len(layout.header), layout.regions, layout.size):
                    raise ValueError(f"{layout.filename}: the final header moved the tensors")
                handle = self._handles[layout.filename]
                _write_all(handle, memoryview(layout.header), 0)
                os.fsync(handle)
            self._read_back(final, report, threads)
            self._rename()
        except OSError as error:
            raise self._cannot_write(error) from error
        self._committed = True

    def abort(self) -> None:
        """Close and remove everything that does not have its final name yet."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}
        if self._committed:
            self._remove_made.detach()
        else:
            self._remove_made()

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    # -- names

    def final_paths(self) -> list[Path]:
        """Paths of the files after `commit`."""
        folder = self.target if self.as_folder else self.target.parent
        return [folder / name for name in [layout.filename for layout in self.layouts] + list(self.extras)]

    def _temporary(self, filename: str) -> Path:
        if self.as_folder:
            return self._work / filename
        return self.target.parent / f".{filename}.{os.getpid()}.partial"

    # -- before

    def _remove_stale(self) -> None:
        """Remove temporary files of the same outputs that a killed run left behind."""
        names = {self.target.name, *(layout.filename for layout in self.layouts)}
        pattern = re.compile(r"\.(" + "|".join(map(re.escape, sorted(names))) + r")\.(\d+)\.partial")
        for path in self.target.parent.iterdir():
            match = pattern.fullmatch(path.name)
            if match and not _is_running(int(match[2])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _create(self) -> None:
        if self.as_folder:
            self._make(self._work, self._work.mkdir)
        for layout in self.layouts:
            path = self._temporary(layout.filename)

            def create(path: Path = path, name: str = layout.filename) -> None:
                self._handles[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)

            self._make(path, create)
            handle = self._handles[layout.filename]
            os.truncate(handle, layout.size)
            _write_all(handle, memoryview(layout.header), 0)
        for name, data in self.extras.items():
            path = self._temporary(name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            _sync(path)

    def _make(self, path: Path, create: Callable[[], object]) -> None:
        """Create a file or folder that is to be removed unless it gets its final name; never one that is there."""
        self._made.append(path)
        try:
            create()
        except OSError:  # nothing was made
            self._made.remove(path)
            raise

    # -- after

    def _read_back(self, final: Sequence[FileLayout], report: Report, threads: int) -> None:
        total = sum(layout.size for layout in final)
        done = 0
        for layout in final:
            handle = self._handles[layout.filename]
            if hasattr(os, "posix_fadvise"):  # from the disk, not from the cache
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            if os.pread(handle, len(layout.header), 0) != layout.header or os.fstat(handle).st_size != layout.size:
                raise FileError(
                    f"{layout.filename}: the header read back differs from the header written; check the disk."
                )
            for region, found in _hash_regions(handle, layout.regions, threads):
                if found != self.sha256(region.tensor, region.part):
                    raise FileError(
                        f"{layout.filename}: tensor {region.tensor} read back with hash {found}, but "
                        f"{self.sha256(region.tensor, region.part)} was written; check the disk."
                    )
                done += region.nbytes
                report(Progress("verify", done, total, "B", region.tensor))
        report(Progress("verify", total, total, "B"))

    def sha256(self, tensor: str, part: str) -> str:
        """Hash of the bytes written to one part of one tensor, in hexadecimal."""
        return self._hashes.setdefault((tensor, part), hashlib.sha256()).hexdigest()

    def _rename(self) -> None:
        parent = self.target.parent
        if not self.as_folder:
            for layout in reversed(self.layouts):  # the first shard last, because loaders start from it
                os.replace(self._temporary(layout.filename), parent / layout.filename)
        else:
            _sync(self._work)
            old = parent / f".{self.target.name}.{os.getpid()}.old"
            if self.target.exists():
                os.rename(self.target, old)
            try:
                os.rename(self._work, self.target)
            except OSError:
                if old.exists():
                    os.rename(old, self.target)
                raise
            if old.exists():
                shutil.rmtree(old)
        _sync(parent)

    def _cannot_write(self, error: OSError) -> FileError:
        return FileError(
            f"{self.target}: cannot be written ({error.strerror or error}); nothing was left behind. "
            "Check space and permissions, or choose another --out."
        )


def _remove(made: list[Path], process: int) -> None:
    """Remove temporary files and folders; not in a child that was forked later."""
    if os.getpid() != process:
        return
    for path in made:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    data = data.cast("B")
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def _hash_regions(handle: int, regions: Sequence[Region], threads: int) -> Iterator[tuple[Region, str]]:
    """The regions of a file with the hashes of their bytes, in order."""
    with ThreadPoolExecutor(threads) as pool:
        hashing = [(region, pool.submit(_hash_region, handle, region)) for region in regions]
        try:
            for region, future in hashing:
                yield region, future.result()
        finally:
            for _, future in hashing:
                future.cancel()


def _hash_region(handle: int, region: Region) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(region.nbytes, _READ_BACK_BYTES)))
    offset, left = region.offset, region.nbytes
    while left:
        got = os.preadv(handle, [buffer[:left]], offset)
        if not got:
            break
        digest.update(buffer[:got])
        offset, left = offset + got, left - got
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
