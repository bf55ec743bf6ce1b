"""Memory that `bitsmith run` takes on the C++ core. It adds up the core's allocations (csrc/run)."""

from __future__ import annotations

from bitsmith.planner.network import Network
from bitsmith.planner.weights import Stored
from bitsmith.quant.formats.base import Format
from bitsmith.quant.tensor import TensorInfo

# Fitted to the peak memory of `bitsmith run` by bench/plan.py, which also checks them on other runs (docs/LOG.md).
BASE = 56_000_000  # bytes: Python, numpy, the core and tokenizers, before a model is opened
TOKEN = 380  # bytes for each token of the vocabulary: the tokenizer's tables, and sampling

CODES = 14_500_000  # bytes that stay in use after codes of a safetensors folder were read: imported modules

CHUNK = 512  # tokens of a prompt computed at once
_PANEL = 16  # rows in one panel
_WIDTH = 32  # keys and values are padded to a multiple of this
_FLOATS = ("f32", "f16", "bf16")


def weight_memory(network: Network, weights: Stored) -> int:
    """Bytes of the weights in memory. Rows are padded to whole panels. Mapped floats count as far as they are read."""
    found = float(CODES if weights.formats else 0)
    for tensor in network.tensors:
        if tensor.name == "per_layer_token_embd.weight":
            continue  # its rows are read when they are needed
        nbytes = weights.tensors[tensor.name]
        if tensor.name in weights.formats:
            nbytes = _loaded(tensor, weights.formats[tensor.name])
        if tensor.name not in weights.formats and _mapped(tensor, nbytes):
            found += nbytes * (network.used(tensor) if tensor.name == "token_embd.weight" else 1)
        elif len(tensor.shape) > 1:
            found += nbytes * (-(-tensor.rows // _PANEL) * _PANEL) / max(tensor.rows, 1)
        else:
            found += 4 * tensor.parameters
    return round(found)


def _loaded(tensor: TensorInfo, format: Format) -> int:
    """Bytes of codes from a safetensors folder, in the core's layout; in float32 if the core has no layout for them."""
    from bitsmith.runtime.core_grids import block_bytes, grid_layout

    layout = grid_layout(format, tensor.cols)
    return 4 * tensor.parameters if layout is None else tensor.rows * block_bytes(layout, tensor.cols)


def _mapped(tensor: TensorInfo, nbytes: int) -> bool:
    return len(tensor.shape) > 1 and nbytes in (2 * tensor.parameters, 4 * tensor.parameters)


def own_cache(network: Network, context: int, *, batch: int, bits: float) -> int:
    """Bytes of keys and values. Heads are padded to multiples of 32. Layers with a window keep all tokens."""
    width = -(-network.head_dim // _WIDTH) * _WIDTH
    usual, padded = network.kv_heads * network.head_dim, network.kv_heads * width
    numbers = sum(padded if cache.keys == usual else cache.keys for cache in network.caches)
    states = sum(cache.state for cache in network.caches)
    return int(2 * numbers * batch * context * bits / 8) + 4 * batch * states


def working_memory(network: Network, context: int, *, batch: int = 1) -> int:
    """Bytes beside weights and cache: rotations, activations of one prompt chunk, logits, tokenizer, Python."""
    rows = batch * min(context, CHUNK)
    q, kv, hidden = network.heads * network.head_dim, network.kv_heads * network.head_dim, network.hidden
    # input, norm, sum, output; q, rotated q and the attention's output; k, v; gate and up; inputs rounded twice
    floats = 4 * hidden + 3 * q + 2 * kv + 2 * network.intermediate
    gathered = hidden * network.experts_used  # each expert has inputs and outputs of its own
    floats += 2 * gathered
    rounded = 2 * 2 * max(hidden, q, network.intermediate, gathered)
    rotations = 5 * 4 * context * network.head_dim // 2
    return BASE + TOKEN * network.vocab + rows * (4 * floats + rounded) + rotations + batch * 4 * network.vocab
