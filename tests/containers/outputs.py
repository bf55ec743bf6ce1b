"""Outputs for tests: small files of known bytes, opened for writing, written, and read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bitsmith.containers.destination import Destination
from bitsmith.containers.gguf.metadata_values import string
from bitsmith.containers.gguf.split import split_name
from bitsmith.containers.gguf.writer import header_bytes
from bitsmith.containers.layout import FileLayout, Region
from bitsmith.containers.manifest import SET_KEY
from bitsmith.containers.output import OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.quant.tensor import TensorInfo


@contextmanager
def opened(
    target: Path,
    layouts: Sequence[FileLayout],
    *,
    extras: Mapping[str, bytes] | None = None,
    as_folder: bool = False,
    force: bool = False,
    sources: Iterable[Path] = (),
) -> Iterator[OutputFiles]:
    """An output with a reservation of its own."""
    destination = Destination(target, layouts, extras or {}, as_folder)
    with (
        Reservation([destination], sources=sources, force=force) as reservation,
        OutputFiles(destination, reservation) as files,
    ):
        yield files


def parts(count: int) -> list[FileLayout]:
    """Layouts of a split GGUF set that bitsmith wrote, or of one file, with one tensor of four bytes each."""
    names = [split_name("m", n, count) for n in range(1, count + 1)] if count > 1 else ["m.gguf"]
    found = []
    for name in names:
        header = header_bytes({SET_KEY: string(f"a set of {count}")}, [TensorInfo(name[:60], (1,), "f32", 4)])
        found.append(FileLayout(name, header, (Region(name, "data", len(header), 4),), len(header) + 32))
    return found


def shards(count: int) -> list[FileLayout]:
    """Layouts of the weights of a folder, with one tensor of four bytes each."""
    names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    return [FileLayout(name, b"HEAD", (Region(name, "data", 8, 4),), 12) for name in names]


def write(files: OutputFiles, content: bytes) -> None:
    """Write four bytes to each file, and commit."""
    for layout in files.layouts:
        files.write(layout.regions[0].tensor, "data", memoryview(content))
    files.commit(files.layouts)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder with None."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }
