"""ModelSpec: the model to plan for. It is a file, a hub id, a built-in shape, or a bare count of weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.errors import FileError, UsageError
from bitsmith.models import hub
from bitsmith.models.checkpoint import REFERENCE, Checkpoint, is_original, open_checkpoint, require_weights
from bitsmith.models.naming import folder_name
from bitsmith.planner.gguf_network import network_from_gguf
from bitsmith.planner.hf_network import network_from_config, network_from_headers
from bitsmith.planner.network import Network
from bitsmith.planner.remote import cached, fetch_headers, holds_weights
from bitsmith.planner.shapes import KnownShape, find_shape, near_names, nearest_by_count
from bitsmith.recipe.gguf import gguf_tensors

_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmbt])(?:illion)?", re.IGNORECASE)
_SCALE = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclass(frozen=True)
class ModelSpec:
    """The model to plan for.

    network: the model's shape; for a bare count, the nearest built-in shape
    said: where the shape comes from, in words
    count: number of weights, if the user gave only that; sizes are then a rule of thumb
    checkpoint: the opened file or folder, if there is one; sizes are then exact to the byte
    complete: True if the tokenizer files are there, so that sizes of whole files are known
    """

    network: Network
    said: str
    count: int | None = None
    checkpoint: Checkpoint | None = None
    complete: bool = False

    @property
    def name(self) -> str:
        """The model's name in the report."""
        return self.network.name if self.count is None else _written(self.count)

    @property
    def parameters(self) -> int:
        """Number of all weights."""
        return self.count or self.network.parameters

    @property
    def active(self) -> int:
        """Number of weights that one token reads. For a bare count: all."""
        return self.count or self.network.active

    @property
    def quantized(self) -> str | None:
        """The most common type, if the file is already quantized. None for floats and for shapes without weights."""
        found: dict[str, int] = {}
        for tensor in self.network.tensors if self.checkpoint else ():
            if tensor.rows > 1 and not is_original(tensor.layout):
                found[tensor.layout] = found.get(tensor.layout, 0) + tensor.nbytes
        return max(found, key=lambda layout: found[layout]) if found else None


def _written(count: int) -> str:
    scales = sorted(_SCALE.items(), key=lambda pair: -pair[1])
    return next((f"{count / scale:g}{letter.upper()}" for letter, scale in scales if count >= scale), str(count))


def find_model(model: str | Path, *, scratch: Path, revision: str | None = None, tokenizer: bool = False) -> ModelSpec:
    """Find the model: a folder or file, "reference", a bare count ("70B"), a built-in shape, or a hub id.

    An existing folder or file comes first.
    scratch: folder for the headers of a hub model; the checkpoint reads from it
    tokenizer: fetch a hub model's tokenizer files too
    Raises FileError or UnsupportedError if the model cannot be read, UsageError for an unknown name.
    """
    text = str(model).strip()
    path = Path(os.path.expanduser(text))
    if not text:
        raise UsageError(
            "the model's name is empty; give a folder, a file, a hub id, a shape (llama-3-8b) or a count (70B)."
        )
    if path.exists() or text == REFERENCE:
        return _from_path(path, text)
    count = _COUNT.fullmatch(text)
    if count is not None:
        return _from_count(text, round(float(count[1]) * _SCALE[count[2].lower()]))
    if hub.looks_like_hub_name(text):
        return _from_hub(text, revision, tokenizer, scratch)
    shape = find_shape(text)
    if shape is not None:
        return from_shape(shape)
    if os.sep in text or text.lower().endswith((".gguf", ".safetensors", ".json")):
        raise FileError(f"{text}: no such file or folder.")
    near = near_names(text)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"{text}: there is no such file, folder or built-in shape.{hint} You can also give a hub id (owner/name) or a "
        "count (7B)."
    )


def require_files(model: str | Path) -> None:
    """Raise UsageError for a built-in shape or a count, where weights are needed."""
    text = str(model)
    if not Path(text).exists() and (_COUNT.fullmatch(text) or find_shape(text) is not None):
        raise UsageError(
            f"{text} is a shape without weights, and losses are measured on weights; give a folder, a file or a hub "
            "name (owner/name), or leave --fit out."
        )


def _from_path(path: Path, text: str) -> ModelSpec:
    if path.is_file() and path.suffix == ".json":
        return _from_config(path, folder_name(path.parent), f"{path} alone")
    if path.is_dir() and (path / CONFIG).is_file() and not any(path.glob("*.safetensors*")):
        said = f"{path / CONFIG}; there are no weights beside it, so tensor shapes come from the model family"
        return _from_config(path / CONFIG, folder_name(path), said)
    return from_checkpoint(open_checkpoint(text), f"the headers of {text}")


def _from_config(path: Path, name: str, said: str) -> ModelSpec:
    """A config.json without weights, planned as if the weights were floats."""
    config = read_object(path)
    quantized = "" if "quantization_config" not in config else "; its quantization_config is ignored"
    return ModelSpec(network_from_config(config, name=name, origin=str(path)), said + quantized)


def from_checkpoint(checkpoint: Checkpoint, said: str, *, complete: bool = True) -> ModelSpec:
    """The spec of an opened model. Its tensors get GGUF's names if they are known."""
    require_weights(checkpoint)
    if checkpoint.naming == "gguf":
        network = network_from_gguf(checkpoint.source, name=checkpoint.name)
        return ModelSpec(network, said, checkpoint=checkpoint, complete=complete)
    origin = str(checkpoint.source.path / CONFIG if checkpoint.source.path.is_dir() else checkpoint.source.path)
    tensors = [info for name, info in checkpoint.source.tensors.items() if name not in checkpoint.ignored]
    config = dict(checkpoint.hf_config)
    if not isinstance(checkpoint.shape, Exception):
        config["tie_word_embeddings"] = checkpoint.shape.tied  # the tensors decide, see `reconcile`
    network = network_from_headers(config, tensors, name=checkpoint.name, origin=origin)
    if not isinstance(checkpoint.shape, Exception) and not network.counted:
        gguf_tensors(checkpoint)  # raises where the configuration belongs to another model
    return ModelSpec(network, said, checkpoint=checkpoint, complete=complete)


def from_shape(shape: KnownShape) -> ModelSpec:
    """The spec of a built-in shape."""
    network = network_from_config(shape.config, name=shape.name, origin=shape.name, parameters=shape.parameters)
    return ModelSpec(network, f"the built-in shape {shape.name} ({shape.source})")


def _from_count(text: str, count: int) -> ModelSpec:
    if count < 1_000_000:
        raise UsageError(f"{text}: a count must be at least a million weights; give for instance 350M, 7B or 1.1T.")
    shape = nearest_by_count(count)
    near = replace(from_shape(shape).network, context=0)
    return ModelSpec(
        near, f"a count of weights; layers and cache are those of the nearest shape, {shape.name}", count=count
    )


def _from_hub(model: str, revision: str | None, tokenizer: bool, scratch: Path) -> ModelSpec:
    """A hub model from its headers. If the hub cannot be reached, from the copy in its cache."""
    try:
        path = fetch_headers(model, scratch, revision=revision, tokenizer=tokenizer)
        said = f"the headers of {model} on the hub, without its weights"
    except hub.UnreachableError as error:
        kept = cached(model, revision)
        if kept is None:
            known = find_shape(model)
            hint = "" if known is None else f" The built-in shape {known.name} needs no network."
            raise FileError(f"{error.message}{hint}") from error
        path, tokenizer = kept, True
        said = f"the copy of {model} in the cache; the hub could not be reached"
    if path.is_dir() and not holds_weights(path):
        return _from_config(path / CONFIG, folder_name(path), said)
    return from_checkpoint(open_checkpoint(path), said, complete=tokenizer or path.is_file())
