"""Published figures: quality by format, and memory that llama.cpp and vLLM take beside weights and cache.

`published.json` holds the figures, each with its source. None of them is bitsmith's own measurement.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

CUDA_CONTEXT = 334_757_888
"""Bytes that a CUDA process takes before it allocates anything: 319.25 MiB, the largest published figure.

It was measured with PyCUDA on a Titan V (https://github.com/pytorch/pytorch/issues/28394). Others: 256 MiB on an
RTX 3090 (https://github.com/invoke-ai/InvokeAI/issues/9413); about 300 MB with kernels loaded on demand
(https://github.com/pytorch/pytorch/issues/107667). A PyTorch that loaded all of its kernels took about 1 GB.
"""

# Number of float32 tensors [ubatch, hidden] in memory beside the largest ones; fitted, see `llamacpp_compute`.
LLAMACPP_BESIDE_LOGITS = 0.999
LLAMACPP_BESIDE_SCORES = 4.000

LLAMACPP_ERROR = "at most 12.8 %, median 3.1 %, on 6 other logs"
"""Relative error of `llamacpp_compute`."""

VLLM_COPIES = 9.815  # number of float32 copies of the logits at the peak; fitted, see `vllm_overhead`

VLLM_ERROR = "activations at most 4.7 %, median 0.9 %, on 5 other logs; graphs 0.1 to 1 GiB"
"""Relative error of the largest part of `vllm_overhead`."""


@dataclass(frozen=True)
class Quality:
    """One published figure of a quantized model.

    model, parameters: the model's name, and its number of weights
    format: bitsmith's name of the format, lower case: "q4_k_m", "int4-g128", "nf4", "fp8"
    method: how the codes were chosen: "nearest", "gptq", "awq", "llama.cpp", "llama.cpp with imatrix"
    metric: "perplexity" or "kld" (mean, nats a token), where lower is better; or a task in percent, where higher is
    value, baseline: the metric of the quantized model, and of the model in 16 bits (0 for "kld")
    text: the text or task it was measured on
    """

    model: str
    parameters: float
    format: str
    method: str
    metric: str
    value: float
    baseline: float
    text: str
    source: str


@dataclass(frozen=True)
class LlamaCppMemory:
    """Buffers in a published log of llama.cpp or of its fork ik_llama.cpp. All layers are on `device`.

    context, ubatch: number of tokens in the cache, and in one pass
    kv_cache_bytes, compute_bytes: buffers on the device
    host_compute_bytes: buffer in pinned memory of the host; None if the log names no such buffer
    """

    model: str
    device: Literal["cuda", "metal", "cpu"]
    context: int
    ubatch: int
    flash_attention: bool
    vocab: int
    hidden: int
    heads: int
    kv_cache_bytes: int | None
    compute_bytes: int
    host_compute_bytes: int | None
    source: str


@dataclass(frozen=True)
class VllmMemory:
    """vLLM's memory profile of a model, in bytes on each of its GPUs.

    sequences: requests at once. If the source does not say, vLLM's default: 256; from 2025 on 1024 on GPUs with at
        least 70 GiB, except the A100 (`get_batch_defaults` in vllm/engine/arg_utils.py)
    multimodal: True if the profile also ran an encoder of images
    graph_bytes: bytes that capturing CUDA graphs took; negative if it freed memory; None if unknown
    non_torch_bytes: bytes allocated outside PyTorch; from 2025 on without the CUDA context
    """

    model: str
    device: str
    gpus: int
    vocab: int
    sequences: int
    multimodal: bool
    weights_bytes: int
    activation_bytes: int
    graph_bytes: int | None
    non_torch_bytes: int
    max_batched_tokens: int | None
    source: str


def quality(format: str | None = None) -> list[Quality]:
    """Published figures of one format (upper or lower case), or of all formats. Empty for an unpublished format."""
    records = _tables()[0]
    return [record for record in records if format is None or record.format == format.lower()]


def llamacpp_memory() -> list[LlamaCppMemory]:
    """Published logs of llama.cpp's buffers."""
    return list(_tables()[1])


def vllm_memory() -> list[VllmMemory]:
    """Published profiles of vLLM's memory."""
    return list(_tables()[2])


def llamacpp_compute(
    hidden: int, heads: int, vocab: int, context: int, *, ubatch: int = 512, flash_attention: bool = True
) -> float:
    """Bytes of llama.cpp's compute buffer on a GPU that holds all layers.

    The buffer holds the tensors of the worst moment. That is either the logits or the attention. The logits are
    [ubatch, vocab] float32. The attention's mask is [ubatch, context] float32. Without flash attention its scores are
    [heads, ubatch, context] float32; with flash attention there is a second mask in float16. At both moments there
    are also some tensors [ubatch, hidden] float32. Their number is fitted to seven published logs, by least squares of
    the relative error. On six other logs the largest error is 12.8 %, the median 3.1 % (LLAMACPP_ERROR); no figure is
    more than 0.1 % above the log. No log has its peak in flash attention with a long context, so that case is
    unchecked.

    It holds for dense models and mixtures on one GPU. Latent attention (DeepSeek), the second mask of windowed
    attention, several GPUs and experts in RAM take more. Newer servers reserve logits only for the tokens that they
    sample ("n_outputs_max = 1", https://github.com/ggml-org/llama.cpp/issues/27680); for them this is an upper bound.
    """
    logits, attention, width = _stages(hidden, heads, vocab, context, ubatch, flash_attention)
    return max(logits + LLAMACPP_BESIDE_LOGITS * width, attention + LLAMACPP_BESIDE_SCORES * width)


def vllm_overhead(vocab: int, *, sequences: int = 256, gpus: int = 1) -> float:
    """Bytes that vLLM takes on each GPU beside weights, cache and CUDA context, for a text model.

    vLLM's profile samples `sequences` tokens at once. Activations peak at their logits, [sequences, vocab] float32, of
    which there are 9.8 copies. This number is fitted to five published logs, by least squares of the relative error.
    On five other logs the largest error is 4.7 %, the median 0.9 % (VLLM_ERROR). Two medians of published figures are
    added. CUDA graphs take 0.39 GiB (0.10 to 1.03 GiB); five of eight runs freed memory there and are left out.
    Allocations outside PyTorch take 0.13 GiB on one GPU (0.03 to 1.79 GiB) and 0.55 GiB on each of two (0.54 to
    3.58 GiB); the largest figures are from December 2024.

    The figure is wrong for models with an encoder of images: they take from half of it to 36.6 GiB of activations.
    """
    records = [record for record in vllm_memory() if not record.multimodal]
    graphs = [record.graph_bytes for record in records if record.graph_bytes is not None and record.graph_bytes > 0]
    non_torch = [record.non_torch_bytes for record in records if (record.gpus > 1) == (gpus > 1)]
    return VLLM_COPIES * 4 * sequences * vocab + statistics.median(graphs) + statistics.median(non_torch)


def _stages(
    hidden: int, heads: int, vocab: int, context: int, ubatch: int, flash_attention: bool
) -> tuple[int, int, int]:
    """Bytes of the logits, of the scores with their mask, and of one tensor [ubatch, hidden]."""
    cell = 4 + 2 if flash_attention else 4 + 4 * heads  # bytes of mask and scores for each token and position
    return 4 * ubatch * vocab, ubatch * context * cell, 4 * ubatch * hidden


@cache
def _tables() -> tuple[tuple[Quality, ...], tuple[LlamaCppMemory, ...], tuple[VllmMemory, ...]]:
    tables = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return (
        tuple(Quality(**record) for record in tables["quality"]),
        tuple(LlamaCppMemory(**record) for record in tables["llama.cpp"]),
        tuple(VllmMemory(**record) for record in tables["vllm"]),
    )
