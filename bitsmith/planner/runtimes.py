"""What a runtime takes beside weights and cache, and how near generation comes to the memory's bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.arch.spec import ARCHITECTURES
from bitsmith.errors import UsageError
from bitsmith.planner import published
from bitsmith.planner.cache_memory import BITS, cache_bytes
from bitsmith.planner.devices import Device
from bitsmith.planner.network import Network
from bitsmith.planner.own_memory import own_cache, weight_memory, working_memory
from bitsmith.planner.weights import Stored
from bitsmith.recipe.plan import Target

_OWN = frozenset(spec.gguf for spec in ARCHITECTURES.values())
_LARGE = 70 << 30  # bytes of a device from which on vLLM expects many requests
_UNTRIMMED = frozenset({"llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe"})  # llama.cpp attends to all tokens in these


@dataclass(frozen=True)
class Runtime:
    """A program that runs models.

    share: of the bandwidth that generation reaches; told with every estimate
    reserved: of the device's memory that it leaves alone
    kv: types of keys and values that it has
    error: how far its working memory may be off, and what that rests on
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
            error="whole process, within 5 % (bench/plan.py)",
        ),
        Runtime(
            "llama.cpp",
            "llama.cpp (also in Ollama and LM Studio)",
            share=0.7,
            reserved=0.0,
            kv=("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
            error=f"buffers of published logs, {published.LLAMACPP_ERROR}",
        ),
        Runtime(
            "vllm",
            "vLLM",
            share=0.7,
            reserved=0.1,  # gpu_memory_utilization 0.9
            kv=("f16", "bf16", "fp8"),
            error=f"published profiles, {published.VLLM_ERROR}",
        ),
    )
}


def find_runtime(name: str) -> Runtime:
    """A runtime by name. Raises UsageError for an unknown one."""
    key = {"llamacpp": "llama.cpp", "ollama": "llama.cpp", "lmstudio": "llama.cpp"}.get(name.lower(), name.lower())
    if key not in RUNTIMES:
        raise UsageError(f"--runtime {name}: unknown; known are {', '.join(RUNTIMES)}.")
    return RUNTIMES[key]


def usual_runtime(network: Network, target: Target | None, device: Device) -> Runtime:
    """What runs a format on a device: bitsmith on a plain CPU, where it knows the architecture; llama.cpp for GGUF;
    vLLM for the rest on GPUs.
    """
    gguf = target is None or target.container == "gguf"
    if device.kind == "cpu":
        return RUNTIMES["bitsmith" if network.arch in _OWN and not network.experts else "llama.cpp"]
    return RUNTIMES["llama.cpp" if gguf or device.kind == "metal" else "vllm"]


def runs(runtime: Runtime, target: Target | None, device: Device) -> bool:
    """Whether a runtime reads a format there. None, a file's own types or a bare count, is taken to be read."""
    if target is None or target.container == "gguf":
        return runtime.name != "vllm" or target is None
    if runtime.name == "bitsmith":  # where inputs are rounded to 8 bits only torch runs it, which is not planned
        return target.container != "compressed" or target.name.startswith(("w4a16", "w8a16"))
    return runtime.name == "vllm" and device.kind in ("cuda", "rocm")


@dataclass(frozen=True)
class Memory:
    """Bytes that a model takes while it runs."""

    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.working


@dataclass(frozen=True)
class Load:
    """How a model is used: sequences at once, tokens of each, and how their keys and values are kept."""

    context: int
    batch: int = 1
    kv: str = "f16"


def memory(network: Network, weights: Stored, load: Load, runtime: Runtime, device: Device) -> Memory:
    """What a runtime takes for a model in a format under a load."""
    if runtime.name == "bitsmith":
        return Memory(
            weight_memory(network, weights),
            own_cache(network, load.context, batch=load.batch, bits=BITS[load.kv]),
            working_memory(network, load.context, batch=load.batch),
        )
    windows = runtime.name != "llama.cpp" or network.arch not in _UNTRIMMED
    cache = cache_bytes(network, load.context, batch=load.batch, type=load.kv, windows=windows)
    context = published.CUDA_CONTEXT if device.kind in ("cuda", "rocm") else 0
    if runtime.name == "llama.cpp":
        compute = published.llamacpp_compute(network.hidden, network.heads, network.vocab, load.context * load.batch)
        return Memory(weights.total, cache, round(compute) + context)
    many = device.memory >= _LARGE and "a100" not in device.name  # vLLM's default of max_num_seqs
    overhead = published.vllm_overhead(network.vocab, sequences=1024 if many else 256)
    return Memory(weights.total, cache, round(overhead) + context)
