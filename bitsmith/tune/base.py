"""The frozen model that adapters stand on, and how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsmith.errors import UnsupportedError, UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint, require_weights

FLOATS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
DEFAULT_FORMAT = "nf4-dq"
_METHOD = "bitsmith"


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
        _check_format(chosen)
    return Base(checkpoint, checkpoint.folder, chosen)


def _check_format(name: str) -> None:
    from bitsmith.quant.formats import resolve

    if "/" in name:
        raise UsageError(
            f"--format={quoted(name)}: expected a number format without a container, {name.rpartition('/')[2]} or "
            "nf4-dq; nothing of the base is written."
        )
    try:
        resolve(name, 1 << 20)
    except UsageError as error:
        raise UsageError(f"{error.message} Or {', '.join(FLOATS)}: not quantized.") from error


def load_base(base: Base, *, dtype: str, device: str) -> Any:
    """transformers' model, quantized while it is read, with frozen weights.

    dtype: of what is not quantized, and of products: "float32", "bfloat16", "float16"
    """
    import bitsmith.torch_modules.hf_quantizer  # noqa: F401 - registers folders of bitsmith's own with transformers
    from bitsmith.torch_modules.loading import from_pretrained

    with _quiet_loading():
        if base.format and base.format not in FLOATS:
            model = from_pretrained(base.folder, base.format, dtype=dtype, device=device)
        else:
            model = model_class(base).from_pretrained(
                base.folder,
                dtype=FLOATS.get(base.format, dtype),
                device_map={"": device} if device != "cpu" else None,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    model.requires_grad_(False)
    model.config.use_cache = False
    if device == "cpu":
        _unmapped(model)
    return model


def model_class(base: Base) -> Any:
    """transformers' class of the base. Raises UnsupportedError where it has none."""
    import transformers

    name = (base.checkpoint.hf_config.get("architectures") or [""])[0]
    kind = getattr(transformers, str(name), None)
    if kind is None:
        raise UnsupportedError(f"{base.folder}: transformers has no class {name!r}.")
    return kind


def _unmapped(model: Any) -> None:
    """Copy what still lies in mapped files, so that their pages, the whole files, are given back."""
    import torch

    copies: dict[int, torch.Tensor] = {}
    for value in (*model.parameters(), *model.buffers()):
        start = value.data_ptr()
        if value.untyped_storage().nbytes() > value.nbytes or start in copies:  # a part of a file; tied weights too
            copies.setdefault(start, value.detach().clone())
            value.data = copies[start]


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
