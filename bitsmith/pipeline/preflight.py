"""Preflight: what a run takes of this machine, checked before it starts and again after its first real block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bitsmith.calibration.footprint import Run, largest, torch_memory
from bitsmith.calibration.method import Method, default_method
from bitsmith.calibration.need import LEAST_TOKENS, Need
from bitsmith.containers.gguf.blocks_simple import BlockCodec
from bitsmith.errors import ResourceError, Words
from bitsmith.pipeline.chunks import CHUNK_WEIGHTS
from bitsmith.pipeline.outputs import Output
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.plan import Plan
from bitsmith.recipe.static_inputs import inputs_wanted
from bitsmith.system.pressure import Room, memory_now, rooms

_CORE_CHUNK = 5 * CHUNK_WEIGHTS  # bytes a thread: the stored weights of two chunks, and what they become
_ARRAY_CHUNK = 32  # bytes a weight and thread, where numpy makes the codes
_EFFORTS = ("fast", "normal", "high", "max")

Fits = Callable[["Change"], bool]  # whether a run with a change keeps all limits


def need_of(outputs: Sequence[Output], threads: int, change: Change | None = None) -> Need:
    """What making outputs one after the other takes. change: of the options; None: none"""
    now = memory_now()
    change = change or Change()
    plain = max(_chunks(output.planned().plan, threads) for output in outputs)
    runs = [run for output in outputs for run in _runs(output, change)]
    memory, disk = largest(runs)
    torch = torch_memory() if runs else 0
    peak = now.resident + torch + memory + plain
    trained = any(run.training is not None for run in runs)
    return Need(peak, disk, threads, now, trained and memory > largest(replace(run, training=None) for run in runs)[0])


@dataclass(frozen=True)
class Change:
    """A change of options, to see whether they would fit. None: as they are; method "": the default of the effort"""

    memory: int | None = None
    tokens: int | None = None
    effort: str | None = None
    method: str | None = None

    def of(self, run: Run) -> Run:
        """The run with this change."""
        record = run.record if self.tokens is None else replace(run.record, tokens=min(self.tokens, run.record.tokens))
        effort, method = self.effort or run.effort, run.method
        if self.method is not None:
            method = Method.parse(self.method) if self.method else default_method(run.formats, effort)
        training = run.training if self.effort is None or run.effort != "max" else None
        memory = run.memory if self.memory is None else self.memory
        return replace(run, record=record, effort=effort, method=method, training=training, memory=memory)


def _runs(output: Output, change: Change) -> Iterator[Run]:
    """What runs the model for an output: the pass for statistics, and the rounding block by block."""
    prepared = output.prepared
    if prepared is None or prepared.request is None:
        return
    config, formats = output.assignment.checkpoint.config, tuple(output.assignment.formats)
    run = change.of(Run(config, output.method, output.effort, prepared.record, formats, output.memory, output.training))
    if run.method.transform or not run.method.needs_text or inputs_wanted(output.assignment.tensors):
        yield replace(run, method=Method("nearest", run.method.transform), training=None)
    if run.method.needs_text:
        yield run


def _chunks(plan: Plan, threads: int) -> int:
    """Bytes of the chunks of tensors that get the nearest codes."""
    made = [
        min(CHUNK_WEIGHTS, tensor.info.parameters)
        for tensor in plan.tensors
        if tensor.format is not None and not isinstance(tensor.codec, BlockCodec)
    ]
    return threads * (_CORE_CHUNK + _ARRAY_CHUNK * max(made, default=0))


def with_needs(expected: Sequence[Quantized], need: Need) -> list[Quantized]:
    """The plans with the peak of the process, which may lie before the run, and the disk of temporary files."""
    peak = max(need.peak, need.now.peak)
    return [replace(each, expected_memory=peak, calibration_disk=need.disk) for each in expected]


def with_warning(expected: Sequence[Quantized], outputs: Sequence[Output], need: Need) -> list[Quantized]:
    """The plans; the first has a note if the run would not start."""
    found = need.missing()
    if found is None or not expected:
        return list(expected)
    note = Words(f"it would not start: {refusal(outputs, need, found)}")
    return [replace(expected[0], notes=(*expected[0].notes, note)), *expected[1:]]


def check(outputs: Sequence[Output], need: Need) -> None:
    """Raise ResourceError if a run takes more memory than is free, with options that would fit."""
    found = need.missing()
    if found is not None:
        raise ResourceError(refusal(outputs, need, found))


def refusal(outputs: Sequence[Output], need: Need, found: tuple[Room, int]) -> str:
    """Why a run does not start, and what would fit."""
    return f"{need.said(found)} {offers(outputs, need)} --force starts it all the same."


def offers(outputs: Sequence[Output], need: Need) -> str:
    """Options with which a run would fit, as a sentence."""
    found = list(_offers(outputs, need.threads))
    if not found:
        return "No options of this run make it fit: close other programs, raise the limit, or take a larger machine."
    return f"These would fit: {'; '.join(found)}."


def _offers(outputs: Sequence[Output], threads: int) -> Iterator[str]:
    def fits(change: Change) -> bool:
        return need_of(outputs, threads, change).missing() is None

    calibrated = [each for each in outputs if each.prepared is not None and each.prepared.request is not None]
    if not calibrated:
        if threads > 1 and need_of(outputs, 1).missing() is None:
            yield "--threads=1"
        return
    if fits(Change(memory=0)):
        small = need_of(outputs, threads, Change(memory=0))
        left = min(room.nbytes - small.more(room) for room in rooms())
        yield f"--memory={max(left * 8 // 10 // 1_000_000, 1)}MB (hidden states go to disk)"
    tokens = max(each.prepared.record.tokens for each in calibrated if each.prepared is not None) // 2
    while tokens >= LEAST_TOKENS and not fits(Change(tokens=tokens)):
        tokens //= 2
    if tokens >= LEAST_TOKENS:
        yield f"--calibration-tokens={tokens}"
    yield from _cheaper(calibrated, fits)


def _cheaper(outputs: Sequence[Output], fits: Fits) -> Iterator[str]:
    """A lower effort, or another method."""
    effort = max((each.effort for each in outputs), key=_EFFORTS.index)
    lower = [each for each in _EFFORTS[: _EFFORTS.index(effort)] if fits(Change(effort=each, method=""))]
    if lower and any(each.method.needs_text for each in outputs):
        yield f"--effort={lower[-1]}"
    methods = {str(each.method) for each in outputs}
    others = [*(["gptq"] if "learned" in methods else []), *(["nearest"] if methods != {"nearest"} else [])]
    yield from [f"--method={name}" for name in others if fits(Change(method=name))][:1]
