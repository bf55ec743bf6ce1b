"""Reads a model's tensors through, and checks their bytes against the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from bitsmith.containers.base import Source
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.hf_folder import CONFIG, TOKENIZER_FILES, read_file
from bitsmith.containers.manifest import TensorRecord, joined_hash
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.containers.settings import file_settings, key_settings
from bitsmith.errors import BitsmithError, FileError
from bitsmith.models.manifests import manifests_of
from bitsmith.models.shown import one_line
from bitsmith.quant.tensor import PackedTensor, TensorInfo

SLAB_WEIGHTS = 1 << 20  # number of weights decoded at once
_LISTED_NAMES = 3


def read_through(
    source: Source, info: TensorInfo, advance: Callable[[float], None], problems: list[str]
) -> tuple[bool | None, str]:
    """Whether all weights are finite (None if they cannot be decoded), and the hash of the stored bytes."""
    hashes: dict[str, hashlib._Hash] = {}
    finite: bool | None = True
    gathered = isinstance(source, SafetensorsSource) and source.gathered(info.name)
    if gathered:  # its rows do not lie together in the file, so the hash needs the whole tensor
        _feed(hashes, source.packed(info.name))
    step = max(1, SLAB_WEIGHTS // max(1, info.cols))
    for start in range(0, max(1, info.rows), step):
        packed = source.packed(info.name, start, min(start + step, info.rows))
        if not gathered:
            _feed(hashes, packed)
        if finite:
            finite = _finite(source, info, packed, start, problems)
        advance(min(1.0, (start + step) / max(1, info.rows)))
    return finite, joined_hash([digest.hexdigest() for digest in hashes.values()])


def _feed(hashes: dict[str, hashlib._Hash], packed: PackedTensor) -> None:
    for part, data in packed.parts.items():
        hashes.setdefault(part, hashlib.sha256()).update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)


def _finite(source: Source, info: TensorInfo, packed: PackedTensor, first: int, problems: list[str]) -> bool | None:
    name = one_line(info.name)
    try:
        finite = np.isfinite(source.decode(packed))
    except BitsmithError as error:
        problems.append(f"tensor {name} cannot be decoded: {error}")
        return None
    if finite.all():
        return True
    row, column = np.argwhere(~finite)[0]
    problems.append(
        f"tensor {name} holds NaN or Inf, first at row {first + row}, column {column}: the model cannot work with it; "
        "make the file again or fetch it again"
    )
    return False


def compare(name: str, sha256: str, records: Mapping[str, TensorRecord], problems: list[str]) -> bool | None:
    record = records.get(name)
    if record is None:
        return None
    if record.sha256 != sha256:
        problems.append(
            f"tensor {one_line(name)} has the hash {sha256}, the manifest says {record.sha256}: its bytes changed "
            "after they were written; make the file again or fetch it again"
        )
    return record.sha256 == sha256


def records_of(source: Source, problems: list[str]) -> dict[str, TensorRecord]:
    """The manifest's records by tensor. Contradictions to the files are added to `problems`."""
    try:
        manifests = manifests_of(source)
    except FileError as error:
        problems.append(str(error))
        return {}
    records = {record.name: record for manifest in manifests for record in manifest.tensors}
    if not manifests:
        return records
    for names, what in (
        (records.keys() - source.tensors.keys() - _beside(source), "tensors that the file does not have"),
        (source.tensors.keys() - records.keys(), "no record of tensors that the file has"),
    ):
        if names:
            listed = ", ".join(one_line(name) for name in sorted(names)[:_LISTED_NAMES])
            problems.append(f"the manifest has {what} ({len(names)}: {listed}): the file was changed after it was made")
    return records


def _beside(source: Source) -> set[str]:
    """Names of entries that lie beside weights; `convert` records them too."""
    return set(source.further) if isinstance(source, SafetensorsSource) else set()


def check_settings(source: Source, problems: list[str]) -> None:
    """Hold chat template, tokenizer and configuration against the manifest. What differs is added to `problems`."""
    try:
        recorded = {name: sha256 for each in manifests_of(source) for name, sha256 in each.settings.items()}
    except FileError:
        return  # `records_of` tells of it
    if not recorded:
        return
    found = key_settings(source.keys) if isinstance(source, GgufSource) else _of_folder(source, problems)
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            was = "missing" if name not in found else "new" if name not in recorded else "changed"
            problems.append(
                f"{source.path}: its {one_line(name)} is {was} since the model was made, as the hash in the manifest "
                "says, so that runtimes may answer otherwise; make the model again or fetch it again"
            )


def _of_folder(source: Source, problems: list[str]) -> dict[str, str]:
    folder, files = source.files[0].parent, dict[str, bytes]()
    for name in (CONFIG, *TOKENIZER_FILES):
        for path in sorted(folder.glob(name)):
            try:
                files[path.relative_to(folder).as_posix()] = read_file(path, folder)
            except FileError as error:
                problems.append(str(error))
    return file_settings(files)
