"""Lists the contents of a model's files, and checks their bytes against the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitsmith.containers.base import Source
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.containers.manifest import TensorRecord
from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.models.manifests import recipe_of
from bitsmith.models.quantization import of_folder, of_gguf
from bitsmith.models.shown import one_line, plain, shown
from bitsmith.models.verification import check_settings, compare, read_through, records_of
from bitsmith.quant.tensor import TensorInfo
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.system.sizes import human_bytes
from bitsmith.system.tables import html_table

_LAYER = re.compile(r"(?<![^.])\d+(?![^.])")  # a number between dots


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
    quantization: how the files say that they are quantized: "gptq, 4 bits, groups of 128", "Q4_K_M"; "" if they do not
    recipe: the recipe in the manifest, if bitsmith made the files; None without one
    metadata: all values, whole, as plain values for JSON
    problems: one sentence each; empty if nothing is wrong
    notes: what is not wrong, but good to know; one sentence each
    """

    path: Path
    container: str
    files: tuple[Path, ...]
    size: int
    architecture: str | None
    parameters: int
    bits_per_weight: float
    quantization: str
    recipe: Mapping[str, Any] | None
    metadata: Mapping[str, Any]
    tensors: tuple[InspectedTensor, ...]
    verified: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line."""
        name = f"{str(self.path)!r}: {self.container}, {one_line(self.architecture or 'unknown architecture')}"
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

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the columns of `rows`."""
        inputs, check = ("input",) if self.rounds_inputs else (), ("check",) if self.verified else ()
        return ("tensor", "shape", "type", "bytes", "bits/weight", *inputs, *check)

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each tensor: name, shape, type, bytes and bits a weight.

        `input_rounding` follows if any tensor has it, and the result of the verification if there was one.
        """
        inputs = self.rounds_inputs
        return [self._row(one_line(tensor.name), tensor.nbytes, tensor, inputs) for tensor in self.tensors]

    def grouped_rows(self) -> list[tuple[str, ...]]:
        """One row for the tensors of all layers that differ only in their layer's number: "blk.*.attn_q.weight (30)".

        Their bytes are added up.
        """
        groups: dict[tuple[Any, ...], list[InspectedTensor]] = {}
        order: dict[str, int] = {}  # rows of one kind stay together, in the place of the first
        for tensor in self.tensors:
            kind = _LAYER.sub("*", tensor.name)
            order.setdefault(kind, len(order))
            key = (kind, tensor.shape, tensor.layout, tensor.input_rounding, tensor.check if self.verified else "")
            groups.setdefault(key, []).append(tensor)
        found, inputs = [], self.rounds_inputs
        for (kind, *_), members in sorted(groups.items(), key=lambda group: order[group[0][0]]):
            many = f"{one_line(kind)} ({len(members)})"
            name = many if len(members) > 1 else one_line(members[0].name)
            found.append(self._row(name, sum(tensor.nbytes for tensor in members), members[0], inputs))
        return found

    def _row(self, name: str, nbytes: int, tensor: InspectedTensor, inputs: bool) -> tuple[str, ...]:
        return (
            name,
            "x".join(map(str, tensor.shape)),
            tensor.layout,
            f"{nbytes:,}",
            f"{tensor.bits_per_weight:.3f}",
            *([tensor.input_rounding] if inputs else []),
            *([tensor.check] if self.verified else []),
        )

    def shown_metadata(self) -> dict[str, str]:
        """The metadata for people: long texts and arrays are cut, control characters are escaped."""
        return shown(self.metadata)

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
            f"{self.container}, {one_line(self.architecture or 'unknown architecture')}, {files} of "
            f"{self.size:,} bytes, {len(self.tensors)} tensors, {self.parameters:,} weights, "
            f"{self.bits_per_weight:.3f} bits a weight",
            ", ".join(f"{layout}: {count} ({nbytes:,} bytes)" for layout, (count, nbytes) in self.types().items()),
            f"quantization: {self.quantization}{self._not_decoded}" if self.quantization else "",
        ]
        if self.verified:
            finite = sum(tensor.finite is True for tensor in self.tensors)
            matching = sum(tensor.matches is True for tensor in self.tensors)
            recorded = sum(tensor.matches is not None for tensor in self.tensors)
            hashes = f"{matching} of {recorded} hashes match" if recorded else "no manifest to compare hashes with"
            lines.append(f"verified: {finite} of {len(self.tensors)} tensors finite, {hashes}")
        return "\n".join(line for line in lines if line)

    @property
    def _not_decoded(self) -> str:
        """A note if a folder names a quantization, but its tensors are only the codes of it."""
        foreign = self.container == "safetensors" and not any("/" in tensor.layout for tensor in self.tensors)
        return "; bitsmith does not decode it, so the tensors listed are its codes and scales" if foreign else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, nothing left out."""
        return {
            **vars(self),
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "metadata": dict(self.metadata),
            "tensors": [{**vars(tensor), "shape": list(tensor.shape)} for tensor in self.tensors],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def inspect(source: Source, *, verify: bool = False, report: Report = silent) -> Inspection:
    """The contents of `source`.

    verify: read, decode and hash every tensor, some rows at a time, in bounded memory
    Damaged data raises no error; it is listed in `problems`.
    """
    problems: list[str] = []
    records = records_of(source, problems)
    described = tuple(_described(source, info, problems) for info in source.tensors.values())
    tensors = _verified(source, described, records, problems, report) if verify else described
    if verify:
        check_settings(source, problems)
    parameters = sum(info.parameters for info in source.tensors.values())
    return Inspection(
        path=source.path,
        container="gguf" if isinstance(source, GgufSource) else "safetensors",
        files=source.files,
        size=sum(file.stat().st_size for file in source.files),
        architecture=_architecture(source),
        parameters=parameters,
        bits_per_weight=8 * sum(tensor.nbytes for tensor in tensors) / parameters if parameters else 0.0,
        quantization=_quantization(source),
        recipe=_recipe(source),
        metadata={key: plain(value) for key, value in source.metadata.items()},
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
            finite, sha256 = read_through(source, source.tensors[tensor.name], advance, problems)
        except BitsmithError as error:
            problems.append(f"tensor {one_line(tensor.name)} cannot be read: {error}")
            checked.append(tensor)
        else:
            matches = compare(tensor.name, sha256, records, problems)
            checked.append(replace(tensor, finite=finite, sha256=sha256, matches=matches))
        done += tensor.nbytes
    report(Progress("verify", total, total, "B"))
    return tuple(checked)


def _architecture(source: Source) -> str | None:
    if isinstance(source, GgufSource):
        return source.architecture
    try:
        kind = read_object(source.files[0].parent / CONFIG).get("model_type")
    except FileError:  # weights alone can be inspected
        return None
    return kind if isinstance(kind, str) else None


def _quantization(source: Source) -> str:
    return of_gguf(source.metadata) if isinstance(source, GgufSource) else of_folder(source.files[0].parent)


def _recipe(source: Source) -> Mapping[str, Any] | None:
    try:
        return recipe_of(source)
    except FileError:  # `problems` says what is damaged
        return None
