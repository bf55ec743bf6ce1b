"""Advice: the format that loses least of those that fit, what its numbers mean on the device, what else would fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from bitsmith.planner import published
from bitsmith.planner.devices import Device
from bitsmith.planner.plan import Outlook, Place, Row
from bitsmith.planner.quality import SOURCE
from bitsmith.planner.shapes import known_shapes
from bitsmith.planner.verdict import Verdict
from bitsmith.planner.weights import parse_target, stored

_NEXT_TO_NOTHING = 0.001  # nats
_LADDER = (0.5, 1, 1.5, 3, 7, 13, 34, 70, 123, 175)  # sizes that models come in, billions of weights
_SENSITIVE = 8.0  # bits a weight, from which on code, mathematics and long reasoning are safe to begin with
_SIZE = re.compile(r"-(\d+(?:\.\d+)?)(b|m)\b")


def advise(outlook: Outlook) -> tuple[str, ...]:
    """Sentences, the most important first."""
    said: list[str] = []
    for at, place in enumerate(outlook.places):
        said += _for_place(outlook, at, place)
    said += _larger_or_smaller(outlook)
    return tuple(dict.fromkeys(said))


def best_row(rows: Sequence[Row], at: int) -> Row | None:
    """Of the formats that fit a place the one that loses least; of equals the smaller. None where none fits."""
    fitting = [row for row in rows if row.verdicts[at].kind == "fits"]
    return min(fitting, key=lambda row: (row.rank, row.weights.total), default=None)


def _for_place(outlook: Outlook, at: int, place: Place) -> Iterator[str]:
    best = best_row(outlook.rows, at)
    if best is None:
        yield from _nothing_fits(outlook, at, place)
        return
    yield f"{place.name}: {best.weights.target}, which {_loses(best)}."
    faster = _faster(outlook.rows, best, at)
    if faster is not None:
        times = (faster.verdicts[at].speed or 0) / (best.verdicts[at].speed or 1)
        yield f"{place.name}: {faster.weights.target} {_loses(faster)}, and generates {times:.1f} times as fast."
    yield from _number_types(best, place.device)
    if best.bits_per_weight < _SENSITIVE - 0.5:
        yield (
            "Code, mathematics and long reasoning suffer more from few bits than averages show"
            f"{_published_task(outlook)}: for them start from 8 bits (q8_0, w8a8) and measure (bitsmith eval "
            "--against)."
        )
    yield from _published(outlook, best)


def _faster(rows: Sequence[Row], best: Row, at: int) -> Row | None:
    """The fastest of those that lose next to nothing; None where that gains little."""
    near = [
        row
        for row in rows
        if row.verdicts[at].kind == "fits"
        and row.loss
        and row.loss.plain <= _NEXT_TO_NOTHING
        and row.verdicts[at].speed
    ]
    found = max(near, key=lambda row: row.verdicts[at].speed or 0, default=best)
    return found if (found.verdicts[at].speed or 0) > 1.2 * (best.verdicts[at].speed or math.inf) else None


def _loses(row: Row) -> str:
    if row.target is None:
        return f"keeps what the file holds ({row.bits_per_weight:.2f} bits a weight)"
    if row.loss is None:
        return f"has {row.bits_per_weight:.2f} bits a weight (its loss was not measured)"
    if row.loss.plain == 0:
        return "loses nothing"
    calibrated = "" if row.loss.calibrated is None else f", {row.loss.calibrated:.4f} with --calibration"
    return f"loses {row.loss.plain:.4f} nats{calibrated} ({SOURCE})"


def _nothing_fits(outlook: Outlook, at: int, place: Place) -> Iterator[str]:
    runnable = [row for row in outlook.rows if row.verdicts[at].kind != "no runtime"]
    if not runnable:
        yield f"{place.name}: nothing runs these formats there; a GGUF mix (q4_k_m) would be run by llama.cpp."
        return
    smallest = min(runnable, key=lambda row: row.weights.total)
    verdict = smallest.verdicts[at]
    bits = _bits_that_fit(outlook, verdict)
    room = f"{verdict.room / 1e9:.1f} GB"
    if bits > 0:
        yield (
            f"{place.name}: nothing fits at {outlook.load.context:,} tokens; its {room} hold {bits:.1f} bits a weight "
            f"beside cache and runtime, and {smallest.weights.target} has {smallest.bits_per_weight:.1f}."
        )
    else:
        yield f"{place.name}: nothing fits; cache and runtime alone take more than its {room}."
    ways = list(_ways(outlook, at))
    if ways:
        yield f"What would fit: {'; '.join(ways)}."


def _bits_that_fit(outlook: Outlook, verdict: Verdict) -> float:
    left = verdict.room - verdict.memory.cache - verdict.count * verdict.memory.working
    return 8 * left / outlook.subject.parameters


def _ways(outlook: Outlook, at: int) -> Iterator[str]:
    ranked = sorted(outlook.rows, key=lambda row: row.rank)
    verdicts = [(row, row.verdicts[at]) for row in ranked if row.verdicts[at].kind != "no runtime"]
    shorter = next(((row, v) for row, v in verdicts if v.kind == "less context"), None)
    if shorter is not None:
        yield f"{shorter[0].weights.target} with {shorter[1].context:,} tokens of context"
    four = min((pair for pair in verdicts), key=lambda pair: abs(pair[0].bits_per_weight - 4.8))
    if four[1].needed > four[1].count:
        yield f"{four[1].needed} x {four[1].device.name} for {four[0].weights.target}"
    if four[1].kind == "partly outside":
        speed = "" if four[1].speed is None else f", about {four[1].speed:.1f} tokens/s"
        layers = outlook.subject.network.layers
        yield (
            f"{four[0].weights.target} with {four[1].outside} of {layers} layers "
            f"({four[1].outside_bytes / 1e9:.1f} GB) in system memory{speed}"
        )


def _number_types(row: Row, device: Device) -> Iterator[str]:
    if device.kind == "cpu" or not device.source:
        return
    target = row.weights.target
    if "bf16" not in device.native and "fp16" in device.native:
        yield f"{device.title} has no native BF16: take F16 where 16 bits are meant."
    if "fp8" in target and "fp8" not in device.native:
        yield f"{device.title} does not multiply FP8: it saves memory here, not arithmetic."
    if "w8a8" in target and "int8" not in device.native:
        yield f"{device.title} does not multiply INT8: it saves memory here, not arithmetic."
    if row.bits_per_weight < 7 and "int4" not in device.native:
        yield f"{device.title} does not multiply INT4: 4 bits save memory and bandwidth here, not arithmetic."
    elif row.bits_per_weight < 7:
        yield "4-bit weights are widened to 16 bits before they are multiplied: memory and bandwidth, not arithmetic."


def _published(outlook: Outlook, row: Row) -> Iterator[str]:
    """The published figure of this format for the model nearest in size."""
    found = [record for record in published.quality(row.weights.target) if record.metric == "perplexity"]
    if not found:
        return
    near = min(found, key=lambda record: abs(math.log(record.parameters / outlook.subject.parameters)))
    yield (
        f"Published: {near.model} in {near.format} has perplexity {near.value:.4g} against {near.baseline:.4g} at 16 "
        f"bits on {near.text} ({near.source})."
    )


def _published_task(outlook: Outlook) -> str:
    """What 4 bits cost the model nearest in size at mathematics."""
    found = [r for r in published.quality("int4-g128") if r.metric == "gsm8k" and r.method == "nearest"]
    if not found:
        return ""
    near = min(found, key=lambda record: abs(math.log(record.parameters / outlook.subject.parameters)))
    source = "".join(near.source.rpartition("https://")[1:])
    return f" (published: {near.model} at int4 {near.value:g} % of GSM8K, {near.baseline:g} at 16 bits, {source})"


def _larger_or_smaller(outlook: Outlook) -> Iterator[str]:
    """This model at 4 bits beside a smaller one at 16, in about the same memory."""
    subject = outlook.subject
    if subject.count:
        mine, size = f"{subject.count / 1e9:g}B at INT4", subject.count / 2
    else:
        mine, size = f"{subject.network.name} at q4_k_m", float(stored(subject.network, parse_target("q4_k_m")).total)
    smaller, weights = _smaller(subject.network.name if not subject.count else "", size)
    if not weights:
        return
    yield (
        f"{mine} takes {size / 1e9:.3g} GB, {smaller} at 16 bits {2 * weights / 1e9:.3g} GB: the larger model at 4 "
        f"bits is usually the better one{_published_pair()}."
    )


def _smaller(name: str, size: float) -> tuple[str, float]:
    """The largest model whose 16-bit weights take at most `size` bytes: of the series where it has one that takes half
    of that at least, else of the usual sizes. Its name and weights; 0 where there is none.
    """
    match = _SIZE.search(name)
    series = name[: match.start()] + "-" if match else None
    found = [
        (shape.parameters, other)
        for other, shape in known_shapes().items()
        if series and other.startswith(series) and shape.active is None and size / 2 <= 2 * shape.parameters <= size
    ]
    if found:
        weights, other = max(found)
        return other, float(weights)
    usual = max((b for b in _LADDER if 2e9 * b <= size), default=0)
    return f"a {usual:g}B", 1e9 * usual


def _published_pair() -> str:
    """The larger LLaMA at 4 bits against the smaller at 16."""
    found = {record.model: record for record in published.quality("q4_k_m") if record.metric == "perplexity"}
    small, large = found.get("LLaMA-7B"), found.get("LLaMA-13B")
    if small is None or large is None:
        return ""
    return (
        f" (published: perplexity {large.value:.3g} of LLaMA-13B in q4_k_m, {small.baseline:.3g} of 7B at 16 bits, "
        f"{large.source.partition(' ')[0]})"
    )
