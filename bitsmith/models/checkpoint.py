"""Checkpoint: an opened model, with its tensors, its configuration and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.containers.base import Source
from bitsmith.containers.derived import with_derived
from bitsmith.containers.floats import FLOATS, FP8_PREFIX, MXFP4_STACK
from bitsmith.containers.hf_folder import CONFIG, read_object, small_files
from bitsmith.containers.reservation import settle
from bitsmith.errors import BitsmithError, FileError, UnsupportedError, UsageError
from bitsmith.models import hub
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import Names, Naming, beside_decoder
from bitsmith.models.gguf_choice import models_among
from bitsmith.models.naming import file_name, folder_name
from bitsmith.models.overrides import Overrides

if TYPE_CHECKING:
    from bitsmith.models.arch.sources import FileTensors
    from bitsmith.models.tokenizer import Tokenizer

REFERENCE = "reference"


@dataclass(frozen=True)
class Checkpoint:
    """An opened model.

    name: a short name for output files and reports
    naming: whether the names of tensors are Hugging Face's or GGUF's
    hf_config: the contents of config.json; empty for GGUF
    folder: folder of the tokenizer files; None for GGUF
    shape: the decoder's configuration, or the error that its reading raised
    ignored: tensors that the decoder does not need, see `bitsmith.models.arch.reconcile`
    notes: what the user should know about the model, a sentence each
    foreign: the error if the weights are codes of a method that bitsmith does not read; else None
    overrides: what the user asks of the linear layers, for running
    merged: "base", "adapter" and "adapter_sha256" if the source adds an adapter to a base; empty otherwise
    """

    name: str
    source: Source
    naming: Naming
    hf_config: Mapping[str, Any]
    folder: Path | None
    shape: ModelConfig | BitsmithError
    ignored: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    foreign: UnsupportedError | None = None
    overrides: Overrides = field(default_factory=Overrides)
    merged: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        kind = "unknown architecture" if isinstance(self.shape, BitsmithError) else self.shape.arch
        return f"<Checkpoint {self.name!r}: {kind}, {len(self.source.tensors)} tensors, {str(self.source.path)!r}>"

    @property
    def config(self) -> ModelConfig:
        """The decoder's configuration. Raises FileError or UnsupportedError if it cannot be read."""
        if isinstance(self.shape, BitsmithError):
            raise self.shape
        return self.shape

    @cached_property
    def _file_tensors(self) -> FileTensors:
        from bitsmith.models.arch.tensors import file_tensors

        return file_tensors(self.config, self.source.tensors, self.naming)

    @property
    def names(self) -> Names:
        """Hugging Face's names of the decoder's tensors. Raises as `config`."""
        return self._file_tensors.names

    @property
    def stored(self) -> Set[str]:
        """The names of the tensors in the file that the decoder is made of. Raises as `config`."""
        return self._file_tensors.wanted.keys()

    @property
    def apart(self) -> Mapping[str, Mapping[str, str]]:
        """The experts in the stacks of a folder, for folders that store them one by one. Raises as `config`.

        By the name of the stack: GGUF's name of each matrix, by the name that `reader` and such folders have for it.
        """
        files = self._file_tensors
        names = files.published or files.names
        return {stack: {theirs: names.gguf(theirs) or "" for theirs in found} for stack, found in files.apart.items()}

    @property
    def published(self) -> Names:
        """Hugging Face's names in folders that store experts one by one. Raises as `config`."""
        return self._file_tensors.published or self._file_tensors.names

    @property
    def places(self) -> Mapping[str, str]:
        """Where `reader` has each tensor of the decoder, by its GGUF name. Raises as `config`."""
        return self._file_tensors.places

    def place(self, name: str) -> str:
        """Where `reader` has a tensor of the decoder, by its GGUF name. Raises as `config`."""
        return self._file_tensors.places[name]

    @cached_property
    def reader(self) -> Source:
        """The source, with the tensors of the decoder that the file holds only in pieces.

        A GGUF file has those of a Hugging Face folder, too, such as the experts one by one.

        Without a configuration, and for files that lack pieces, it is the source.
        """
        if isinstance(self.shape, BitsmithError):
            return self.source
        derived = dict(self._file_tensors.derived)
        for each in self._file_tensors.apart.values():
            derived |= each
        found = with_derived(self.source, derived)
        row = self.config.decoder.experts
        if self.naming == "gguf" and not (row is not None and row.interleaved):
            from bitsmith.models.arch.sources import hf_tensors_of_gguf

            if not self._file_tensors.wanted.keys() <= self.source.tensors.keys():
                return self.source
            return with_derived(found, hf_tensors_of_gguf(self.config)[1])
        return found

    def laid_out(self, naming: Naming) -> Checkpoint:
        """The model with its decoder's tensors in the order of Hugging Face's or GGUF's files.

        It differs in families with gated delta nets only. What calibration measures and rounds is in the order of the
        output.
        """
        if isinstance(self.shape, BitsmithError) or self.shape.laid_out(naming) == self.shape:
            return self
        return replace(self, shape=self.shape.laid_out(naming))

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the model is read from: weights, and the configuration and tokenizer files of its folder."""
        return (*self.source.files, *(() if self.folder is None else small_files(self.folder)))

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises FileError or UnsupportedError."""
        from bitsmith.models.tokenizer import Tokenizer

        if self.naming == "gguf":
            return Tokenizer.from_gguf(self.source.metadata)
        assert self.folder is not None
        return Tokenizer.from_folder(self.folder)


def open_checkpoint(model: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open "reference", a Hugging Face folder, a .safetensors or .gguf file, or a hub name.

    Headers are read and checked; weights are not read. Raises FileError or UnsupportedError.
    """
    if not str(model):
        raise UsageError('the model\'s name is empty; give a folder, a file, a hub id, or "reference".')
    try:
        return _open(model, revision)
    except OSError as error:
        raise FileError(
            f"{model} cannot be opened ({error.strerror or error}); check its name and permissions."
        ) from error


def _open(model: str | Path, revision: str | None) -> Checkpoint:
    if str(model) == REFERENCE and not Path(model).exists():
        return _open_folder(Path(__file__).parents[1] / "reference", REFERENCE)
    path = Path(os.path.expanduser(model))
    settle(path)
    if not path.exists():
        if not hub.looks_like_hub_name(str(model)):
            raise FileError(
                f"{model}: no such file or folder; give a Hugging Face folder, a .safetensors or .gguf file, "
                'a hub name (owner/name or owner/name:Q4_K_M), or "reference".'
            )
        path = hub.download(str(model), revision)
    return _open_file(path) if path.is_file() else _open_folder(path, folder_name(path))


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    return _open_folder(path.parent, file_name(path), path)


def _open_gguf(path: Path) -> Checkpoint:
    from bitsmith.containers.gguf.reader import GgufSource
    from bitsmith.models.arch.gguf_config import config_from_gguf, gguf_notes

    source = GgufSource(path)
    checkpoint = Checkpoint(file_name(path), source, "gguf", {}, None, FileError(f"{path}: not read."))
    try:
        config = config_from_gguf(source.metadata, source)
        return _reconciled(checkpoint, config, gguf_notes(source.metadata, config, str(path)))
    except BitsmithError as error:
        return replace(checkpoint, shape=error)


def _reconciled(checkpoint: Checkpoint, config: ModelConfig, notes: tuple[str, ...]) -> Checkpoint:
    """The checkpoint with what its tensors say of the configuration."""
    from bitsmith.models.arch.reconcile import reconcile

    found = reconcile(config, checkpoint.source, naming=checkpoint.naming)
    return replace(checkpoint, shape=found.config, ignored=found.ignored, notes=(*notes, *found.notes))


def _open_folder(folder: Path, name: str, weights: Path | None = None) -> Checkpoint:
    """Open a Hugging Face folder. `weights` is one file of it, if the user named the file."""
    from bitsmith.containers.foreign import foreign_quantization, read_config
    from bitsmith.containers.safetensors import SafetensorsSource
    from bitsmith.models.arch.hf_config import config_from_hf, text_part
    from bitsmith.models.arch.hf_fields import check_fields
    from bitsmith.models.arch.towers import tower_note

    if weights is None and not any(folder.glob("*.safetensors*")):
        ggufs = models_among({path.name: path.stat().st_size for path in folder.glob("*.gguf") if path.is_file()})
        if len(ggufs) == 1:
            return _open_gguf(folder / ggufs[0].first)
        if ggufs:
            listed = ", ".join(model.first for model in ggufs[:8])
            raise FileError(f"{folder} holds {len(ggufs)} GGUF models; name one of its files: {listed}.")
    source = SafetensorsSource(weights or folder)
    checkpoint = Checkpoint(name, source, "hf", {}, folder, FileError(f"{folder / CONFIG}: not read."))
    try:
        foreign = foreign_quantization(folder, read_config(folder), source.tensors)
        checkpoint = replace(checkpoint, foreign=foreign)
        values = read_object(folder / CONFIG)
        checkpoint = replace(checkpoint, hf_config=values)
        if foreign is not None:
            return replace(checkpoint, shape=foreign)
        config = config_from_hf(values, origin=str(folder / CONFIG))
        noted = check_fields(text_part(values), config.arch, str(folder / CONFIG))
        found = _reconciled(checkpoint, config, noted)
        beside = any(beside_decoder(name) for name in source.tensors)
        return replace(found, notes=(*found.notes, tower_note(values))) if beside else found
    except BitsmithError as error:
        return replace(checkpoint, shape=error)


def require_weights(checkpoint: Checkpoint) -> None:
    """Raise FileError if the model has no tensors, or only empty ones."""
    if not any(info.parameters for info in checkpoint.source.tensors.values()):
        raise FileError(
            f"{checkpoint.source.path} holds no weights; it may be a vocabulary, or a part of a model: give the whole "
            "model."
        )


def is_original(layout: str) -> bool:
    """Whether weights of this layout are taken for an original: floats, and FP8 and MXFP4, as many are published."""
    return layout in FLOATS or layout.startswith(FP8_PREFIX) or layout == MXFP4_STACK


def require_float(checkpoint: Checkpoint, *, requantize: bool) -> None:
    """Raise UnsupportedError if the source is already quantized and `requantize` is False.

    FP8 weights with scales are not refused: many models are published so. Codes of an unknown method always are.
    """
    if checkpoint.foreign is not None:
        raise checkpoint.foreign
    tensors = checkpoint.source.tensors.values()
    quantized = [info for info in tensors if not is_original(info.layout) and info.rows > 1]
    if quantized and not requantize:
        raise UnsupportedError(
            f"{checkpoint.source.path} is already quantized ({quantized[0].name} is {quantized[0].layout}). Quantizing "
            "it again adds more loss. Use the original, or give --requantize to accept the loss. To make a 16-bit "
            "model of it, use `bitsmith convert`."
        )


def source_warnings(checkpoint: Checkpoint, *, quantizes: bool = True) -> tuple[str, ...]:
    """What the user should know about the source of an output: its notes, and whether it is already quantized.

    quantizes: whether the output is quantized too, so that losses add up
    """
    tensors = checkpoint.source.tensors.values()
    found = sorted({info.layout for info in tensors if info.rows > 1} - FLOATS)
    told = []
    if found and all(is_original(layout) for layout in found):
        kind = "MXFP4" if MXFP4_STACK in found else "FP8"
        told.append(
            f"the weights are {kind} in the source ({', '.join(found)}); they are decoded, inputs are not rounded"
        )
    elif found and quantizes:
        told.append(f"the source is quantized already ({', '.join(found)}): losses add up")
    if isinstance(checkpoint.shape, BitsmithError) and checkpoint.naming == "hf" and checkpoint.foreign is None:
        told.append(f"bitsmith cannot run this model: {checkpoint.shape.message}")
    wrong = contradiction(checkpoint)
    if wrong is not None:
        told.append(f"bitsmith cannot run this model: {wrong.message}")
    double = [info.name for info in tensors if info.layout == "f64"]
    if double:
        told.append(f"{len(double)} tensors are float64, the first is {double[0]}; they are rounded to float32 first")
    return (*told, *checkpoint.notes)


def contradiction(checkpoint: Checkpoint) -> FileError | None:
    """The error if the tensors are not those that the configuration promises. The configuration itself is sound."""
    from bitsmith.models.arch.tensors import check_tensors

    if isinstance(checkpoint.shape, BitsmithError):
        return None
    source = checkpoint.source
    try:
        check_tensors(
            checkpoint.shape,
            source.tensors,
            naming=checkpoint.naming,
            origin=str(source.path),
            ignored=checkpoint.ignored,
        )
    except FileError as error:
        return error
    return None


def llama_cpp_differences(checkpoint: Checkpoint) -> tuple[str, ...]:
    """How llama.cpp's results on a GGUF file differ from our decoder's; empty for folders."""
    from bitsmith.models.arch.llamacpp import differences

    shape = checkpoint.shape
    return differences(shape) if checkpoint.naming == "gguf" and isinstance(shape, ModelConfig) else ()
