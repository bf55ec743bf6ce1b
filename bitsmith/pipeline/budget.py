"""Budgets: how many bytes of a planned output are too many."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Protocol

from bitsmith.calibration.work import own_name
from bitsmith.errors import UsageError, quoted
from bitsmith.models.arch.names import in_stack
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.pipeline.budget_config import BudgetConfig
from bitsmith.pipeline.result import Quantized
from bitsmith.planner.cache_memory import check_type
from bitsmith.planner.model_spec import from_checkpoint
from bitsmith.planner.network import Network
from bitsmith.planner.report import DeviceSet, context_of, device_sets_of
from bitsmith.planner.runtimes import Workload, container_of, keeps_cache, usual_runtime
from bitsmith.planner.verdict import FitCheck, Verdict
from bitsmith.planner.weights import Stored, stored
from bitsmith.recipe.target import Target
from bitsmith.system.sizes import human_bytes, parse_size

_MOST = 1000.0  # bits; more make no difference
_NOTHING = re.compile(r"\s*[0.]+\s*[KMGT]?i?B?\s*", re.IGNORECASE)  # a size of zero
WIDEST = 16.0  # bits of the types beyond which nothing is gained


class Budget(Protocol):
    """What an output may take."""

    @property
    def name(self) -> str:
        """For the name of a file: "4.25bpw"."""
        ...

    @property
    def said(self) -> str:
        """The option as the user gave it, for messages."""
        ...

    def about(self, parameters: int) -> float:
        """About how many bits a weight may take."""
        ...

    def over(self, planned: Quantized) -> int:
        """By how many bytes a plan is over the budget; zero or less if it fits."""
        ...

    def smallest(self, planned: Quantized) -> str:
        """What the smallest legal plan takes, in words that the user can give as a budget."""
        ...


@dataclass(frozen=True)
class Bits:
    """Bits of tensor data for each weight."""

    bits: float

    @property
    def name(self) -> str:
        return f"{self.bits:g}bpw"

    @property
    def said(self) -> str:
        return f"--bits={self.bits:g}"

    def about(self, parameters: int) -> float:
        return self.bits

    def over(self, planned: Quantized) -> int:
        held = sum(tensor.info.nbytes for tensor in planned.plan.tensors)
        return held - int(min(self.bits, _MOST) * planned.plan.parameters / 8)

    def smallest(self, planned: Quantized) -> str:
        least = -int(-planned.plan.bits_per_weight * 1000 // 1) / 1000
        return f"the smallest file has {least:.3f} bits per weight ({planned.size:,} bytes)"


@dataclass(frozen=True)
class Size:
    """Bytes of all files. text: as the user gave it"""

    nbytes: int
    text: str

    @property
    def name(self) -> str:
        return self.text.replace(" ", "")

    @property
    def said(self) -> str:
        return f"--size={quoted(self.text)}"

    def about(self, parameters: int) -> float:
        return 8 * self.nbytes / max(parameters, 1)

    def over(self, planned: Quantized) -> int:
        return planned.size - self.nbytes

    def smallest(self, planned: Quantized) -> str:
        return f"the smallest output has {planned.size:,} bytes ({planned.bits_per_weight:.3f} bits per weight)"


@dataclass(frozen=True)
class Fit:
    """Memory of devices, with the cache and what the runtime takes."""

    text: str
    network: Network
    devices: DeviceSet
    workload: Workload
    container: str

    @property
    def name(self) -> str:
        return self.text.replace(" ", "")

    @property
    def said(self) -> str:
        return f"--fit={quoted(self.text)}"

    def about(self, parameters: int) -> float:
        verdict = self._judged(Target("gguf", "q4_k_m"), None)
        beside = verdict.memory.cache + self.devices.count * verdict.memory.working
        return 8 * max(0, verdict.room - beside) / max(parameters, 1)

    def over(self, planned: Quantized) -> int:
        verdict = self.verdict(planned)
        over = verdict.total - verdict.room
        return over if over > 0 or verdict.kind == "fits" else max(1, verdict.room // 200)  # layers are whole

    def verdict(self, planned: Quantized) -> Verdict:
        """What the planner says of a plan."""
        return self._judged(planned.target, self._stored(planned))

    def _judged(self, target: Target, weights: Stored | None) -> Verdict:
        """The verdict of weights, or of those that a target usually has."""
        runtime = usual_runtime(self.network, container_of(target, self.network), self.devices.device)
        if not keeps_cache(runtime, self.workload.kv, self.network):
            raise UsageError(
                f"--kv={self.workload.kv}: {runtime.title} cannot keep such a cache for this model; give --kv=f16."
            )
        held = stored(self.network, target) if weights is None else weights
        return FitCheck(self.network, held, self.workload, runtime, self.devices.device, self.devices.count).judged()

    def smallest(self, planned: Quantized) -> str:
        verdict = self.verdict(planned)
        memory, count = verdict.memory, self.devices.count
        beside = memory.cache + count * memory.working
        if beside >= verdict.room:
            return (
                f"the {self.workload.kv} cache of {self.workload.context:,} tokens ({human_bytes(memory.cache)}) and "
                f"what {verdict.runtime.title} takes ({human_bytes(count * memory.working)}) fill "
                f"{human_bytes(verdict.room)} without any weight; give a smaller --context, or --kv=q8_0"
            )
        return (
            f"with the smallest output, of {human_bytes(memory.weights)}, {verdict.total:,} bytes are in use, and "
            f"there are {verdict.room:,}; give a smaller --context, --kv=q8_0, or more memory"
        )

    def _stored(self, planned: Quantized) -> Stored:
        """The planned tensors as the planner knows them, by the network's names."""
        base = stored(self.network, planned.target)
        known = {name.removesuffix(".weight"): name for name in base.tensors}
        found: dict[str, int] = {}
        formats = {}
        for tensor in planned.plan.tensors:
            own = own_name(tensor)
            expert = in_stack(own)
            name = known.get((own if expert is None else expert[0]).removesuffix(".weight"))
            if name is None:
                continue
            found[name] = found.get(name, 0) + tensor.info.nbytes
            if tensor.format is not None and self.container != "gguf":
                formats[name] = tensor.format
        return replace(base, tensors={**base.tensors, **found}, formats=formats)


def budget_of(config: BudgetConfig, checkpoint: Checkpoint, container: str) -> Budget:
    """The budget that the user gave. Raises UsageError for an unknown device or a wrong cache."""
    if config.bits is not None:
        return Bits(config.bits)
    if config.size is not None:
        return Size(parse_size(config.size), config.size.strip())
    assert config.fit is not None
    network = from_checkpoint(checkpoint, checkpoint.name).network
    kv = check_type(config.kv or "f16")
    workload = Workload(context_of(config.context, network), 1, kv)
    return Fit(config.fit.strip(), network, _devices(config.fit), workload, container)


def _devices(text: str) -> DeviceSet:
    """The device set of `--fit`. For "this": the first card, or the processor if there is none."""
    try:
        memory = parse_size(text)
    except UsageError:
        memory = 0
    if _NOTHING.fullmatch(text):
        raise UsageError(f"--fit={quoted(text)}: no model fits no memory; give more, such as --fit=24GB.")
    try:
        return device_sets_of((), text)[0] if memory else device_sets_of((text,), None)[0]
    except UsageError as error:
        told = error.message.replace("--memory=", "--fit=")
        before = "" if told.startswith("--fit=") else f"--fit={quoted(text)}: "
        raise UsageError(f"{before}{told}") from error
