"""Notes for the user about a calibrated run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import Trained
    from bitsmith.calibration.rounding import RoundingReport
    from bitsmith.calibration.transforms.base import Rescaling
    from bitsmith.quant.rounders.gptq import GptqReport
    from bitsmith.recipe.plan import PlannedTensor

_SHOWN = 3


def rounding_notes(reports: Mapping[str, RoundingReport]) -> tuple[str, ...]:
    """Notes on GPTQ: its gain, rows that kept the nearest codes, Hessians with more damping, dead columns."""
    gptq = {name: report.gptq for name, report in reports.items() if report.gptq is not None}
    if not gptq:
        return ()
    notes = [_gain(gptq)]
    cut = [name for name, report in reports.items() if report.cut]
    if cut:
        notes.append(f"memory ran short, so fewer rows were rounded at a time, to the same codes: {_few(cut)}")
    moved = [name for name, report in reports.items() if report.moved]
    if moved:
        notes.append(f"the accelerator had no memory for the Hessian, so the CPU rounded these: {_few(moved)}")
    kept = [f"{name} {one.kept} of {one.rows}" for name, one in gptq.items() if one.kept]
    if kept:
        notes.append(f"rows that kept the nearest codes, because GPTQ's codes were worse: {_few(kept)}")
    damped = [f"{name} {one.damping:.2g}" for name, one in gptq.items() if one.raised]
    if damped:
        notes.append(f"Hessians that were not positive definite got more damping: {_few(damped)}")
    dead = [f"{name} {one.dead}" for name, one in gptq.items() if one.dead]
    if dead:
        notes.append(f"columns that the calibration text never used: {_few(dead)}")
    return tuple(notes)


def rescaling_notes(rescalings: Mapping[int, tuple[Rescaling, ...]], names: Mapping[str, str]) -> tuple[str, ...]:
    """A note on how many groups of linears were rescaled, and why the others were not.

    names: the output's name of each tensor, by GGUF name
    """
    found = [each for layer in rescalings.values() for each in layer]
    if not found:
        return ()
    changed = sum(each.changes for each in found)
    reasons = Counter(
        f"{_kind(names, layer, each)}: {each.reason}"
        for layer, each_of in rescalings.items()
        for each in each_of
        if not each.changes
    )
    why = "; ".join(f"{count} of {reason}" for reason, count in reasons.most_common(_SHOWN))
    return (f"{changed} of {len(found)} inputs rescaled" + (f"; not rescaled: {why}" if why else ""),)


def _kind(names: Mapping[str, str], layer: int, rescaling: Rescaling) -> str:
    """The first linear of a group, as the output names it, for all layers: "model.layers.*.self_attn.o_proj"."""
    name = f"blk.{layer}.{rescaling.group.linears[0]}.weight"
    parts = names.get(name, name).removesuffix(".weight").split(".")
    return ".".join("*" if part.isdigit() else part for part in parts)


def _gain(reports: Mapping[str, GptqReport]) -> str:
    shares = [one.error / one.nearest for one in reports.values() if one.nearest > 0]
    mean = sum(shares) / len(shares) if shares else 1.0
    return f"error of the linears' outputs on the calibration text: on average {mean:.2f} times that of nearest codes"


def _few(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def recovered_notes(tensors: Iterable[PlannedTensor], recovered: Collection[str]) -> tuple[str, ...]:
    """A note on the tensors that lay on their format's grid already. recovered: their names"""
    if not recovered:
        return ()
    rounded = [tensor for tensor in tensors if tensor.format is not None and not tensor.verbatim]
    names = {tensor.format.name for tensor in rounded if tensor.info.name in recovered and tensor.format is not None}
    return (
        f"{len(recovered)} of {len(rounded)} quantized tensors lie on the grid of {', '.join(sorted(names))} already, "
        "as after training for it: their values are kept exactly, without a new search",
    )


def training_note(trained: Trained) -> str:
    """What the training of the whole model gained."""
    ended = f"; the loss was not finite at step {trained.broken}, which ended the training" if trained.broken else ""
    if not trained.step:
        return f"training gained nothing on the windows held out: the codes and scales are those of the rounder{ended}"
    return (
        f"training: divergence from the teacher on windows held out {trained.before:.5g} before, {trained.after:.5g} "
        f"now (the state of step {trained.step}){ended}"
    )
