"""Whether a model in a format fits a device: with how much context, how many layers outside, on how many devices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bitsmith.planner.cache_memory import BITS, cache_bytes
from bitsmith.planner.devices import Device
from bitsmith.planner.network import Network
from bitsmith.planner.runtimes import Load, Memory, Runtime, memory, runs
from bitsmith.planner.weights import Stored
from bitsmith.recipe.plan import Target

SYSTEM_BANDWIDTH = 50e9  # bytes/s of system memory that layers outside the device are read at: two channels of DDR4
_LEAST_CONTEXT = 256  # tokens: with fewer a model is of no use
_MOST_DEVICES = 64

Kind = Literal["fits", "less context", "partly outside", "too large", "no runtime"]


@dataclass(frozen=True)
class Verdict:
    """A model in a format on a device, or on `count` of them.

    room: bytes that the runtime may take
    context: tokens that fit, at most the model's own context; 0: none
    outside: layers that must lie in system memory, and their bytes; 0 where all fit
    needed: devices of this kind that hold it all; 0 for unified memory and CPUs, and where no number does
    speed: tokens a second of one sequence, generation, at the asked context; None where the bandwidth is not known
    """

    device: Device
    count: int
    runtime: Runtime
    memory: Memory
    room: int
    kind: Kind
    context: int
    outside: int = 0
    outside_bytes: int = 0
    needed: int = 0
    speed: float | None = None

    @property
    def text(self) -> str:
        """In a few words."""
        if self.kind in ("fits", "no runtime"):
            return "fits" if self.kind == "fits" else "nothing runs it there"
        if self.kind == "less context":
            return f"fits to {self.context:,} tokens"
        needs = f"needs {self.needed}" if self.needed > self.count else ""
        if self.kind == "partly outside":
            return f"{self.outside} layers outside" + (f", or {needs}" if needs else "")
        return "does not fit" + (f", {needs}" if needs else "")


def judge(
    network: Network,
    weights: Stored,
    load: Load,
    runtime: Runtime,
    device: Device,
    *,
    target: Target | None = None,
    count: int = 1,
) -> Verdict:
    """The verdict, with what would help where it does not fit. target: None for what a file has, and for counts."""
    taken = memory(network, weights, load, runtime, device)
    room = round(count * device.usable * (1 - runtime.reserved))
    if not runs(runtime, target, device):
        return Verdict(device, count, runtime, taken, room, "no runtime", 0)
    context = largest_context(network, weights, load, runtime, device, count=count)
    verdict = Verdict(device, count, runtime, taken, room, "fits", context)
    if not fits(taken, room, count):
        verdict = _helped(verdict, network, weights, load)
    return replace(verdict, speed=_speed(verdict, network, weights, load))


def fits(taken: Memory, room: int, count: int) -> bool:
    """Whether it does; each of several devices has working memory of its own."""
    return taken.weights + taken.cache + count * taken.working <= room


def largest_context(
    network: Network, weights: Stored, load: Load, runtime: Runtime, device: Device, *, count: int = 1
) -> int:
    """Tokens of context that fit, up to the model's own; 0 where not even a few do."""
    room = round(count * device.usable * (1 - runtime.reserved))
    low, high = 0, network.context or 1 << 20

    def enough(context: int) -> bool:
        return fits(memory(network, weights, replace(load, context=context), runtime, device), room, count)

    if enough(high):
        return high
    while high - low > 1:  # the memory grows with the context
        middle = (low + high) // 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low if low >= _LEAST_CONTEXT else 0


def _helped(verdict: Verdict, network: Network, weights: Stored, load: Load) -> Verdict:
    """What makes it fit: less context, else layers in system memory, else more devices."""
    device = verdict.device
    if verdict.context:
        return replace(verdict, kind="less context", needed=_needed(verdict))
    if device.unified or device.kind == "cpu":
        return replace(verdict, kind="too large")
    outside, nbytes = _outside(verdict, network, weights, load)
    kind: Kind = "partly outside" if outside < network.layers else "too large"
    return replace(verdict, kind=kind, outside=outside, outside_bytes=nbytes, needed=_needed(verdict))


def _needed(verdict: Verdict) -> int:
    """Devices that hold it; 0 for those that are no cards, and where no number does."""
    taken, device = verdict.memory, verdict.device
    if device.unified or device.kind == "cpu":
        return 0
    free = device.usable * (1 - verdict.runtime.reserved) - taken.working
    if free <= 0:
        return 0
    count = -(-(taken.weights + taken.cache) // round(free))
    return count if count <= _MOST_DEVICES else 0


def _outside(verdict: Verdict, network: Network, weights: Stored, load: Load) -> tuple[int, int]:
    """Layers, with their cache, that must leave the device for the rest to fit, and their bytes."""
    over = verdict.memory.weights + verdict.memory.cache + verdict.count * verdict.memory.working - verdict.room
    cache = verdict.memory.cache // max(network.layers, 1)
    left, moved = 0, 0
    for nbytes in weights.layer_bytes(network):
        if over <= moved:
            break
        left, moved = left + 1, moved + nbytes + cache
    return (left, moved) if over <= moved else (network.layers, moved)


def _speed(verdict: Verdict, network: Network, weights: Stored, load: Load) -> float | None:
    """Bytes read for a token over the bandwidth, the runtime's share of it; layers outside at system memory's."""
    if not verdict.device.bandwidth or verdict.kind == "too large":
        return None
    read = weights.read_bytes(network)
    context = verdict.context if verdict.kind == "less context" else load.context
    cache = cache_bytes(network, context, type=load.kv) if load.kv in BITS else 0
    away = min(verdict.outside_bytes / max(verdict.memory.weights + verdict.memory.cache, 1), 1.0)
    seconds = (read + cache) * ((1 - away) / verdict.device.bandwidth + away / SYSTEM_BANDWIDTH)
    return verdict.runtime.share / seconds
