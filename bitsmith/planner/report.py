"""`plan`: what fits, what it costs, what to choose, before any weight is read or fetched."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.planner.cache_memory import check_type
from bitsmith.planner.devices import Device, find_device
from bitsmith.planner.files import file_bytes
from bitsmith.planner.machine import this_machine
from bitsmith.planner.model_spec import ModelSpec, find_subject
from bitsmith.planner.network import Network
from bitsmith.planner.quality import Loss, advisable, measured, rank
from bitsmith.planner.runtimes import Runtime, Workload, container_of, find_runtime, runs, usual_runtime
from bitsmith.planner.training import METHODS, Training, training_memory
from bitsmith.planner.verdict import FitCheck, Verdict
from bitsmith.planner.weights import Stored, as_it_is, parse_target, rule_of_thumb, stored
from bitsmith.recipe.target import Target
from bitsmith.system.sizes import parse_size

DEFAULT_CONTEXT = 8192
_COUNTED = re.compile(r"([0-9]{1,4})\s*x\s*(.+)", re.IGNORECASE)  # "2x rtx-3090"
_MOST_DEVICES = 64
_MOST_SEQUENCES = 100_000
_MOST_CONTEXT = 100_000_000
_MOST_RANK = 65_536
_LEAST_MEMORY = 10_000_000  # bytes; whoever says less forgot the unit
USUAL: tuple[str, ...] = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "q2_k")
USUAL += ("compressed/w8a8", "compressed/fp8", "gptq/int4")
USUAL_COUNT = ("f32", "f16", "int8", "int4", "int3", "int2", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")


@dataclass(frozen=True)
class DeviceSet:
    """A device, or several of a kind."""

    device: Device
    count: int = 1

    @property
    def name(self) -> str:
        """As the user may say it: "rtx-4090", "2x rtx-3090"."""
        return self.device.name if self.count == 1 else f"{self.count}x {self.device.name}"


@dataclass(frozen=True)
class Row:
    """One format: its bytes, what it loses, and a verdict for each place.

    target: None for the types that a file has
    how: "exact file", "exact tensors" or "rule of thumb"
    """

    target: Target | None
    weights: Stored
    bits_per_weight: float
    how: str
    loss: Loss | None
    verdicts: tuple[Verdict, ...]

    @property
    def rank(self) -> tuple[int, float]:
        """Grows with the loss."""
        return rank(self.target, self.bits_per_weight)

    @property
    def advisable(self) -> bool:
        """Whether it may be advised."""
        return advisable(self.target, self.bits_per_weight)


@dataclass(frozen=True)
class PlanReport:
    """All that a plan says."""

    subject: ModelSpec
    load: Workload
    places: tuple[DeviceSet, ...]
    rows: tuple[Row, ...]
    training: tuple[Training, ...] = ()
    warnings: tuple[str, ...] = ()


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
    """What `model` takes in each format, and whether it fits.

    model: a folder, a file, a hub id (configuration and headers are read, no weights), a built-in shape, or a count
    devices: names, "this", or several of a kind ("2x rtx-3090"); memory: "24GB", "24GiB", for others. None of both
        takes this machine
    context: tokens of a sequence; None: 8192, or the model's where that is less. batch: sequences at once
    kv: type of keys and values. formats: as `--to`; none takes the usual ones
    runtime: "bitsmith", "llama.cpp" or "vllm"; None: what usually runs the format on the device
    training: of "full", "lora", "qlora", "qat"; each with checkpointing and without. adapter_rank: of LoRA. optimizer:
        "adamw" or "adamw-8bit"
    tokenizer: fetch a hub model's tokenizer, so that whole GGUF files are exact
    Raises UsageError for a wrong call, FileError or UnsupportedError for a model that cannot be read.
    """
    kv = check_type(kv)
    if not 1 <= batch <= _MOST_SEQUENCES:
        raise UsageError(f"--batch {batch}: expected 1 to {_MOST_SEQUENCES:,} sequences.")
    chosen = None if runtime is None else find_runtime(runtime)
    targets = list(dict.fromkeys(parse_target(name) for name in formats))
    if not 1 <= adapter_rank <= _MOST_RANK:
        raise UsageError(f"--rank {adapter_rank}: expected 1 to {_MOST_RANK:,}.")
    unknown = [method for method in training if method not in METHODS]
    if unknown:
        raise UsageError(f"--training {unknown[0]}: unknown; expected {', '.join(METHODS)}.")
    places = _places(devices, memory)
    with tempfile.TemporaryDirectory() as scratch:
        subject = find_subject(model, scratch=Path(scratch), revision=revision, tokenizer=tokenizer)
        network = subject.network
        load = Workload(_context(context, network), batch, kv)
        sizes = _weights(subject, targets)
    rows = [_row(subject, load, chosen, places, *size) for size in sizes]
    if not targets:  # of the usual formats those that something runs
        rows = [row for row in rows if any(verdict.kind != "no runtime" for verdict in row.verdicts)] or rows
    rows.sort(key=lambda row: -row.weights.total)
    trained = tuple(
        _training(subject, load, method, rank=adapter_rank, optimizer=optimizer, checkpointing=checkpointing)
        for method in dict.fromkeys(training)
        for checkpointing in (True, False)
    )
    return PlanReport(subject, load, places, tuple(rows), trained, _warnings(subject, rows, load))


def _row(
    subject: ModelSpec,
    load: Workload,
    chosen: Runtime | None,
    places: Sequence[DeviceSet],
    target: Target | None,
    weights: Stored,
    how: str,
) -> Row:
    network = subject.network
    container = container_of(target, network)
    if subject.count and container == "native":  # "INT4" of a bare count is whatever holds 4 bits
        container = "gguf"
    verdicts = []
    for place in places:
        runtime = chosen or usual_runtime(network, container, place.device)
        case = FitCheck(network, weights, load, runtime, place.device, place.count)
        known = runs(runtime, container, "" if target is None else target.name, network, place.device)
        verdicts.append(case.judged() if known else case.unrunnable())
    bits = 8 * weights.total / subject.parameters
    return Row(target, weights, bits, how, None if target is None else measured(target), tuple(verdicts))


def _training(
    subject: ModelSpec, load: Workload, method: str, *, rank: int, optimizer: str, checkpointing: bool
) -> Training:
    """Of a bare count what grows with the weights is scaled from the nearest built-in shape."""
    found = training_memory(
        subject.network,
        method,
        context=load.context,
        batch=load.batch,
        rank=rank,
        checkpointing=checkpointing,
        optimizer=optimizer,
    )
    if subject.count is None:
        return found
    scale = subject.count / subject.network.parameters
    return replace(
        found,
        weights=round(scale * found.weights),
        gradients=round(scale * found.gradients),
        optimizer=round(scale * found.optimizer),
        trained=round(scale * found.trained),
    )


def _context(context: int | None, network: Network) -> int:
    limit = network.context
    if context is None:
        return min(DEFAULT_CONTEXT, limit) if limit else DEFAULT_CONTEXT
    if not 1 <= context <= _MOST_CONTEXT:
        raise UsageError(f"--context {context}: expected 1 to {_MOST_CONTEXT:,} tokens.")
    if limit and context > limit:
        raise UsageError(
            f"--context {context}: {network.name} was made for {limit:,} tokens; beyond them it writes nonsense."
        )
    return context


def _places(devices: Sequence[str], memory: str | None) -> tuple[DeviceSet, ...]:
    places: list[DeviceSet] = []
    needs_memory = False
    for name in devices:
        counted = _COUNTED.fullmatch(name.strip())
        count, wanted = (int(counted[1]), counted[2]) if counted else (1, name)
        if not 1 <= count <= _MOST_DEVICES:
            raise UsageError(f"--device {name}: expected 1 to {_MOST_DEVICES} devices of a kind.")
        if wanted.strip().lower() == "this":
            if count > 1:
                raise UsageError(f"--device {name}: there is one of this machine.")
            places += [DeviceSet(device, number) for device, number in this_machine()]
            continue
        device = find_device(wanted)
        if count > 1 and (device.unified or device.kind == "cpu"):
            raise UsageError(f"--device {name}: the memory of several of them is not one; give one.")
        if not device.memory:
            device, needs_memory = replace(device, memory=_said(memory, device.name)), True
        places.append(DeviceSet(device, count))
    if memory is not None and not needs_memory:
        size = _memory_size(memory)
        places.append(DeviceSet(Device(memory.strip(), f"{memory.strip()} of memory", "cuda", size, 0.0, frozenset())))
    return tuple(dict.fromkeys(places)) or tuple(DeviceSet(*found) for found in this_machine())


def _said(memory: str | None, name: str) -> int:
    if memory is None:
        raise UsageError(f"--device {name}: only you know how much memory it has; add --memory, for instance 32GiB.")
    return _memory_size(memory)


def _memory_size(text: str) -> int:
    size = parse_size(text)
    if size < _LEAST_MEMORY:
        raise UsageError(f"--memory {text}: {size:,} bytes hold no model; give a unit, for instance 24GB or 24GiB.")
    return size


def _weights(subject: ModelSpec, targets: Sequence[Target]) -> list[tuple[Target | None, Stored, str]]:
    """Every format with its bytes, and how exact they are."""
    network = subject.network
    if subject.count is not None:
        wanted = targets or [parse_target(name) for name in USUAL_COUNT]
        return [(target, rule_of_thumb(network, target, subject.count), "rule of thumb") for target in wanted]
    found: list[tuple[Target | None, Stored, str]] = []
    if subject.checkpoint is not None:
        found.append((None, as_it_is(network, file=_size(subject)), "exact file"))
        if subject.quantized:
            return found
    wanted = list(targets or [parse_target(name) for name in USUAL])
    unstorable: list[str] = []
    files: dict[Target, int | str] = {}
    if subject.checkpoint is not None and subject.complete:
        files = file_bytes(subject.checkpoint, wanted)
    for target in wanted:
        try:
            weights, file = stored(network, target), files.get(target)
        except UnsupportedError as error:
            unstorable.append(str(error))
            continue
        if isinstance(file, int):
            found.append((target, replace(weights, file=file), "exact file"))
        else:
            why = () if file is None else (f"quantize cannot make it: {file}",)
            found.append((target, replace(weights, notes=(*weights.notes, *why)), "exact tensors"))
    if targets and unstorable:
        raise UnsupportedError(unstorable[0])
    return found


def _size(subject: ModelSpec) -> int:
    """Bytes of the files that hold the weights; of a hub model's the sizes they have there."""
    assert subject.checkpoint is not None
    return sum(path.stat().st_size for path in subject.checkpoint.source.files)


def _warnings(subject: ModelSpec, rows: Sequence[Row], load: Workload) -> tuple[str, ...]:
    found = []
    if subject.quantized:
        what = f"{subject.network.name} is quantized already ({subject.quantized})"
        found.append(f"{what}: only that is planned; for other formats name the original.")
    for runtime in {verdict.runtime.name: verdict.runtime for row in rows for verdict in row.verdicts}.values():
        if load.kv not in runtime.kv:
            found.append(
                f"{runtime.title} has no {load.kv} cache (it has {', '.join(runtime.kv)}); counted all the same."
            )
    if subject.network.experts and subject.network.active == subject.network.parameters:
        found.append(
            "the experts were not recognised among the tensors: speeds are as if every token passed all of them."
        )
    vision = sum(tensor.parameters for tensor in subject.network.tensors if tensor.name.startswith("vision."))
    if vision:
        found.append(
            f"{vision / 1e6:,.0f} M weights that see or hear are counted in 16 bits; GGUF keeps them in a file apart."
        )
    return tuple(found)
