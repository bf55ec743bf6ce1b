"""The frozen model that adapters stand on, and how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsmith.errors import UnsupportedError, UsageError
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
