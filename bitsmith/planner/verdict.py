"""Whether a model in a format fits a device: with how much context, how many layers outside, on how many devices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bitsmith.planner.devices import Device
from bitsmith.planner.network import Network
from bitsmith.planner.runtimes import Memory, Runtime, Workload, cache_in_memory, weights_in_memory, working
from bitsmith.planner.weights import Stored

SYSTEM_BANDWIDTH = 50e9  # bytes/s of system memory that layers outside the device are read at: two channels of DDR4
_LEAST_CONTEXT = 256  # tokens: with fewer a model is of no use
_MOST_DEVICES = 64
_UNLIMITED = 1 << 20  # tokens, where a model does not say how many it was made for

Kind = Literal["fits", "less context", "partly outside", "too large", "no runtime"]


@dataclass(frozen=True)
class Verdict:
    """A model in a format on a device, or on `count` of them.

    room: bytes that the runtime may take, on all of them together
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
    def total(self) -> int:
        """Bytes in use on all devices together."""
        return self.memory.total(self.count)

    @property
    def text(self) -> str:
        """In a few words."""
        if self.kind in ("fits", "no runtime"):
            return "fits" if self.kind == "fits" else "nothing runs it there"
        if self.kind == "less context":
            return f"fits to {self.context:,} tokens"
        needs = f"needs {self.needed}" if self.needed > self.count else "does not fit"
        return f"{needs}, or {self.outside} out" if self.kind == "partly outside" else needs


@dataclass(frozen=True)
class FitCheck:
    """One question: a model in a format, a workload, a runtime, devices of a kind."""

    network: Network
    weights: Stored
    workload: Workload
    runtime: Runtime
    device: Device
    count: int = 1

    @property
    def room(self) -> int:
        """Bytes that the runtime may take, on all devices together."""
        return self.count * self._free

    def judged(self) -> Verdict:
        """The verdict, with what would help where it does not fit."""
        held = weights_in_memory(self.network, self.weights, self.runtime)
        taken = self._memory(held, self.workload.context)
        verdict = Verdict(self.device, self.count, self.runtime, taken, self.room, "fits", self._most_context(held))
        if not self._fits(taken):
            verdict = self._helped(verdict)
        return replace(verdict, speed=self._speed(verdict))

    def unrunnable(self) -> Verdict:
        """The verdict where nothing runs the format."""
        held = weights_in_memory(self.network, self.weights, self.runtime)
        taken = self._memory(held, self.workload.context)
        return Verdict(self.device, self.count, self.runtime, taken, self.room, "no runtime", 0)

    @property
    def _free(self) -> int:
        return round(self.device.usable * (1 - self.runtime.reserved))

    @property
    def _cards(self) -> bool:
        """Whether there is system memory beside the device's, and may be more than one device."""
        return not self.device.unified and self.device.kind != "cpu"

    def _memory(self, held: int, context: int) -> Memory:
        workload = replace(self.workload, context=context)
        beside = working(self.network, workload, self.runtime, self.device, count=self.count)
        return Memory(held, cache_in_memory(self.network, workload, self.runtime), beside)

    def _fits(self, taken: Memory) -> bool:
        if taken.total(self.count) > self.room:
            return False
        return self.count == 1 or 0 < self._needed(taken) <= self.count

    def _most_context(self, held: int) -> int:
        """Tokens of context that fit, up to the model's own; 0 where not even a few do."""
        low, high = 0, self.network.context or _UNLIMITED
        if self._fits(self._memory(held, high)):
            return high
        while high - low > 1:  # the memory grows with the context
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(self._memory(held, middle)) else (low, middle)
        return low if low >= _LEAST_CONTEXT else 0

    def _helped(self, verdict: Verdict) -> Verdict:
        """What makes it fit: less context, else layers in system memory, else more devices."""
        needed = self._needed(verdict.memory) if self._cards else 0
        if verdict.context:
            return replace(verdict, kind="less context", needed=needed)
        if not self._cards or self.runtime.name == "vllm":  # which reads weights over the bus, slowly, or not at all
            return replace(verdict, kind="too large", needed=needed)
        outside, nbytes = self._outside(verdict)
        kind: Kind = "partly outside" if outside < self.network.layers else "too large"
        return replace(verdict, kind=kind, outside=outside, outside_bytes=nbytes, needed=needed)

    def _layer_bytes(self, taken: Memory) -> list[int]:
        """Of each layer weights and cache, as they lie in memory."""
        stored = self.weights.layer_bytes(self.network)
        scale = taken.weights / max(self.weights.total, 1)
        return [round(scale * nbytes) + taken.cache // max(len(stored), 1) for nbytes in stored]

    def _needed(self, taken: Memory) -> int:
        """Devices that hold it, layers whole but with vLLM, which cuts every matrix; 0 where no number does."""
        free = self._free - taken.working
        if free <= 0:
            return 0
        whole = taken.weights + taken.cache
        if self.runtime.name == "vllm":
            count = -(-whole // free)
        else:
            layers = self._layer_bytes(taken)
            count, used = 1, 0
            for nbytes in [*layers, max(whole - sum(layers), 0)]:  # embedding and head last
                if nbytes > free:
                    return 0
                count, used = (count, used + nbytes) if used + nbytes <= free else (count + 1, nbytes)
        return count if count <= _MOST_DEVICES else 0

    def _outside(self, verdict: Verdict) -> tuple[int, int]:
        """Layers, with their cache, that must leave the devices for the rest to fit, and their bytes."""
        over = verdict.total - verdict.room
        left, moved = 0, 0
        for nbytes in self._layer_bytes(verdict.memory):
            if over <= moved:
                break
            left, moved = left + 1, moved + nbytes
        return (left, moved) if over <= moved else (self.network.layers, moved)

    def _speed(self, verdict: Verdict) -> float | None:
        """Bytes read for a token over the bandwidth, the runtime's share of it; layers outside at system memory's.

        Sequences of a batch share the weights, and each reads its own cache. Several devices work one after the other.
        """
        if not self.device.bandwidth or verdict.kind == "too large":
            return None
        workload = replace(self.workload, context=verdict.context) if verdict.kind == "less context" else self.workload
        read = self.weights.read_bytes(self.network) + cache_in_memory(self.network, workload, self.runtime)
        away = min(verdict.outside_bytes / max(verdict.memory.weights + verdict.memory.cache, 1), 1.0)
        seconds = read * ((1 - away) / self.device.bandwidth + away / SYSTEM_BANDWIDTH)
        return self.runtime.share / seconds
