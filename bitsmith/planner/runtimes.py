"""Memory that a runtime takes beside weights and cache, and how much of the bandwidth its generation reaches."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.containers import CONTAINERS, find_container, module_containers
from bitsmith.containers.floats import FLOATS, WRITTEN_FLOATS
from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import UsageError, quoted
from bitsmith.planner import published
from bitsmith.planner.cache_memory import BITS, cache_bytes
from bitsmith.planner.devices import Device
from bitsmith.planner.network import Network
from bitsmith.planner.own_memory import own_cache, weight_memory, working_memory
from bitsmith.planner.weights import Stored
from bitsmith.recipe.target import Target
from bitsmith.runtime.core_network import CORE_ARCHITECTURES

CACHE_BLOCK = 32  # numbers in one block of ggml's quantized caches
_LARGE = 70 << 30  # bytes; on devices with this much memory vLLM reserves for more requests
_UNTRIMMED = ("llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "phi3")  # for these, llama.cpp ignores windows


@dataclass(frozen=True)
class Runtime:
    """A program that runs models.

    share: share of the bandwidth that generation reaches, 0 to 1; printed with every estimate
    reserved: share of the device's memory that it does not use, 0 to 1
    kv: its types of keys and values
    error: error of its working memory and how it was found, in words
    """

    name: str
    title: str
    share: float
    reserved: float
    kv: tuple[str, ...]
    error: str


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "bitsmith",
            "bitsmith run",
            share=0.8,
            reserved=0.0,
            kv=("f16", "q8_0", "f32"),
            error="the whole process, error at most 5 % (bench/plan.py)",
        ),
        Runtime(
            "llama.cpp",
            "llama.cpp (also in Ollama and LM Studio)",
            share=0.7,
            reserved=0.0,
            kv=("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
            error=f"buffers fitted to published logs, error {published.LLAMACPP_ERROR}",
        ),
        Runtime(
            "vllm",
            "vLLM",
            share=0.7,
            reserved=0.1,  # gpu_memory_utilization 0.9
            kv=("f16", "bf16", "fp8"),
            error=f"fitted to published profiles, error of {published.VLLM_ERROR}",
        ),
    )
}


def find_runtime(name: str) -> Runtime:
    """A runtime by name. Raises UsageError for an unknown one."""
    key = {"llamacpp": "llama.cpp", "ollama": "llama.cpp", "lmstudio": "llama.cpp"}.get(name.lower(), name.lower())
    if key not in RUNTIMES:
        raise UsageError(f"--runtime={quoted(name)}: unknown; expected {', '.join(RUNTIMES)}.")
    return RUNTIMES[key]


def container_of(target: Target | None, network: Network) -> str:
    """The container of a format: "gguf", "native", "gptq", ...; "floats" if every runtime reads it.

    target: None for a file with the types it has now
    """
    if target is None:
        layouts = {tensor.layout for tensor in network.tensors if tensor.rows > 1}
        held = next((layout.partition("/")[0] for layout in layouts if "/" in layout), "")
        if held:
            return {"bitsmith": "native", "fp8": "compressed"}.get(held, held)  # vLLM reads FP8 of every tool
        if layouts <= FLOATS:
            return "floats"
        return "gguf" if layouts <= TYPES.keys() else "compressed"  # for example FP8 of other tools; vLLM reads these
    return "floats" if target.name in WRITTEN_FLOATS else target.container


def usual_runtime(network: Network, container: str, device: Device) -> Runtime:
    """The usual runtime of a container on a device.

    It is bitsmith on a CPU if bitsmith knows the architecture, vLLM on GPUs for the containers it reads, else
    llama.cpp.
    """
    if device.kind == "cpu" and _knows(network):
        return RUNTIMES["bitsmith"]
    return RUNTIMES["vllm" if _reads("vllm", container) and device.kind in ("cuda", "rocm") else "llama.cpp"]


def keeps_cache(runtime: Runtime, kv: str, network: Network) -> bool:
    """Whether a runtime that has this type of keys and values can keep those of the model.

    llama.cpp stores them in blocks of 32 inside each head (llama-context.cpp, build 11434; a quantized V needs flash
    attention, which it turns on by itself). bitsmith pads heads to whole blocks. Types that the runtime does not have
    are not judged here.
    """
    if runtime.name != "llama.cpp" or not kv.startswith("q"):
        return True
    heads = max(network.kv_heads, 1)
    latent = [cache.keys for cache in network.caches if cache.keys and not cache.values]
    split = [width // heads for cache in network.caches if cache.values for width in (cache.keys, cache.values)]
    return all(size % CACHE_BLOCK == 0 for size in (*latent, *split))


def runs(runtime: Runtime, container: str, name: str, network: Network, device: Device) -> bool:
    """Whether a runtime runs a container (see `container_of`) on the device. name: name of the format"""
    if runtime.name == "bitsmith":  # only torch runs formats that round their inputs, and torch is not planned
        return device.kind == "cpu" and _knows(network) and not _rounds_inputs(container, name)
    if runtime.name == "vllm":
        return (container == "floats" or _reads("vllm", container)) and device.kind in ("cuda", "rocm")
    return container == "floats" or _reads("llama.cpp", container)


def _reads(runtime: str, container: str) -> bool:
    return container in CONTAINERS and runtime in find_container(container).runtimes


def _rounds_inputs(container: str, name: str) -> bool:
    """Whether this scheme rounds the inputs of its products."""
    row = module_containers().get(container)
    if row is None or not any(scheme.inputs for scheme in row.schemes.values()):
        return False
    plain = tuple(known for known, scheme in row.schemes.items() if not scheme.inputs)
    return not name.startswith(plain)


def _knows(network: Network) -> bool:
    return network.arch in CORE_ARCHITECTURES


@dataclass(frozen=True)
class Memory:
    """Bytes that a running model takes. Each device takes `working` bytes."""

    weights: int
    cache: int
    working: int

    def total(self, count: int) -> int:
        """All bytes on `count` devices together."""
        return self.weights + self.cache + count * self.working


@dataclass(frozen=True)
class Workload:
    """How a model is used.

    context: number of tokens of one sequence
    batch: number of sequences at once
    kv: type of keys and values
    """

    context: int
    batch: int = 1
    kv: str = "f16"


def weights_in_memory(network: Network, weights: Stored, runtime: Runtime) -> int:
    """Bytes of the weights in the runtime's layout."""
    return weight_memory(network, weights) if runtime.name == "bitsmith" else weights.total


def cache_in_memory(network: Network, workload: Workload, runtime: Runtime) -> int:
    """Bytes of keys and values in the runtime's layout."""
    if runtime.name == "bitsmith":
        return own_cache(network, workload.context, batch=workload.batch, bits=BITS[workload.kv])
    windows = runtime.name != "llama.cpp" or network.arch not in _UNTRIMMED
    return cache_bytes(network, workload.context, batch=workload.batch, type=workload.kv, windows=windows)


def working(network: Network, workload: Workload, runtime: Runtime, device: Device, *, count: int = 1) -> int:
    """Bytes that a runtime takes beside weights and cache, on each of `count` devices."""
    if runtime.name == "bitsmith":
        return working_memory(network, workload.context, batch=workload.batch)
    context = published.CUDA_CONTEXT if device.kind in ("cuda", "rocm") else 0
    if runtime.name == "llama.cpp":
        compute = published.llamacpp_compute(
            network.hidden, network.heads, network.vocab, workload.context * workload.batch
        )
        return round(compute) + context
    many = device.memory >= _LARGE and "a100" not in device.name  # vLLM's default of max_num_seqs
    overhead = published.vllm_overhead(network.vocab, sequences=1024 if many else 256, gpus=count)
    return round(overhead) + context
