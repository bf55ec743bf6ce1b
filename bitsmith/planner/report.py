"""`plan`: what fits, what it costs and what to choose. It reads and fetches no weights."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitsmith.errors import UnsupportedError, UsageError, Words, quoted
from bitsmith.planner.cache_memory import check_type
from bitsmith.planner.devices import Device, find_device
from bitsmith.planner.files import file_bytes
from bitsmith.planner.machine import this_machine
from bitsmith.planner.model_spec import ModelSpec, find_model
from bitsmith.planner.network import Network
from bitsmith.planner.quality import Loss, advisable, measured, rank
from bitsmith.planner.runtimes import (
    CACHE_BLOCK,
    Runtime,
    Workload,
    container_of,
    find_runtime,
    keeps_cache,
    runs,
    usual_runtime,
)
from bitsmith.planner.training import METHODS, Training, training_memory
from bitsmith.planner.verdict import FitCheck, Verdict
from bitsmith.planner.weights import Stored, as_it_is, parse_target, rule_of_thumb, stored
from bitsmith.recipe.target import Target
from bitsmith.system.options import check_arguments
from bitsmith.system.sizes import human_bytes, parse_size
from bitsmith.system.tables import html_table

DEFAULT_CONTEXT = 8192
_COUNTED = re.compile(r"([0-9]{1,4})\s*x\s*(.+)", re.IGNORECASE)  # "2x rtx-3090"
_MOST_DEVICES = 64
_MOST_SEQUENCES = 100_000
_MOST_CONTEXT = 100_000_000
_MOST_RANK = 65_536
_LEAST_MEMORY = 10_000_000  # bytes; with less, the user probably forgot the unit
_FEW = ("q3_k_m", "iq3_xxs", "q2_k", "iq2_m", "iq2_xs")
USUAL = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", *_FEW, "compressed/w8a8", "compressed/fp8", "gptq/int4")
USUAL_COUNT = ("f32", "f16", "int8", "int4", "int3", "int2", "q8_0", "q6_k", "q5_k_m", "q4_k_m", *_FEW)


@dataclass(frozen=True)
class DeviceSet:
    """One device, or several of the same kind."""

    device: Device
    count: int = 1

    @property
    def name(self) -> str:
        """The name for `--device`: "rtx-4090", "2x rtx-3090"."""
        return self.device.name if self.count == 1 else f"{self.count}x {self.device.name}"


@dataclass(frozen=True)
class Row:
    """One format: its bytes, its loss, and a verdict for each device set.

    target: None for a file with the types it has now
    how: how exact the bytes are: "exact file", "exact tensors" or "rule of thumb"
    """

    target: Target | None
    weights: Stored
    bits_per_weight: float
    how: str
    loss: Loss | None
    verdicts: tuple[Verdict, ...]

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key that grows with the loss."""
        return rank(self.target, self.bits_per_weight, self.loss)

    @property
    def advisable(self) -> bool:
        """Whether the plan may advise this format."""
        return self.weights.makeable and advisable(self.target, self.bits_per_weight, self.loss)


@dataclass(frozen=True, repr=False)
class PlanReport:
    """The result of a plan."""

    spec: ModelSpec
    workload: Workload
    device_sets: tuple[DeviceSet, ...]
    rows: tuple[Row, ...]
    training: tuple[Training, ...] = ()
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line."""
        devices = ", ".join(each.name for each in self.device_sets)
        return f"<PlanReport {self.spec.name!r}: {len(self.rows)} formats on {devices}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                row.weights.target,
                human_bytes(row.weights.file or row.weights.total),
                f"{row.bits_per_weight:.2f}",
                *(verdict.text for verdict in row.verdicts),
            )
            for row in self.rows
        ]
        headings = ("format", "weights", "bits", *(each.name for each in self.device_sets))
        return html_table(f"{self.spec.name}, {self.workload.context:,} tokens", rows, headings=headings)


def plan(
    model: str | Path,
    *,
    devices: Sequence[str] = (),
    memory: str | None = None,
    context: int | None = None,
    batch: int = 1,
    kv: str = "f16",
    formats: Sequence[str] = (),
    runtime: str | None = None,
    training: Sequence[str] = (),
    adapter_rank: int = 16,
    optimizer: str = "adamw",
    tokenizer: bool = False,
    revision: str | None = None,
) -> PlanReport:
    """Memory that `model` takes in each format, and whether it fits.

    model: a folder, a file, a hub id (only config.json and headers are read), a built-in shape, or a count ("70B")
    devices: names, "this", or several of a kind ("2x rtx-3090")
    memory: memory of another device: "24GB", "24GiB". Without devices and memory, the plan is for this machine
    context: number of tokens of a sequence; None: 8192, or the model's context if that is less
    batch: number of sequences at once
    kv: type of keys and values
    formats: targets as for `--to`; empty for the usual ones
    runtime: "bitsmith", "llama.cpp" or "vllm"; None for the usual runtime of the format on the device
    training: any of "full", "lora", "qlora", "qat", "qat-all"; each is planned with and without checkpointing
    adapter_rank: rank of LoRA's adapters
    optimizer: "adamw" or "adamw-8bit"
    tokenizer: fetch a hub model's tokenizer, so that sizes of whole GGUF files are exact
    Raises UsageError for a wrong call, FileError or UnsupportedError for a model that cannot be read.
    """
    check_arguments(plan, locals())
    kv = check_type(kv)
    if not 1 <= batch <= _MOST_SEQUENCES:
        raise UsageError(f"--batch={batch}: expected 1 to {_MOST_SEQUENCES:,} sequences.")
    chosen = None if runtime is None else find_runtime(runtime)
    targets = list(dict.fromkeys(parse_target(name) for name in formats))
    if not 1 <= adapter_rank <= _MOST_RANK:
        raise UsageError(f"--rank={adapter_rank}: expected 1 to {_MOST_RANK:,}.")
    unknown = [method for method in training if method not in METHODS]
    if unknown:
        raise UsageError(f"--training={quoted(unknown[0])}: unknown; expected {', '.join(METHODS)}.")
    device_sets = device_sets_of(devices, memory)
    with tempfile.TemporaryDirectory() as scratch:
        spec = find_model(model, scratch=Path(scratch), revision=revision, tokenizer=tokenizer)
        network = spec.network
        workload = Workload(context_of(context, network), batch, kv)
        sizes = _weights(spec, targets)
    rows = [_row(spec, workload, chosen, device_sets, *size) for size in sizes]
    if not targets:  # drop the usual formats that no runtime runs
        rows = [row for row in rows if any(verdict.kind != "no runtime" for verdict in row.verdicts)] or rows
    rows.sort(key=lambda row: -row.weights.total)
    trained = tuple(
        _training(spec, workload, method, rank=adapter_rank, optimizer=optimizer, checkpointing=checkpointing)
        for method in dict.fromkeys(training)
        for checkpointing in (True, False)
    )
    return PlanReport(spec, workload, device_sets, tuple(rows), trained, _warnings(spec, rows, workload))


def _row(
    spec: ModelSpec,
    workload: Workload,
    chosen: Runtime | None,
    device_sets: Sequence[DeviceSet],
    target: Target | None,
    weights: Stored,
    how: str,
) -> Row:
    network = spec.network
    container = container_of(target, network)
    if spec.count and container == "native":  # for a bare count, "INT4" may be in any container
        container = "gguf"
    verdicts = []
    for device_set in device_sets:
        runtime = chosen or usual_runtime(network, container, device_set.device)
        check = FitCheck(network, weights, workload, runtime, device_set.device, device_set.count)
        known = runs(runtime, container, "" if target is None else target.name, network, device_set.device)
        if not known:
            verdicts.append(check.unrunnable("no runtime"))
        elif keeps_cache(runtime, workload.kv, network):
            verdicts.append(check.judged())
        else:
            verdicts.append(check.unrunnable("no cache"))
    bits = 8 * weights.total / spec.parameters
    loss = None if target is None or weights.like is None else measured(weights.like)
    return Row(target, weights, bits, how, loss, tuple(verdicts))


def _training(
    spec: ModelSpec, workload: Workload, method: str, *, rank: int, optimizer: str, checkpointing: bool
) -> Training:
    """Memory of one training. For a bare count, weights, gradients and optimizer are scaled from the nearest shape."""
    found = training_memory(
        spec.network,
        method,
        context=workload.context,
        batch=workload.batch,
        rank=rank,
        checkpointing=checkpointing,
        optimizer=optimizer,
    )
    if spec.count is None:
        return found
    scale = spec.count / spec.network.parameters
    return replace(
        found,
        weights=round(scale * found.weights),
        gradients=round(scale * found.gradients),
        optimizer=round(scale * found.optimizer),
        trained=round(scale * found.trained),
    )


def context_of(context: int | None, network: Network) -> int:
    """The planned context; None: 8192, or the model's if that is less. Raises UsageError if the model takes less."""
    limit = network.context
    if context is None:
        return min(DEFAULT_CONTEXT, limit) if limit else DEFAULT_CONTEXT
    if not 1 <= context <= _MOST_CONTEXT:
        raise UsageError(f"--context={context}: expected 1 to {_MOST_CONTEXT:,} tokens.")
    if limit and context > limit:
        raise UsageError(
            f"--context={context}: {network.name} takes at most {limit:,} tokens; give --context={limit} or less."
        )
    return context


def device_sets_of(devices: Sequence[str], memory: str | None) -> tuple[DeviceSet, ...]:
    """The devices by name, and one with `memory`; without both, this machine. Raises UsageError for unknown names."""
    device_sets: list[DeviceSet] = []
    needs_memory = False
    for name in devices:
        counted = _COUNTED.fullmatch(name.strip())
        count, wanted = (int(counted[1]), counted[2]) if counted else (1, name)
        if not 1 <= count <= _MOST_DEVICES:
            raise UsageError(f"device {name!r}: expected 1 to {_MOST_DEVICES} devices of a kind.")
        if wanted.strip().lower() == "this":
            if count > 1:
                raise UsageError(f"device {name!r}: there is only one machine; name it 'this'.")
            device_sets += [DeviceSet(device, number) for device, number in this_machine()]
            continue
        device = find_device(wanted)
        if count > 1 and (device.unified or device.kind == "cpu"):
            raise UsageError(f"device {name!r}: several of these cannot share a model; give one.")
        if not device.memory:
            device, needs_memory = replace(device, memory=_said(memory, device.name)), True
        device_sets.append(DeviceSet(device, count))
    if memory is not None and not needs_memory:
        size = _memory_size(memory)
        device_sets.append(
            DeviceSet(Device(memory.strip(), f"{memory.strip()} of memory", "cuda", size, 0.0, frozenset()))
        )
    return tuple(dict.fromkeys(device_sets)) or tuple(DeviceSet(*found) for found in this_machine())


def _said(memory: str | None, name: str) -> int:
    if memory is None:
        raise UsageError(f"device {name!r}: its memory is unknown; give it, for instance --memory=32GiB.")
    return _memory_size(memory)


def _memory_size(text: str) -> int:
    size = parse_size(text)
    if size < _LEAST_MEMORY:
        raise UsageError(
            f"--memory={text}: no model fits {size:,} bytes; give more, with a unit, for instance 24GB or 24GiB."
        )
    return size


def _weights(spec: ModelSpec, targets: Sequence[Target]) -> list[tuple[Target | None, Stored, str]]:
    """Each format with its bytes and with how exact they are."""
    network = spec.network
    if spec.count is not None:
        wanted = targets or [parse_target(name) for name in USUAL_COUNT]
        return [(target, rule_of_thumb(network, target, spec.count), "rule of thumb") for target in wanted]
    found: list[tuple[Target | None, Stored, str]] = []
    if spec.checkpoint is not None:
        found.append((None, as_it_is(network, file=_size(spec)), "exact file"))
        if spec.quantized:
            return found
    wanted = list(targets or [parse_target(name) for name in USUAL])
    unstorable: list[str] = []
    files: dict[Target, int | str] = {}
    if spec.checkpoint is not None and spec.complete:
        files = file_bytes(spec.checkpoint, wanted)
    for target in wanted:
        try:
            weights, file = stored(network, target), files.get(target)
        except UnsupportedError as error:
            unstorable.append(error.message)
            continue
        if isinstance(file, int):
            found.append((target, replace(weights, file=file), "exact file"))
        else:
            why = () if file is None else (Words(f"quantize cannot make it: {file}"),)
            told = replace(weights, notes=(*weights.notes, *why), makeable=not why)
            found.append((target, told, "exact tensors"))
    if targets and unstorable:
        raise UnsupportedError(unstorable[0])
    return found


def _size(spec: ModelSpec) -> int:
    """Bytes of the weight files. For a hub model, their sizes on the hub."""
    assert spec.checkpoint is not None
    return sum(path.stat().st_size for path in spec.checkpoint.source.files)


def _warnings(spec: ModelSpec, rows: Sequence[Row], workload: Workload) -> tuple[str, ...]:
    found = []
    if spec.checkpoint is not None and spec.checkpoint.foreign is not None:
        found.append(f"{spec.checkpoint.foreign} The plan is for the files as they are, in other runtimes.")
    elif spec.quantized:
        what = f"{spec.network.name} is quantized already ({spec.quantized})"
        found.append(f"{what}: the plan is for this type only. For other formats, name the original model.")
    for runtime in {verdict.runtime.name: verdict.runtime for row in rows for verdict in row.verdicts}.values():
        if workload.kv not in runtime.kv:
            found.append(
                f"{runtime.title} has no {workload.kv} cache (it has {', '.join(runtime.kv)}). The plan counts its "
                "bytes all the same."
            )
        elif not keeps_cache(runtime, workload.kv, spec.network):
            found.append(
                f"{runtime.title} does not run this model with a {workload.kv} cache: its blocks of {CACHE_BLOCK} must "
                f"divide the heads, and the heads have {spec.network.head_dim} numbers. Plan with --kv=f16."
            )
    if spec.network.experts and spec.network.active == spec.network.parameters:
        found.append(
            "the experts were not found among the tensors. Speeds are computed as if every token passed all experts."
        )
    vision = sum(tensor.parameters for tensor in spec.network.tensors if tensor.name.startswith("vision."))
    if vision:
        found.append(
            f"{vision / 1e6:,.0f} M weights for images or sound are counted in 16 bits; GGUF stores them in a second "
            "file."
        )
    return tuple(found)
