"""Loading a checkpoint for running on torch: the reference, every layout, every device."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.tensors import expected_tensors
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Kernel
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.runtime.torch.dense import DTYPES, DenseKernel
from bitsmith.runtime.torch.ondemand import OnDemandKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.torch.stored import StoredKernel
from bitsmith.runtime.weights import load_weights, weight_reader
from bitsmith.system.memory import available_memory
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.models.checkpoint import Checkpoint


def load_torch_model(
    checkpoint: Checkpoint,
    *,
    threads: int | None = None,
    dtype: str = "float32",
    dense: bool | None = None,
    compute_dtype: str = "",
    device: str = "cpu",
    report: Report = silent,
) -> LanguageModel:
    """Load a checkpoint for running on torch.

    threads: torch.set_num_threads for the whole process; None leaves it alone
    dtype: of dense weights: "float32", "bfloat16" or "float16"; activations are float32
    dense: True decodes every matrix once and keeps it, False decodes slabs of rows for every product, None takes
        dense where it fits in half of the available memory
    compute_dtype: keep codes as they are stored, and compute in this type, see `StoredKernel`; "" for neither
    Raises FileError where the tensors are not those its configuration promises, UnsupportedError for an unknown
    architecture, UsageError for an unknown dtype.
    """
    config = checkpoint.config
    read = weight_reader(checkpoint)
    if threads is not None:
        torch.set_num_threads(threads)
    if compute_dtype:
        kernel: Kernel = StoredKernel(compute_dtype, device)
    else:
        kernel = choose_kernel(config, dtype=dtype, dense=dense, device=device)
    ops = TorchOps(device)
    weights = load_weights(config, read, kernel, ops, device=device, report=report)
    return LanguageModel(checkpoint.name, Decoder(config, weights, ops), checkpoint.tokenizer())


def choose_kernel(config: ModelConfig, *, dtype: str, dense: bool | None, device: str = "cpu") -> Kernel:
    """The dense kernel or the one that decodes on demand; see `load_torch_model`."""
    kernel = DenseKernel(dtype, device)
    if dense is None:
        room = available_memory()
        dense = device != "cpu" or room is None or dense_bytes(config, dtype) <= room // 2
    return kernel if dense else OnDemandKernel(device)


def dense_bytes(config: ModelConfig, dtype: str = "float32") -> int:
    """Memory the decoded weights take."""
    return sum(prod(shape) for shape in expected_tensors(config).values()) * DTYPES[dtype].itemsize
