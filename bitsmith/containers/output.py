"""Writes files that either exist complete under their final name or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bitsmith.containers.claim import Claim
from bitsmith.containers.destination import Destination, check_space, followed
from bitsmith.containers.journal import clear_up, put_in_place
from bitsmith.containers.layout import FileLayout, Region
from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.renames import move_new, remove, sync, sync_tree
from bitsmith.containers.reservation import Reservation
from bitsmith.errors import FileError
from bitsmith.system.progress import Progress, Report, silent

_READ_BACK_BYTES = 1 << 20
Marks = Mapping[str, list[int]]  # of the entries of an output, see `mark_of`


@dataclass(frozen=True)
class HashedBytes:
    """Bytes that come in pieces, each used before the next. sha256: of all, in hexadecimal, as it should be"""

    pieces: Callable[[], Iterable[memoryview]]
    nbytes: int
    sha256: str


class OutputFiles:
    """The files of one output, written under temporary names and given their names together at the end.

    Use it as a context manager: leaving it without `commit` removes everything that was written.
    """

    def __init__(self, destination: Destination, reservation: Reservation) -> None:
        """Create the temporary files with their provisional headers.

        reservation: a reservation of this destination; it must be kept until the output is done
        Raises FileError if the files cannot be written.
        """
        self.destination = destination
        self.layouts = tuple(destination.layouts)
        self._reservation = reservation
        self._names = destination.names
        self._handles: dict[str, int] = {}
        self._cursor: dict[tuple[str, str], int] = {}
        self._hashes: dict[tuple[str, str], hashlib._Hash] = {}
        self._where: dict[tuple[str, str], tuple[str, Region]] = {
            (region.tensor, region.part): (layout.filename, region)
            for layout in self.layouts
            for region in layout.regions
        }
        claim = reservation.claim_of(destination)
        # runs at the latest when the process ends: an interrupt may come before a `with` holds this object
        self._clean_up = weakref.finalize(self, _clean_up, self._names, claim, os.getpid())
        try:
            check_space([destination])
            self._create()
        except OSError as error:
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

    def append(self, tensor: str, parts: Mapping[str, HashedBytes]) -> bool:
        """Append to some parts of a tensor what others have made and hashed; nothing if any does not have its hash.

        Returns whether it was appended. Raises FileError if it cannot be written.
        """
        found = {(tensor, part): self._copied((tensor, part), data) for part, data in parts.items()}
        if not all(found.values()):
            return False
        for (key, digest), data in zip(found.items(), parts.values(), strict=True):
            assert digest is not None
            self._hashes[key], self._cursor[key] = digest, self._cursor.get(key, 0) + data.nbytes
        return True

    def _copied(self, key: tuple[str, str], data: HashedBytes) -> hashlib._Hash | None:
        """Write bytes behind those of a part. Returns the hash of all; None if they do not have theirs."""
        (filename, region), cursor = self._where[key], self._cursor.get(key, 0)
        if cursor + data.nbytes > region.nbytes:
            raise ValueError(f"{key}: {cursor + data.nbytes} bytes for a region of {region.nbytes}")
        own = hashlib.sha256()
        whole = self._hashes[key].copy() if cursor else own
        left = data.nbytes
        try:
            for piece in data.pieces():
                own.update(piece)
                if whole is not own:
                    whole.update(piece)
                _write_all(self._handles[filename], piece[:left], region.offset + cursor + data.nbytes - left)
                left -= len(piece[:left])
        except OSError as error:
            raise self._cannot_write(error) from error
        return whole if own.hexdigest() == data.sha256 and not left else None

    def written(self, tensor: str, part: str) -> int:
        """Number of bytes that were written to one part of one tensor."""
        return self._cursor.get((tensor, part), 0)

    def restart(self, tensor: str, part: str) -> None:
        """Forget what was written to one part of one tensor; it is written again from its beginning."""
        self._cursor.pop((tensor, part), None)
        self._hashes.pop((tensor, part), None)

    def take_over(self, tensor: str, part: str, nbytes: int, sha256: str) -> bool:
        """Go on behind the first `nbytes` of a part, which an earlier start has written. False if they are not there.

        sha256: their hash, in hexadecimal
        Raises FileError if they cannot be read.
        """
        filename, region = self._where[tensor, part]
        if not 0 <= nbytes <= region.nbytes:
            return False
        try:
            digest = _digest(self._handles[filename], region.offset, nbytes)
        except OSError as error:
            raise self._cannot_write(error) from error
        if digest.hexdigest() != sha256:
            return False
        self._cursor[tensor, part], self._hashes[tensor, part] = nbytes, digest
        return True

    def commit(
        self,
        final: Sequence[FileLayout],
        report: Report = silent,
        *,
        threads: int = 1,
        verified: Callable[[Marks], None] = lambda marks: None,
    ) -> None:
        """Write the final headers, flush to disk, read everything back, and rename.

        final: the same layouts with their final headers and the same offsets
        threads: number of threads that hash the data read back
        verified: called before the files get their names, with the mark of each name in the parent folder
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
            verified({name: mark_of(self._now(name)) for name in self.destination.entries})
            self._put_in_place()
        except OSError as error:
            raise self._cannot_write(error) from error
        self._clear_up()

    def abort(self) -> None:
        """Close and remove everything that does not have its final name yet."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}
        self._clean_up()

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
        if error is not None and os.path.lexists(self._names.journal):
            error.add_note(self._left())

    # -- before

    def final_paths(self) -> list[Path]:
        """Paths of the files after `commit`."""
        target = self.destination.target
        folder = target if self.destination.as_folder else target.parent
        return [folder / name for name in [layout.filename for layout in self.layouts] + list(self.destination.extras)]

    def _now(self, entry: str) -> Path:
        """Where what will have a name in the parent folder lies until then."""
        folder = self.destination.folder
        if folder is None:
            return self._names.partial(entry)
        return folder if self.destination.as_folder else folder / entry

    def _temporary(self, filename: str) -> Path:
        if self.destination.as_folder:
            return self._now(self.destination.target.name) / filename
        return self._now(filename)

    def _create(self) -> None:
        taken = self.destination.folder is not None
        folder = self.destination.folder
        if self.destination.as_folder or folder is not None:
            (self._now(self.destination.target.name) if folder is None else folder).mkdir(exist_ok=taken)
        for layout in self.layouts:
            path = self._temporary(layout.filename)
            if taken:
                _remove_unfit(path, layout.size)
            flags = os.O_RDWR | os.O_CREAT | (os.O_NOFOLLOW if taken else os.O_EXCL)
            handle = os.open(path, flags, self.destination.mode)
            self._handles[layout.filename] = handle
            os.truncate(handle, layout.size)
            _write_all(handle, memoryview(layout.header), 0)
        for name, data in self.destination.extras.items():
            path = self._temporary(name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            sync(path)

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

    def _put_in_place(self) -> None:
        """Give the files their names."""
        destination, force = self.destination, self._reservation.force
        if destination.as_folder:
            sync_tree(self._now(destination.target.name))
        self._reservation.check_again(destination)
        try:
            self._leave_folder(force)
            older = destination.older_parts() if force else []
            put_in_place(self._names, destination.entries, older, force=force)
        except FileExistsError as error:
            self.abort()
            raise FileError(
                f"{error.filename2 or error.filename or destination.target} appeared while this run was working, and "
                f"was not replaced; {self._left()}. Choose another output path."
            ) from error

    def _leave_folder(self, force: bool) -> None:
        """Move what lies in a folder of its own beside the output, where every replacement begins."""
        destination = self.destination
        if destination.folder is None:
            return
        for path in () if force else map(self._names.final, destination.entries):
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        for name in destination.entries:
            move_new(self._now(name), self._names.partial(name))

    def _clear_up(self) -> None:
        """Remove what the output has replaced."""
        try:
            sync(self._names.folder)
            clear_up(self._names)
        except OSError as error:
            raise FileError(
                f"{self.destination.target} is written and whole, but clearing up behind it failed "
                f"({error.filename or self._names.folder}: {error.strerror or error}); the next run that writes it "
                "removes what is left. Check the disk."
            ) from error

    def _cannot_write(self, error: OSError) -> FileError:
        self.abort()
        return FileError(
            f"{self.destination.target}: cannot be written ({error.strerror or error}); {self._left()}. "
            "Check space and permissions, or choose another output path."
        )

    def _left(self) -> str:
        """What an output that failed has left on the disk."""
        if os.path.lexists(self._names.journal):
            return (
                "it was stopped while names changed; opening the output, or the next run that writes it, "
                "finishes or undoes that"
            )
        try:
            left = ", ".join(map(str, self._names.leftovers()))
            taken = self.destination.taken()
        except OSError as error:
            return f"what is left there cannot be read ({error.strerror or error})"
        if left:
            return f"these temporary files could not be removed: {left}"
        if taken:
            return "what was there before is unchanged"
        return "nothing was left behind" if self.destination.folder is None else "no file has its final name"


@contextmanager
def output_files(
    destination: Destination, *, sources: Sequence[str | Path] = (), force: bool = False
) -> Iterator[OutputFiles]:
    """OutputFiles with a reservation of their own, for work that is short. Arguments and errors: see `Reservation`."""
    with (
        Reservation([destination], sources=sources, force=force) as reservation,
        OutputFiles(destination, reservation) as files,
    ):
        yield files


def write_file(
    path: Path, data: bytes, *, sources: Sequence[str | Path] = (), force: bool = False, mode: int = 0o644
) -> Path:
    """Write a small file whole. Returns its path, with links followed. Other arguments and errors: see `Reservation`.

    mode: its permissions, as for `os.open`
    """
    place = followed(path, force=force)
    layout = FileLayout(place.name, data, (), len(data))
    with output_files(Destination(place, [layout], mode=mode), sources=sources, force=force) as files:
        files.commit([layout])
    return place


def _clean_up(names: OutputNames, claim: Claim, process: int) -> None:
    """Remove temporary files; not while they are needed to put names in order, nor in a child that was forked later.

    claim: kept until this is done, so that the files are nobody else's
    """
    if os.getpid() != process or os.path.lexists(names.journal):
        return
    with suppress(OSError):  # the error that brought us here says what is left
        for path in names.leftovers():
            remove(path)


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


def mark_of(path: Path) -> list[int]:
    """What tells a file or a folder from others of its name: its inode and the time of its last change.

    Renaming keeps both. Empty if there is nothing.
    """
    if not os.path.lexists(path):
        return []
    found = os.lstat(path)
    return [found.st_ino, found.st_mtime_ns]


def _remove_unfit(path: Path, size: int) -> None:
    """Remove what an earlier start has left under a name, if it is not a file of this size with no other name."""
    if os.path.lexists(path):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size or found.st_nlink != 1:
            remove(path)


def _hash_region(handle: int, region: Region) -> str:
    return _digest(handle, region.offset, region.nbytes).hexdigest()


def _digest(handle: int, offset: int, left: int) -> hashlib._Hash:
    """SHA-256 of so many bytes of a file; of fewer, if it ends before."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(left, _READ_BACK_BYTES)))
    while left:
        got = os.preadv(handle, [buffer[:left]], offset)
        if not got:
            break
        digest.update(buffer[:got])
        offset, left = offset + got, left - got
    return digest
