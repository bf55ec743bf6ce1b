"""Lists the contents of a model's files, and checks their bytes against the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.base import Source
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.containers.manifest import JSON_KEY, Manifest, TensorRecord, from_gguf_keys, from_json, joined_hash
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.quant.tensor import PackedTensor, TensorInfo
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.system.sizes import human_bytes
from bitsmith.system.tables import html_table

SLAB_WEIGHTS = 1 << 20  # number of weights decoded at once
_SHOWN_ITEMS = 8
_SHOWN_CHARACTERS = 200
_LISTED_NAMES = 3


@dataclass(frozen=True)
class InspectedTensor:
    """One tensor. The last three fields are None if the file was not verified.

    bits_per_weight: bits of its data for each weight, without padding
    input_rounding: how runtimes round the input of its product: "int8, per token", "fp8, per tensor, scale 0.0213";
        "not supported" if our decoder cannot; empty if they do not round it
    finite: True if every weight decodes to a finite number; None if the bytes cannot be read or decoded
    sha256: hash of the stored bytes, as in the manifest
    matches: True if sha256 is that of the manifest; None if the manifest has no record of the tensor
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    nbytes: int
    bits_per_weight: float
    input_rounding: str = ""
    finite: bool | None = None
    sha256: str | None = None
    matches: bool | None = None

    @property
    def check(self) -> str:
        """The result of the verification, in a few words."""
        if self.finite is None:
            return "unreadable" if self.sha256 is None else "not decoded"
        if not self.finite:
            return "not finite"
        return {True: "ok", False: "wrong hash", None: "finite"}[self.matches]


@dataclass(frozen=True, repr=False)
class Inspection:
    """The result of `inspect`.

    container: "gguf" or "safetensors"
    size: bytes of all files
    architecture: name in the file or in the config.json beside it; None if there is none
    bits_per_weight: bits of all tensors' data for each weight
    metadata: values for JSON; long arrays and texts are shortened, control characters are escaped
    problems: one sentence each; empty if nothing is wrong
    """

    path: Path
    container: str
    files: tuple[Path, ...]
    size: int
    architecture: str | None
    parameters: int
    bits_per_weight: float
    metadata: Mapping[str, Any]
    tensors: tuple[InspectedTensor, ...]
    verified: bool
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        """One line."""
        name = f"{str(self.path)!r}: {self.container}, {_printable(self.architecture or 'unknown architecture')}"
        size = f"{len(self.tensors)} tensors, {human_bytes(self.size)}, {self.bits_per_weight:.2f} bits per weight"
        return f"<Inspection {name}, {size}{', with problems' if self.problems else ''}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (layout, count, human_bytes(nbytes)) for layout, (count, nbytes) in self.types().items()
        ]
        rows += [("problem", problem, "") for problem in self.problems]
        return html_table(repr(self)[1:-1], rows, headings=("type", "tensors", "bytes"))

    @property
    def rounds_inputs(self) -> bool:
        """Whether any tensor has `input_rounding`."""
        return any(tensor.input_rounding for tensor in self.tensors)

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each tensor: name, shape, type, bytes and bits a weight.

        `input_rounding` follows if any tensor has it, and the result of the verification if there was one.
        """
        return [
            (
                _printable(tensor.name),
                "x".join(map(str, tensor.shape)),
                tensor.layout,
                f"{tensor.nbytes:,}",
                f"{tensor.bits_per_weight:.3f}",
                *([tensor.input_rounding] if self.rounds_inputs else []),
                *([tensor.check] if self.verified else []),
            )
            for tensor in self.tensors
        ]

    def types(self) -> dict[str, tuple[int, int]]:
        """Number of tensors and bytes of data for each layout, the largest first."""
        totals: dict[str, tuple[int, int]] = {}
        for tensor in self.tensors:
            count, nbytes = totals.get(tensor.layout, (0, 0))
            totals[tensor.layout] = (count + 1, nbytes + tensor.nbytes)
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))

    def summary(self) -> str:
        """A few lines of text."""
        files = f"{len(self.files)} files" if len(self.files) > 1 else "1 file"
        lines = [
            f"{self.container}, {_printable(self.architecture or 'unknown architecture')}, {files} of "
            f"{self.size:,} bytes, {len(self.tensors)} tensors, {self.parameters:,} weights, "
            f"{self.bits_per_weight:.3f} bits a weight",
            ", ".join(f"{layout}: {count} ({nbytes:,} bytes)" for layout, (count, nbytes) in self.types().items()),
        ]
        if self.verified:
            finite = sum(tensor.finite is True for tensor in self.tensors)
            matching = sum(tensor.matches is True for tensor in self.tensors)
            recorded = sum(tensor.matches is not None for tensor in self.tensors)
            hashes = f"{matching} of {recorded} hashes match" if recorded else "no manifest to compare hashes with"
            lines.append(f"verified: {finite} of {len(self.tensors)} tensors finite, {hashes}")
        return "\n".join(line for line in lines if line)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "metadata": dict(self.metadata),
            "tensors": [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in self.tensors],
            "problems": list(self.problems),
        }


def inspect(source: Source, *, verify: bool = False, report: Report = silent) -> Inspection:
    """The contents of `source`.

    verify: read, decode and hash every tensor, some rows at a time, in bounded memory
    Damaged data raises no error; it is listed in `problems`.
    """
    problems: list[str] = []
    records = _records(source, problems)
    described = tuple(_described(source, info, problems) for info in source.tensors.values())
    tensors = _verified(source, described, records, problems, report) if verify else described
    parameters = sum(info.parameters for info in source.tensors.values())
    return Inspection(
        path=source.path,
        container="gguf" if isinstance(source, GgufSource) else "safetensors",
        files=source.files,
        size=sum(file.stat().st_size for file in source.files),
        architecture=_architecture(source),
        parameters=parameters,
        bits_per_weight=8 * sum(tensor.nbytes for tensor in tensors) / parameters if parameters else 0.0,
        metadata={_printable(key): _abbreviated(value) for key, value in source.metadata.items()},
        tensors=tensors,
        verified=verify,
        problems=tuple(problems),
    )


def _described(source: Source, info: TensorInfo, problems: list[str]) -> InspectedTensor:
    bits = 8 * info.nbytes / info.parameters if info.parameters else 0.0
    return InspectedTensor(
        info.name, info.shape, info.layout, info.nbytes, bits, _input_rounding(source, info.name, problems)
    )


def _input_rounding(source: Source, name: str, problems: list[str]) -> str:
    try:
        found = source.input_rounding(name)
    except UnsupportedError:
        return "not supported"
    except BitsmithError as error:
        problems.append(str(error))
        return "damaged"
    return "" if found is None else str(found)


def _verified(
    source: Source,
    tensors: tuple[InspectedTensor, ...],
    records: Mapping[str, TensorRecord],
    problems: list[str],
    report: Report,
) -> tuple[InspectedTensor, ...]:
    """The tensors with the results of the verification. Adds to `problems`."""
    total, done, checked = sum(tensor.nbytes for tensor in tensors), 0, []
    for tensor in tensors:
        start = done

        def advance(part: float, start: int = start, tensor: InspectedTensor = tensor) -> None:
            report(Progress("verify", start + int(part * tensor.nbytes), total, "B", tensor.name))

        try:
            finite, sha256 = _read_through(source, source.tensors[tensor.name], advance, problems)
        except BitsmithError as error:
            problems.append(f"tensor {_printable(tensor.name)} cannot be read: {error}")
            checked.append(tensor)
        else:
            matches = _compare(tensor.name, sha256, records, problems)
            checked.append(replace(tensor, finite=finite, sha256=sha256, matches=matches))
        done += tensor.nbytes
    report(Progress("verify", total, total, "B"))
    return tuple(checked)


def _read_through(
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
    name = _printable(info.name)
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


def _compare(name: str, sha256: str, records: Mapping[str, TensorRecord], problems: list[str]) -> bool | None:
    record = records.get(name)
    if record is None:
        return None
    if record.sha256 != sha256:
        problems.append(
            f"tensor {_printable(name)} has the hash {sha256}, the manifest says {record.sha256}: its bytes changed "
            "after they were written; make the file again or fetch it again"
        )
    return record.sha256 == sha256


def _records(source: Source, problems: list[str]) -> dict[str, TensorRecord]:
    """The manifest's records by tensor. Contradictions to the files are added to `problems`."""
    try:
        manifests = _manifests(source)
    except FileError as error:
        problems.append(str(error))
        return {}
    records = {record.name: record for manifest in manifests for record in manifest.tensors}
    if not manifests:
        return records
    for names, what in (
        (records.keys() - source.tensors.keys(), "tensors that the file does not have"),
        (source.tensors.keys() - records.keys(), "no record of tensors that the file has"),
    ):
        if names:
            listed = ", ".join(_printable(name) for name in sorted(names)[:_LISTED_NAMES])
            problems.append(f"the manifest has {what} ({len(names)}: {listed}): the file was changed after it was made")
    return records


def _manifests(source: Source) -> list[Manifest]:
    """The manifests: one for a GGUF file or all of its parts, one for each safetensors file that has one."""
    if isinstance(source, SafetensorsSource):
        texts = [metadata[JSON_KEY] for metadata in source.file_metadata.values() if JSON_KEY in metadata]
        return [from_json(text) for text in texts]
    found = from_gguf_keys(source.metadata)
    return [] if found is None else [found]


def _architecture(source: Source) -> str | None:
    if isinstance(source, GgufSource):
        return source.architecture
    try:
        kind = read_object(source.files[0].parent / CONFIG).get("model_type")
    except FileError:  # weights alone can be inspected
        return None
    return kind if isinstance(kind, str) else None


def _abbreviated(value: Any) -> Any:
    """The value for JSON. A long text or list becomes a text that shows its beginning."""
    if isinstance(value, str):
        text = _printable(value[: _SHOWN_CHARACTERS + 1])
        return text if len(value) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(value)} characters)"
    if not isinstance(value, list | np.ndarray):
        return value
    head = value[:_SHOWN_ITEMS]
    first = [_abbreviated(item) for item in (head.tolist() if isinstance(head, np.ndarray) else head)]
    if len(value) <= _SHOWN_ITEMS:
        return first
    return f"[{', '.join(map(str, first))}, ...] ({len(value)} items)"


def _printable(text: str) -> str:
    """The text with control characters and lone surrogates escaped, so that no file can control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
