"""`plan`: what fits, what it costs, what to choose, before any weight is read or fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitsmith.errors import UsageError
from bitsmith.planner.cache_memory import check_type
from bitsmith.planner.devices import Device, find_device
from bitsmith.planner.files import file_bytes
from bitsmith.planner.machine import this_machine
from bitsmith.planner.network import Network
from bitsmith.planner.quality import Loss, measured
from bitsmith.planner.quality import rank as loss_rank
from bitsmith.planner.runtimes import Load, find_runtime, usual_runtime
from bitsmith.planner.subject import Subject, find_subject
from bitsmith.planner.training import METHODS, Training, training_memory
from bitsmith.planner.verdict import Verdict, judge
from bitsmith.planner.weights import Stored, as_it_is, parse_target, rule_of_thumb, stored
from bitsmith.recipe.plan import Target, parse_size

DEFAULT_CONTEXT = 8192
_LEAST_MEMORY = 10_000_000  # bytes; whoever says less forgot the unit
USUAL = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "q2_k", "compressed/w8a8", "gptq/int4")
USUAL_COUNT = ("f32", "f16", "int8", "int4", "int3", "int2", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")


@dataclass(frozen=True)
class Place:
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
    def rank(self) -> float:
        """Grows with the loss."""
        if self.target is None:
            return loss_rank(Target("native", "unknown"), self.bits_per_weight)
        return loss_rank(self.target, self.bits_per_weight)


@dataclass(frozen=True)
class Outlook:
    """All that a plan says."""

    subject: Subject
    load: Load
    places: tuple[Place, ...]
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
    rank: int = 16,
    optimizer: str = "adamw",
    tokenizer: bool = False,
    revision: str | None = None,
) -> Outlook:
    """What `model` takes in each format, and whether it fits.

    model: a folder, a file, a hub id (configuration and headers are read, no weights), a built-in shape, or a count
    devices: names, "this", or several of a kind ("2x rtx-3090"); memory: "24GB", "24GiB", for others. None of both
        takes this machine
    context: tokens of a sequence; None: 8192, or the model's where that is less. batch: sequences at once
    kv: type of keys and values. formats: as `--to`; none takes the usual ones
    runtime: "bitsmith", "llama.cpp" or "vllm"; None: what usually runs the format on the device
    training: of "full", "lora", "qlora", "qat"; each with checkpointing and without. rank: of adapters. optimizer:
        "adamw" or "adamw-8bit"
    tokenizer: fetch a hub model's tokenizer, so that whole GGUF files are exact
    Raises UsageError for a wrong call, FileError or UnsupportedError for a model that cannot be read.
    """
    kv = check_type(kv)
    if batch < 1:
        raise UsageError(f"--batch {batch}: expected 1 or more sequences.")
    chosen = None if runtime is None else find_runtime(runtime)
    targets = [parse_target(name) for name in formats]
    unknown = [method for method in training if method not in METHODS]
    if unknown:
        raise UsageError(f"--training {unknown[0]}: unknown; expected {', '.join(METHODS)}.")
    places = _places(devices, memory)
    with tempfile.TemporaryDirectory() as scratch:
        subject = find_subject(model, scratch=Path(scratch), revision=revision, tokenizer=tokenizer)
        network = subject.network
        load = Load(_context(context, network), batch, kv)
        sizes = _weights(subject, targets)
    rows = []
    for target, weights, how in sizes:
        verdicts = tuple(
            judge(
                network,
                weights,
                load,
                chosen or usual_runtime(network, None if subject.count else target, place.device),
                place.device,
                target=None if subject.count else target,
                count=place.count,
            )
            for place in places
        )
        bits = 8 * weights.total / subject.parameters
        rows.append(Row(target, weights, bits, how, None if target is None else measured(target), verdicts))
    if not targets:  # of the usual formats those that something runs
        rows = [row for row in rows if any(verdict.kind != "no runtime" for verdict in row.verdicts)] or rows
    rows.sort(key=lambda row: -row.weights.total)
    trained = tuple(
        _training(subject, load, method, rank=rank, optimizer=optimizer, checkpointing=checkpointing)
        for method in training
        for checkpointing in (True, False)
    )
    return Outlook(subject, load, places, tuple(rows), trained, _warnings(subject, rows, load))


def _training(subject: Subject, load: Load, method: str, *, rank: int, optimizer: str, checkpointing: bool) -> Training:
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
    if context < 1:
        raise UsageError(f"--context {context}: expected 1 or more tokens.")
    if limit and context > limit:
        raise UsageError(
            f"--context {context}: {network.name} was made for {limit:,} tokens; beyond them it writes nonsense."
        )
    return context


def _places(devices: Sequence[str], memory: str | None) -> tuple[Place, ...]:
    places = []
    for name in devices:
        head, times, rest = name.lower().partition("x")
        count, wanted = (int(head), rest) if times and head.strip().isdigit() else (1, name)
        if not 1 <= count <= 64:
            raise UsageError(f"--device {name}: expected 1 to 64 devices of a kind.")
        if wanted.strip().lower() == "this":
            places += [Place(device, count) for device in this_machine()]
            continue
        device = find_device(wanted)
        if not device.memory:
            device, memory = replace(device, memory=_said(memory, device.name)), None
        places.append(Place(device, count))
    if memory is not None:
        size = _memory_size(memory)
        places.append(Place(Device(memory.strip(), f"{memory.strip()} of memory", "cuda", size, 0.0, frozenset())))
    return tuple(places) or tuple(Place(device) for device in this_machine())


def _said(memory: str | None, name: str) -> int:
    if memory is None:
        raise UsageError(f"--device {name}: only you know how much memory it has; add --memory, for instance 32GiB.")
    return _memory_size(memory)


def _memory_size(text: str) -> int:
    size = parse_size(text)
    if size < _LEAST_MEMORY:
        raise UsageError(f"--memory {text}: {size:,} bytes hold no model; give a unit, for instance 24GB or 24GiB.")
    return size


def _weights(subject: Subject, targets: Sequence[Target]) -> list[tuple[Target | None, Stored, str]]:
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
    files: dict[Target, int | str] = {}
    if subject.checkpoint is not None and subject.complete:
        files = file_bytes(subject.checkpoint, wanted)
    for target in wanted:
        weights, file = stored(network, target), files.get(target)
        if isinstance(file, int):
            found.append((target, replace(weights, file=file), "exact file"))
        else:
            found.append((target, weights, "exact tensors"))
    return found


def _size(subject: Subject) -> int:
    """Bytes of the files that hold the weights; of a hub model's the sizes they have there."""
    assert subject.checkpoint is not None
    return sum(path.stat().st_size for path in subject.checkpoint.source.files)


def _warnings(subject: Subject, rows: Sequence[Row], load: Load) -> tuple[str, ...]:
    found = []
    if subject.quantized:
        what = f"{subject.network.name} is quantized already ({subject.quantized})"
        found.append(f"{what}: only that is planned; for other formats name the original.")
    for runtime in {verdict.runtime.name: verdict.runtime for row in rows for verdict in row.verdicts}.values():
        if load.kv not in runtime.kv:
            found.append(
                f"{runtime.title} has no {load.kv} cache (it has {', '.join(runtime.kv)}); counted all the same."
            )
    vision = sum(tensor.parameters for tensor in subject.network.tensors if tensor.name.startswith("vision."))
    if vision:
        found.append(
            f"{vision / 1e6:,.0f} M weights that see or hear are counted in 16 bits; GGUF keeps them in a file apart."
        )
    return tuple(found)
