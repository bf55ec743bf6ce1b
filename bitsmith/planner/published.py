"""What others published: quality by format, and the memory that llama.cpp and vLLM take beside weights and cache.

`published.json` holds the figures, each with its source. None is bitsmith's own measurement.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

CUDA_CONTEXT = 334_757_888
"""Bytes that a CUDA process takes before it allocates anything: 319.25 MiB, the largest of those found.

By PyCUDA on a Titan V (https://github.com/pytorch/pytorch/issues/28394); 256 MiB on an RTX 3090
(https://github.com/invoke-ai/InvokeAI/issues/9413); about 300 MB where kernels are loaded as they are needed
(https://github.com/pytorch/pytorch/issues/107667). PyTorch that loaded all of its kernels took about 1 GB.
"""

# Tensors of [ubatch, hidden] float32 alive with the largest ones: fitted, see `llamacpp_compute`.
LLAMACPP_BESIDE_LOGITS = 0.999
LLAMACPP_BESIDE_SCORES = 4.000

LLAMACPP_ERROR = "at most 12.8 %, median 3.1 %, on 6 logs that were not fitted"
"""Relative error of `llamacpp_compute`."""

VLLM_COPIES = 9.815  # float32 copies of the logits alive at the peak: fitted, see `vllm_overhead`

VLLM_ERROR = "activations at most 4.7 %, median 0.9 %, on 5 logs that were not fitted; graphs 0.1 to 1 GiB"
"""Relative error of `vllm_overhead`, of its largest part."""


@dataclass(frozen=True)
class Quality:
    """One published figure of a quantized model.

    model, parameters: its name, and how many weights it has
    format: as bitsmith calls it, lower case: "q4_k_m", "int4-g128", "nf4", "fp8"
    method: how the codes were chosen: "nearest", "gptq", "awq", "llama.cpp", "llama.cpp with imatrix"
    metric: "perplexity" and "kld" (nats a token, mean) are better low; the tasks, in percent, better high
    value, baseline: the metric, and the same of the model in 16 bits; 0 for "kld"
    text: what it was measured on
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
    """Buffers that a published log of llama.cpp, or of its fork ik_llama.cpp, names; all layers are on `device`.

    context, ubatch: tokens of the cache, and of one pass
    kv_cache_bytes, compute_bytes: on the device
    host_compute_bytes: in pinned memory of the host; None where the log names no such buffer
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
    """What vLLM's profile of a model says, in bytes on each of its GPUs.

    sequences: requests at once, vLLM's default where the source says no other: 256, and in versions of 2025 and later
        1024 on GPUs of 70 GiB and more, the A100 excepted (`get_batch_defaults` in vllm/engine/arg_utils.py)
    multimodal: the profile also ran an encoder of images
    graph_bytes: what capturing CUDA graphs took; below 0 where it freed more than it took, None where it is not said
    non_torch_bytes: allocated past PyTorch, without the CUDA context in versions of 2025 and later
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
    """Published figures of one format, in any case, or of all of them; none for a format nobody published."""
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

    The buffer is as large as the tensors alive at the worst moment, one of two: the logits, [ubatch, vocab] float32;
    or attention, whose mask is [ubatch, context] float32 and, without flash attention, whose scores are
    [heads, ubatch, context] float32; with it the mask is there in float16 too. Beside either live some tensors of
    [ubatch, hidden] float32: how many, by least squares of the relative error over seven published logs. On the
    six others the largest error is 12.8 %, the median 3.1 % (LLAMACPP_ERROR), none above the log by more than 0.1 %.
    No log of long context has flash attention at its peak: there the form stands without a check.

    For dense models and mixtures on one GPU. Latent attention (DeepSeek), windowed attention's second mask, several
    GPUs and experts held in RAM take more. Newer servers reserve the logits of as few tokens as they sample
    ("n_outputs_max = 1", https://github.com/ggml-org/llama.cpp/issues/27680): there the figure is an upper bound.
    """
    logits, attention, width = _stages(hidden, heads, vocab, context, ubatch, flash_attention)
    return max(logits + LLAMACPP_BESIDE_LOGITS * width, attention + LLAMACPP_BESIDE_SCORES * width)


def vllm_overhead(vocab: int, *, sequences: int = 256, gpus: int = 1) -> float:
    """Bytes that vLLM takes on each of its GPUs beside weights, cache and CUDA context, for a text model.

    Its profile samples `sequences` tokens at once, whose logits, [sequences, vocab] float32, are what a model's
    activations peak at: 9.8 copies of them, by least squares of the relative error over five published logs. On the
    five others the largest error is 4.7 %, the median 0.9 % (VLLM_ERROR). To these come, as medians of what is
    published, the CUDA graphs, 0.39 GiB (0.10 to 1.03 GiB; in five runs of eight capturing freed memory, and these are
    left out), and what is allocated past PyTorch: 0.13 GiB on one GPU (0.03 to 1.79 GiB), 0.55 GiB on each of two
    (0.54 to 3.58 GiB); the largest are of December 2024.

    Models with encoders of images are off by far: from half of it to 36.6 GiB of activations.
    """
    records = [record for record in vllm_memory() if not record.multimodal]
    graphs = [record.graph_bytes for record in records if record.graph_bytes is not None and record.graph_bytes > 0]
    non_torch = [record.non_torch_bytes for record in records if (record.gpus > 1) == (gpus > 1)]
    return VLLM_COPIES * 4 * sequences * vocab + statistics.median(graphs) + statistics.median(non_torch)


def _stages(
    hidden: int, heads: int, vocab: int, context: int, ubatch: int, flash_attention: bool
) -> tuple[int, int, int]:
    """Bytes of the logits, of the scores with their mask, and of one tensor as wide as the model."""
    cell = 4 + 2 if flash_attention else 4 + 4 * heads  # of the mask and the scores, for each token and position
    return 4 * ubatch * vocab, ubatch * context * cell, 4 * ubatch * hidden


@cache
def _tables() -> tuple[tuple[Quality, ...], tuple[LlamaCppMemory, ...], tuple[VllmMemory, ...]]:
    tables = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return (
        tuple(Quality(**record) for record in tables["quality"]),
        tuple(LlamaCppMemory(**record) for record in tables["llama.cpp"]),
        tuple(VllmMemory(**record) for record in tables["vllm"]),
    )
