"""Adapters as GGUF files that llama.cpp reads (`--lora`).

As llama.cpp's convert_lora_to_gguf.py writes them: general.type is "adapter", adapter.type is "lora", and each adapted
tensor has NAME.lora_a [rank, cols] and NAME.lora_b [rows, rank], whose product counts adapter.lora.alpha / rank times.
Rows of q and k are in the order of the model's GGUF files.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bitsmith.containers.destination import Destination, followed
from bitsmith.containers.gguf.metadata_values import Value, ValueType, scalar, string
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.containers.hf_folder import read_object
from bitsmith.containers.output import OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.errors import FileError, UnsupportedError, UsageError, quoted
from bitsmith.models.adapter import CONFIG, RECORD, WEIGHTS, Adapter, read_adapter
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.quant.tensor import TensorInfo
from bitsmith.system.progress import Report, silent

GGUF_LORA = "gguf-lora"


def convert_adapter(
    adapter: str | Path,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    report: Report = silent,
) -> Path:
    """Write an adapter of PEFT's layout as a GGUF file in float32. Returns its path.

    base: the model that it was trained on; None for the one that its configuration names
    out: a file; None for NAME.gguf beside the adapter's folder
    force: replace a file that exists
    Raises FileError for an adapter that cannot be read, or of another base; UnsupportedError for what llama.cpp cannot
    have; UsageError where the base is not there.
    """
    folder = Path(adapter).expanduser()
    checkpoint = open_checkpoint(base if base is not None else base_of(folder))
    found = read_adapter(folder, checkpoint, naming="gguf")
    given = Path(out) if out is not None else folder.with_name(f"{folder.resolve().name}-lora.gguf")
    if given.suffix != ".gguf":
        raise UsageError(f"--out={quoted(given)}: a GGUF file's name ends in .gguf.")
    path = followed(given, force=force)
    data = _tensors(found)
    infos = [TensorInfo(name, values.shape, "f32", values.nbytes) for name, values in data.items()]
    layouts = gguf_layout(path.name, _keys(found, checkpoint), infos)
    destination = Destination(path, layouts)
    sources = [*checkpoint.files, *(folder / name for name in (CONFIG, WEIGHTS, RECORD))]
    reservation = Reservation([destination], sources=sources, force=force)
    with reservation, OutputFiles(destination, reservation) as output:
        for name, values in data.items():
            output.write(name, "data", values.reshape(-1).view(np.uint8).data)
        output.commit(layouts, report)
    return path


def base_of(folder: Path) -> str:
    """The base that an adapter's configuration names. Raises UsageError where it is not there."""
    if not (folder / CONFIG).is_file():
        raise FileError(f"{folder}: there is no {CONFIG}; an adapter is a folder in PEFT's layout.")
    name = read_object(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{folder} does not name its base; give --base=MODEL.")
    if name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists():
        raise UsageError(f"{folder}: its base, {name}, is not there; give --base=MODEL.")
    return name


def _keys(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, Value]:
    return {
        "general.architecture": string(checkpoint.config.arch),
        "general.type": string("adapter"),
        "general.name": string(f"{checkpoint.name} {adapter.path.resolve().name}"),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": scalar(ValueType.FLOAT32, adapter.alpha),
    }


def _tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    found = {}
    for name, low in adapter.layers.items():
        if not math.isclose(low.scale, adapter.alpha / low.rank):
            raise UnsupportedError(f"{adapter.path}: use_rslora is not known to llama.cpp.")
        found[f"{name}.weight.lora_a"] = np.ascontiguousarray(low.down, "<f4")
        found[f"{name}.weight.lora_b"] = np.ascontiguousarray(low.up, "<f4")
    return found
