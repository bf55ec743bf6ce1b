"""Whether a model in a format fits a device. If not: how much context fits, or how many layers or devices it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bitsmith.planner.devices import Device
from bitsmith.planner.network import Network
from bitsmith.planner.runtimes import Memory, Runtime, Workload, cache_in_memory, weights_in_memory, working
from bitsmith.planner.weights import Stored

SYSTEM_BANDWIDTH = 50e9  # bytes/s of the system memory that holds layers outside the device: two channels of DDR4
_LEAST_CONTEXT = 256  # tokens; a shorter context is useless
_MOST_DEVICES = 64
_UNLIMITED = 1 << 20  # tokens, if the model's context is unknown

_WORDS = {"fits": "fits", "no runtime": "no runtime for it", "no cache": "no such cache"}

Kind = Literal["fits", "less context", "partly outside", "too large", "no runtime", "no cache"]


@dataclass(frozen=True)
class Verdict:
    """Whether a model in a format fits `count` devices of one kind.

    room: bytes that the runtime may take, on all devices together
    context: number of tokens that fit, at most the model's context; 0 if none fit
    outside, outside_bytes: number of layers that must lie in system memory, and their bytes; 0 if all fit
    needed: if it does not fit, number of these devices that hold the model; 0 if no number does, and for unified
        memory and CPUs
    speed: generated tokens a second of one sequence, at the planned context; None if the bandwidth is unknown or the
        model is too large
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
        """The verdict in a few words, for the table."""
        if self.kind in _WORDS:
            return _WORDS[self.kind]
        if self.kind == "less context":
            return f"fits {self.context:,} tokens"
        needs = f"needs {self.needed}" if self.needed > self.count else "does not fit"
        return f"{needs}, or {self.outside} out" if self.kind == "partly outside" else needs


@dataclass(frozen=True)
class FitCheck:
    """Checks whether a model in a format, with a workload and a runtime, fits devices of one kind."""

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
        """The verdict. If the model does not fit, it says what would help."""
        held = weights_in_memory(self.network, self.weights, self.runtime)
        taken = self._memory(held, self.workload.context)
        verdict = Verdict(self.device, self.count, self.runtime, taken, self.room, "fits", self._most_context(held))
        if not self._fits(taken):
            verdict = self._helped(verdict)
        return replace(verdict, speed=self._speed(verdict))

    def unrunnable(self, kind: Kind) -> Verdict:
        """The verdict for a format that no runtime runs on the device, or for a cache that the runtime cannot keep."""
        held = weights_in_memory(self.network, self.weights, self.runtime)
        taken = self._memory(held, self.workload.context)
        return Verdict(self.device, self.count, self.runtime, taken, self.room, kind, 0)

    @property
    def _free(self) -> int:
        return round(self.device.usable * (1 - self.runtime.reserved))

    @property
    def _cards(self) -> bool:
        """Whether the device has its own memory beside the system's, so that several can be used together."""
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
        """Number of tokens that fit, at most the model's context; 0 if fewer than _LEAST_CONTEXT fit."""
        low, high = 0, self.network.context or _UNLIMITED
        if self._fits(self._memory(held, high)):
            return high
        while high - low > 1:  # the memory grows with the context
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(self._memory(held, middle)) else (low, middle)
        return low if low >= _LEAST_CONTEXT else 0

    def _helped(self, verdict: Verdict) -> Verdict:
        """The verdict with what makes the model fit: less context, else layers in system memory, else more devices."""
        needed = self._needed(verdict.memory) if self._cards else 0
        if verdict.context:
            return replace(verdict, kind="less context", needed=needed)
        if not self._cards or self.runtime.name == "vllm":  # vLLM with weights in system memory is not planned
            return replace(verdict, kind="too large", needed=needed)
        outside, nbytes = self._outside(verdict)
        kind: Kind = "partly outside" if outside < self.network.layers else "too large"
        return replace(verdict, kind=kind, outside=outside, outside_bytes=nbytes, needed=needed)

    def _layer_bytes(self, taken: Memory) -> list[int]:
        """Bytes in memory of each layer's weights and cache."""
        stored = self.weights.layer_bytes(self.network)
        scale = taken.weights / max(self.weights.total, 1)
        return [round(scale * nbytes) + taken.cache // max(len(stored), 1) for nbytes in stored]

    def _needed(self, taken: Memory) -> int:
        """Number of devices that hold the model; 0 if no number does.

        A device holds whole layers. With vLLM it holds a part of every matrix.
        """
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
        """Number of layers, with their cache, that must leave the devices so that the rest fits, and their bytes."""
        over = verdict.total - verdict.room
        left, moved = 0, 0
        for nbytes in self._layer_bytes(verdict.memory):
            if over <= moved:
                break
            left, moved = left + 1, moved + nbytes
        return (left, moved) if over <= moved else (self.network.layers, moved)

    def _speed(self, verdict: Verdict) -> float | None:
        """Tokens a second: the runtime's share of the bandwidth, divided by the bytes read for a token.

        Layers outside are read at SYSTEM_BANDWIDTH. Sequences of a batch share the weights, and each reads its own
        cache. Several devices work one after the other.
        """
        if not self.device.bandwidth or verdict.kind == "too large":
            return None
        workload = replace(self.workload, context=verdict.context) if verdict.kind == "less context" else self.workload
        read = self.weights.read_bytes(self.network) + cache_in_memory(self.network, workload, self.runtime)
        away = min(verdict.outside_bytes / max(verdict.memory.weights + verdict.memory.cache, 1), 1.0)
        seconds = read * ((1 - away) / self.device.bandwidth + away / SYSTEM_BANDWIDTH)
        return self.runtime.share / seconds
