"""ModelSpec: the model that a plan is asked about: a file, a hub id, a built-in shape, or a bare count of weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from bitsmith.containers.floats import FLOATS
from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.errors import FileError, UsageError
from bitsmith.models import hub
from bitsmith.models.checkpoint import REFERENCE, Checkpoint, open_checkpoint
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
    """What is planned for.

    network: the model's shape; of a bare count that of the nearest built-in one
    said: where the shape comes from, in a sentence
    count: weights, of a bare count; sizes are then a rule of thumb
    checkpoint: opened, where a file or folder was named; with it files are exact to the byte
    complete: whether tokenizer files are at hand, so that whole files can be told
    """

    network: Network
    said: str
    count: int | None = None
    checkpoint: Checkpoint | None = None
    complete: bool = False

    @property
    def name(self) -> str:
        """As the report calls it."""
        return self.network.name if self.count is None else _written(self.count)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.count or self.network.parameters

    @property
    def active(self) -> int:
        """Weights that one token reads; those of a bare count all."""
        return self.count or self.network.active

    @property
    def quantized(self) -> str | None:
        """The commonest type of a file that is quantized already; None for floats and shapes without weights."""
        found: dict[str, int] = {}
        for tensor in self.network.tensors if self.checkpoint else ():
            if tensor.rows > 1 and tensor.layout not in FLOATS:
                found[tensor.layout] = found.get(tensor.layout, 0) + tensor.nbytes
        return max(found, key=lambda layout: found[layout]) if found else None


def _written(count: int) -> str:
    scales = sorted(_SCALE.items(), key=lambda pair: -pair[1])
    return next((f"{count / scale:g}{letter.upper()}" for letter, scale in scales if count >= scale), str(count))


def find_model(model: str | Path, *, scratch: Path, revision: str | None = None, tokenizer: bool = False) -> ModelSpec:
    """What `model` names: a folder or file, "reference", a bare count ("70B"), a built-in shape, or a hub id.

    A name that is a folder or file is that, whatever else it might mean.
    scratch: a folder for what is fetched of a hub model, where the checkpoint then lies
    tokenizer: fetch a hub model's tokenizer files too
    Raises FileError or UnsupportedError where it cannot be read, UsageError, with near names, for an unknown one.
    """
    text = str(model).strip()
    path = Path(os.path.expanduser(text))
    if not text:
        raise UsageError("the model's name is empty; give a folder, a file, a hub id, a shape (llama-3-8b) or 70B.")
    if path.exists() or text == REFERENCE:
        return _from_path(path, text)
    count = _COUNT.fullmatch(text)
    if count is not None:
        return _from_count(text, round(float(count[1]) * _SCALE[count[2].lower()]))
    if ":" not in text and text.lower().endswith((".gguf", ".safetensors", ".json")):
        raise FileError(f"{text}: no such file.")
    if hub.looks_like_id(text):
        return _from_hub(text, revision, tokenizer, scratch)
    shape = find_shape(text)
    if shape is not None:
        return from_shape(shape)
    if os.sep in text:
        raise FileError(f"{text}: no such file or folder.")
    near = near_names(text)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"{text}: neither a file or folder nor a built-in shape.{hint} Else give a hub id (owner/name) or a count (7B)."
    )


def _from_path(path: Path, text: str) -> ModelSpec:
    if path.is_file() and path.suffix == ".json":
        return _from_config(path, path.resolve().parent.name, f"{path} alone")
    if path.is_dir() and (path / CONFIG).is_file() and not any(path.glob("*.safetensors*")):
        said = f"{path / CONFIG}; no weights beside it, so their shapes are the family's"
        return _from_config(path / CONFIG, path.resolve().name, said)
    return from_checkpoint(open_checkpoint(text), f"the headers of {text}")


def _from_config(path: Path, name: str, said: str) -> ModelSpec:
    """A configuration without weights, as if it were in floats."""
    config = read_object(path)
    quantized = "" if "quantization_config" not in config else "; what its quantization_config says is not planned"
    return ModelSpec(network_from_config(config, name=name, origin=str(path)), said + quantized)


def from_checkpoint(checkpoint: Checkpoint, said: str, *, complete: bool = True) -> ModelSpec:
    """What an opened model is; its tensors are those of a GGUF file of it, where that is known."""
    if checkpoint.naming == "gguf":
        network = network_from_gguf(checkpoint.source, name=checkpoint.name)
        return ModelSpec(network, said, checkpoint=checkpoint, complete=complete)
    origin = str(checkpoint.source.path / CONFIG if checkpoint.source.path.is_dir() else checkpoint.source.path)
    tensors = checkpoint.source.tensors.values()
    network = network_from_headers(checkpoint.hf_config, tensors, name=checkpoint.name, origin=origin)
    if not isinstance(checkpoint.shape, Exception) and not network.counted:
        gguf_tensors(checkpoint)  # raises where the configuration belongs to another model
    return ModelSpec(network, said, checkpoint=checkpoint, complete=complete)


def from_shape(shape: KnownShape) -> ModelSpec:
    """A built-in shape as a model."""
    network = network_from_config(shape.config, name=shape.name, origin=shape.name, parameters=shape.parameters)
    return ModelSpec(network, f"the built-in shape {shape.name} ({shape.source})")


def _from_count(text: str, count: int) -> ModelSpec:
    if count < 1_000_000:
        raise UsageError(f"{text}: a model has a million weights at least; give for instance 350M, 7B or 1.1T.")
    shape = nearest_by_count(count)
    near = replace(from_shape(shape).network, context=0)
    return ModelSpec(
        near, f"a count; layers and cache are those of {shape.name}, the nearest built-in shape", count=count
    )


def _from_hub(model: str, revision: str | None, tokenizer: bool, scratch: Path) -> ModelSpec:
    """Headers from the hub; where it cannot be reached, a copy in its cache."""
    try:
        path = fetch_headers(model, scratch, revision=revision, tokenizer=tokenizer)
        said = f"headers fetched from {model}, no weights"
    except hub.UnreachableError as error:
        kept = cached(model, revision)
        if kept is None:
            known = find_shape(model)
            hint = "" if known is None else f" The built-in shape {known.name} needs no network."
            raise FileError(f"{error}{hint}") from error
        path, tokenizer = kept, True
        said = f"the copy of {model} in the cache; the hub itself could not be asked"
    if path.is_dir() and not holds_weights(path):
        return _from_config(path / CONFIG, model.split("/")[-1], said)
    complete = tokenizer or path.is_file()
    checkpoint = replace(open_checkpoint(path), name=path.stem if path.is_file() else model.split("/")[-1])
    return from_checkpoint(checkpoint, said, complete=complete)
