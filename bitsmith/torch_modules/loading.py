"""`bitsmith.torch.from_pretrained`: transformers' class for a model, quantized while it is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.models import hub
from bitsmith.quant.formats import resolve
from bitsmith.torch_modules.precision import precision_of
from bitsmith.torch_modules.quantize import MOST_LEFT


def from_pretrained(
    model: str | Path,
    format: str = "nf4",
    *,
    keep: Sequence[str] | None = None,
    compute_dtype: str | torch.dtype | None = None,
    most_left: float = MOST_LEFT,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    revision: str | None = None,
) -> Any:
    """transformers' model for a folder or a model of the hub, its weights quantized as they are read.

    The model is built without memory, and each tensor is quantized before the next is read: memory holds the
    quantized model and one tensor (of fused experts: one layer's). Only safetensors files are read, and no code that
    comes with a model is run.

    model: a folder, or "owner/name" of the hub
    format, keep, compute_dtype, most_left: see `quantize_module`
    dtype: of what is not quantized; "auto" for that of the files
    device: "cpu", "cuda", "cuda:1"
    revision: of the hub
    Returns an instance of the class that its config.json names. Raises as `quantize_module` does, UsageError for a
    folder that is quantized already, FileError for a model that is not there or has no safetensors files,
    UnsupportedError for one whose class transformers does not have.
    """
    import transformers

    from bitsmith.torch_modules.hf_quantizer import BitsmithConfig

    resolve(format, 1 << 20)
    precision_of(compute_dtype)
    folder = _folder(model, revision)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(
            f"{folder} is quantized already; load it with transformers' AutoModelForCausalLM.from_pretrained, or give "
            "the original model."
        )
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise UnsupportedError(f"{folder}: transformers {transformers.__version__} has no class {name!r}.")
    quantization = BitsmithConfig(format, keep, None if compute_dtype is None else str(compute_dtype), most_left)
    loaded = kind.from_pretrained(
        folder,
        quantization_config=quantization,
        dtype=dtype,
        device_map={"": device} if device != "cpu" else None,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return loaded


def _folder(model: str | Path, revision: str | None) -> Path:
    path = Path(os.path.expanduser(model))
    if not path.exists():
        if not hub.looks_like_hub_name(str(model)):
            raise FileError(f"{model}: no such folder; give a Hugging Face folder or a hub name (owner/name).")
        path = hub.download(str(model), revision)
    if not path.is_dir():
        raise UsageError(f"{path} is a file; transformers' models are folders with config.json and safetensors files.")
    if not any(path.glob("*.safetensors")):
        raise FileError(f"{path} has no .safetensors files; no other kind of weights is read.")
    return path
