"""The frozen model that adapters stand on: how it is loaded, and the hashes that an adapter knows it by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint, require_weights
from bitsmith.models.manifests import manifests_of

FLOATS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
DEFAULT_FORMAT = "nf4-dq"
_METHOD = "bitsmith"
_SLAB_BYTES = 1 << 24


@dataclass(frozen=True)
class Base:
    """A model to train on.

    folder: its Hugging Face folder
    format: format of its linear layers: of `bitsmith.quant.formats`, or a float type ("bf16") where nothing is
        quantized; "" where the folder is quantized already
    """

    checkpoint: Checkpoint
    folder: Path
    format: str


def open_base(model: str | Path, format: str | None, revision: str | None) -> Base:
    """The base by its name, checked. Reads no weights.

    Raises UsageError for a GGUF file and a folder in another tool's format, FileError for what is not there.
    """
    checkpoint = open_checkpoint(model, revision=revision)
    if checkpoint.foreign is not None:
        raise checkpoint.foreign
    require_weights(checkpoint)
    if checkpoint.folder is None:
        raise UsageError(
            f"{model} is a GGUF file; tuning needs the model's Hugging Face folder. Give the original, or make a "
            "folder with `bitsmith convert FILE --to bf16`."
        )
    said = checkpoint.hf_config.get("quantization_config")
    if said is not None:
        method = said.get("quant_method") if isinstance(said, dict) else said
        if method != _METHOD:
            raise UsageError(
                f"{checkpoint.folder} is quantized already, by {method!r}; give the original model, or a folder of "
                "bitsmith's own (native/...)."
            )
        if format is not None:
            raise UsageError(f"{checkpoint.folder} is quantized already; leave out the format.")
        return Base(checkpoint, checkpoint.folder, "")
    chosen = format or DEFAULT_FORMAT
    if chosen not in FLOATS:
        from bitsmith.quant.formats import resolve

        resolve(chosen, 1 << 20)
    return Base(checkpoint, checkpoint.folder, chosen)


def load_base(base: Base, *, dtype: str, device: str) -> Any:
    """transformers' model, quantized while it is read, with frozen weights.

    dtype: of what is not quantized, and of products: "float32", "bfloat16", "float16"
    """
    import transformers

    import bitsmith.torch_modules.hf_quantizer  # noqa: F401 - registers folders of bitsmith's own with transformers
    from bitsmith.torch_modules.loading import from_pretrained

    with _quiet_loading():
        if base.format and base.format not in FLOATS:
            model = from_pretrained(base.folder, base.format, dtype=dtype, device=device)
        else:
            name = (base.checkpoint.hf_config.get("architectures") or [""])[0]
            kind = getattr(transformers, str(name), None)
            if kind is None:
                raise UnsupportedError(f"{base.folder}: transformers has no class {name!r}.")
            model = kind.from_pretrained(
                base.folder,
                dtype=FLOATS.get(base.format, dtype),
                device_map={"": device} if device != "cpu" else None,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' own progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def tensor_hashes(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """Hash of the stored bytes of tensors, by name; those that the files have under another name are left out."""
    found = {}
    for name in names:
        info = checkpoint.source.tensors.get(name)
        if info is None:
            continue
        digest = hashlib.sha256()
        step = max(1, _SLAB_BYTES // max(info.nbytes // max(info.rows, 1), 1))
        for start in range(0, info.rows, step):
            packed = checkpoint.source.packed(name, start, min(start + step, info.rows))
            for part in packed.parts.values():
                digest.update(np.ascontiguousarray(part).tobytes())
        found[name] = digest.hexdigest()
    return found


def check_base(checkpoint: Checkpoint, known: Mapping[str, str], adapter: Path) -> bool:
    """Whether a model was seen to be the one that an adapter was trained on, or made from it.

    known: hashes of tensors of the original by Hugging Face's names
    Compared are the stored bytes of three tensors, or what the manifest of a file of bitsmith's says of its source.
    False where neither is there. Raises FileError where they differ.
    """
    names = [name for name in known if name in checkpoint.source.tensors]
    manifests = manifests_of(checkpoint.source)
    seen = {record.name: record.source_sha256 for each in manifests for record in each.tensors}
    compared: dict[str, str] = {}
    if seen:
        for name in known:
            stored = name if checkpoint.naming == "hf" else checkpoint.names.gguf(name)
            if stored in seen:
                compared[name] = seen[str(stored)]
    elif names:
        few = sorted({names[0], names[len(names) // 2], names[-1]})
        if all(checkpoint.source.tensors[name].layout in FLOATS for name in few):
            compared = tensor_hashes(checkpoint, few)
    wrong = next((name for name, hash in compared.items() if known[name] != hash), None)
    if wrong is not None:
        raise FileError(
            f"{adapter}: this adapter was trained on another model than {checkpoint.name}: {wrong} has other weights "
            "there. Give the adapter's own base."
        )
    return bool(compared)
