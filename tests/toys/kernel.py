"""A toy kernel: the decoder on torch, its matrices transposed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitsmith.models.checkpoint import Checkpoint
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.kernels import KernelRow, LoadOptions
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights, weight_reader

products = 0  # counted, so that a test sees the kernel at work


class TransposedKernel:
    """See `bitsmith.runtime.kernel.Kernel`. Prepared: float32 [cols, rows]."""

    def supports(self, layout: str, device: str) -> bool:
        """Everything that can be decoded."""
        return True

    def prepare(self, weight: Weight) -> Tensor:
        """The whole matrix, decoded and transposed."""
        return torch.as_tensor(weight.rows(0, weight.info.rows)).T.contiguous()

    def linear(self, x: Tensor, prepared: Tensor) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]."""
        global products
        products += 1
        return x @ prepared

    def gather(self, prepared: Tensor, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., cols]."""
        return prepared.T[ids]

    def nbytes(self, prepared: Tensor) -> int:
        """Bytes of the matrix."""
        return prepared.nbytes


def load_toy(checkpoint: Checkpoint, options: LoadOptions) -> LanguageModel:
    """The model with transposed matrices."""
    ops: Any = TorchOps()
    weights = load_weights(checkpoint.config, weight_reader(checkpoint), TransposedKernel(), ops)
    return LanguageModel(checkpoint.name, Decoder(checkpoint.config, weights, ops), checkpoint.tokenizer())


ROW = KernelRow("toy", load_toy)
