"""Checkpoint: an opened model, with its tensors, its configuration and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.containers.base import Source
from bitsmith.containers.floats import FLOATS
from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.errors import BitsmithError, FileError, UnsupportedError, UsageError
from bitsmith.models import hub
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import Naming

if TYPE_CHECKING:
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
    """

    name: str
    source: Source
    naming: Naming
    hf_config: Mapping[str, Any]
    folder: Path | None
    shape: ModelConfig | BitsmithError

    @property
    def config(self) -> ModelConfig:
        """The decoder's configuration. Raises FileError or UnsupportedError if it cannot be read."""
        if isinstance(self.shape, BitsmithError):
            raise self.shape
        return self.shape

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises FileError or UnsupportedError."""
        from bitsmith.models.tokenizer import Tokenizer

        if self.naming == "gguf":
            return Tokenizer.from_gguf(self.source.metadata)
        assert self.folder is not None
        return Tokenizer.from_folder(self.folder)


def open_checkpoint(model: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open "reference", a Hugging Face folder, a .safetensors or .gguf file, or a hub id.

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
    if not path.exists():
        if not hub.looks_like_id(str(model)):
            raise FileError(
                f"{model}: no such file or folder; give a Hugging Face folder, a .safetensors or .gguf file, "
                'a hub id (owner/name or owner/name:file.gguf), or "reference".'
            )
        path = hub.download(str(model), revision)
        return _open_file(path) if path.is_file() else _open_folder(path, str(model).split("/")[-1])
    return _open_file(path) if path.is_file() else _open_folder(path, path.resolve().name)


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    return _open_folder(path.parent, path.stem, path)


def _open_gguf(path: Path) -> Checkpoint:
    from bitsmith.containers.gguf.reader import GgufSource
    from bitsmith.models.arch.gguf_config import config_from_gguf

    source = GgufSource(path)
    try:
        shape: ModelConfig | BitsmithError = config_from_gguf(source.metadata, source)
    except BitsmithError as error:
        shape = error
    return Checkpoint(path.stem, source, "gguf", {}, None, shape)


def _open_folder(folder: Path, name: str, weights: Path | None = None) -> Checkpoint:
    """Open a Hugging Face folder. `weights` is one file of it, if the user named the file."""
    from bitsmith.containers.safetensors import SafetensorsSource
    from bitsmith.models.arch.hf_config import config_from_hf

    if weights is None and not any(folder.glob("*.safetensors*")):
        ggufs = sorted(folder.glob("*.gguf"))
        if ggufs:
            raise FileError(f"{folder} is a folder of GGUF files; name one of them, for instance {ggufs[0]}.")
    source = SafetensorsSource(weights or folder)
    config: Mapping[str, Any] = {}
    shape: ModelConfig | BitsmithError
    try:
        config = read_object(folder / CONFIG)
        shape = config_from_hf(config, origin=str(folder / CONFIG))
    except BitsmithError as error:
        shape = error
    return Checkpoint(name, source, "hf", config, folder, shape)


def require_weights(checkpoint: Checkpoint) -> None:
    """Raise FileError if the model has no tensors, or only empty ones."""
    if not any(info.parameters for info in checkpoint.source.tensors.values()):
        raise FileError(
            f"{checkpoint.source.path} holds no weights; it may be a vocabulary, or a part of a model: give the whole "
            "model."
        )


def require_float(checkpoint: Checkpoint, *, requantize: bool) -> None:
    """Raise UnsupportedError if the source is already quantized and `requantize` is False."""
    quantized = [info for info in checkpoint.source.tensors.values() if info.layout not in FLOATS and info.rows > 1]
    if quantized and not requantize:
        raise UnsupportedError(
            f"{checkpoint.source.path} is already quantized ({quantized[0].name} is {quantized[0].layout}). Quantizing "
            "it again adds more loss. Use the original, or give --requantize to accept the loss."
        )


def quantized_already(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A warning if the source is already quantized; else an empty tuple."""
    found = {info.layout for info in checkpoint.source.tensors.values() if info.rows > 1} - FLOATS
    return (f"the source is quantized already ({', '.join(sorted(found))}): losses add up",) if found else ()
