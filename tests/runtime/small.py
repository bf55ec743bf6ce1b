"""Small random models for tests: transformers' modules as oracles, and decoders on the same weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import hf_name
from bitsmith.models.arch.tensors import expected_tensors
from bitsmith.quant.tensor import TensorInfo
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Kernel, Weight
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights

TINY = ModelConfig(
    arch="llama",
    layers=2,
    hidden=32,
    intermediate=48,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=50,
    context=64,
    norm_eps=1e-5,
)


def weight_of(name: str, values: np.ndarray) -> Weight:
    """A `Weight` that lies in memory."""
    values = np.ascontiguousarray(values, np.float32)
    matrix = values.reshape(-1, values.shape[-1])
    return Weight(TensorInfo(name, values.shape, "f32", values.nbytes), lambda start, stop: matrix[start:stop].copy())


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by GGUF names: norms and scales near 1, everything else Gaussian."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        near = "norm" in name or "scale" in name
        values = rng.standard_normal(shape) * (0.1 if near else 0.3)
        tensors[name] = np.asarray(values + near, np.float32)
    return tensors


def decoder_of(config: ModelConfig, tensors: Mapping[str, np.ndarray], kernel: Kernel | None = None) -> Decoder:
    """A decoder on arrays by GGUF names."""
    ops = TorchOps()
    weights = load_weights(config, lambda name: weight_of(name, tensors[name]), kernel or DenseKernel(), ops)
    return Decoder(config, weights, ops)


def from_state_dict(config: ModelConfig, state: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Arrays by GGUF names from a transformers module's state dict, rows as Hugging Face orders them."""
    arrays = {}
    for name in expected_tensors(config):
        tensor = state[str(hf_name(name))]
        arrays[name] = np.asarray(tensor.detach().float().numpy())  # type: ignore[attr-defined]
    return arrays
