"""Advice: the best format that fits, what its numbers mean on the device, and what else would fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from bitsmith.errors import Words
from bitsmith.planner import published
from bitsmith.planner.devices import Device
from bitsmith.planner.quality import SOURCE
from bitsmith.planner.report import DeviceSet, PlanReport, Row
from bitsmith.planner.shapes import known_shapes
from bitsmith.planner.verdict import Verdict
from bitsmith.planner.weights import parse_target, stored

_NEXT_TO_NOTHING = 0.001  # nats
_PUBLISHED_AS = {  # our target -> the format's name in published tables, and the first word of the method there
    "gptq/int4": ("int4-g128", "gptq"),
    "awq/int4": ("int4-g128", "awq"),
    "compressed/w4a16": ("int4-g128", "gptq"),
    "native/int4": ("int4-g128", "nearest"),
    "native/int3": ("int3-g128", "nearest"),
    "gptq/int3": ("int3-g128", "gptq"),
    "native/nf4": ("nf4", ""),
    "compressed/fp8": ("fp8", ""),
}
_LADDER = (0.5, 1, 1.5, 3, 7, 13, 34, 70, 123, 175)  # sizes that models come in, billions of weights
_FEW_BITS = 3.0  # bits a weight; below this, a smaller model with more bits may be better
_SENSITIVE = 7.5  # bits a weight; below this, the plan warns about code, mathematics and long reasoning
_SIZE = re.compile(r"-(\d+(?:\.\d+)?)(b|m)\b")


def advise(report: PlanReport) -> tuple[str, ...]:
    """The advice, one sentence an entry. The most important comes first."""
    said: list[str] = []
    for at, device_set in enumerate(report.device_sets):
        said += _for_devices(report, at, device_set)
    said += _larger_or_smaller(report)
    return tuple(Words(sentence) for sentence in dict.fromkeys(said))


def _best(rows: Sequence[Row], at: int) -> Row | None:
    """The format that fits and loses least. If two lose the same, the smaller one. None if no format fits."""
    fitting = [row for row in rows if row.verdicts[at].kind == "fits" and row.advisable]
    return min(fitting, key=lambda row: (row.rank, row.weights.total), default=None)


def _for_devices(report: PlanReport, at: int, device_set: DeviceSet) -> Iterator[str]:
    best = _best(report.rows, at)
    if best is None:
        yield from _nothing_fits(report, at, device_set)
        return
    yield f"{device_set.name}: {best.weights.target}, which {_loses(best)}."
    yield from _beside_few_bits(report, at, best)
    faster = _faster(report.rows, best, at)
    if faster is not None:
        times = (faster.verdicts[at].speed or 0) / (best.verdicts[at].speed or 1)
        yield f"{device_set.name}: {faster.weights.target} {_loses(faster)}, and generates {times:.1f} times as fast."
    yield from _number_types(best, device_set.device)
    if best.bits_per_weight < _SENSITIVE:
        yield (
            "Code, mathematics and long reasoning lose more than averages show"
            f"{_published_task(report)}. For these, start with 8 bits (q8_0, compressed/w8a8) and measure the loss "
            "(`bitsmith eval --against`)."
        )
    yield from _published(report, best)


def _beside_few_bits(report: PlanReport, at: int, best: Row) -> Iterator[str]:
    """If less than three bits a weight fit: the size of a model that fits at four bits, and what each loses."""
    four = next((row for row in report.rows if row.weights.target == "q4_k_m"), None)
    if best.bits_per_weight >= _FEW_BITS or four is None or best.loss is None or four.loss is None:
        return
    weights = 8 * _left(best.verdicts[at]) / four.bits_per_weight
    least = best.loss.calibrated or best.loss.plain
    times = least / (four.loss.calibrated or four.loss.plain)
    yield (
        f"So few bits lose {times:.0f} times as much as q4_k_m, in which a model of {weights / 1e9:.2g} B weights fits "
        "there. Calibrate on text like yours, and compare both on your own task (`bitsmith compare`)."
    )


def _faster(rows: Sequence[Row], best: Row, at: int) -> Row | None:
    """The fastest format among those with almost no loss. None if it is not much faster than `best`."""
    near = [
        row
        for row in rows
        if row.verdicts[at].kind == "fits"
        and row.loss
        and row.loss.plain <= _NEXT_TO_NOTHING
        and row.weights.makeable
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


def _nothing_fits(report: PlanReport, at: int, device_set: DeviceSet) -> Iterator[str]:
    known = [row for row in report.rows if row.verdicts[at].kind != "no runtime"]
    runnable = [row for row in known if row.verdicts[at].kind != "no cache"]
    if known and not runnable:
        yield f"{device_set.name}: no runtime there keeps a {report.workload.kv} cache of this model; give --kv=f16."
        return
    if not runnable:
        yield f"{device_set.name}: no runtime runs these formats there. llama.cpp runs GGUF mixes (q4_k_m)."
        return
    good = [row for row in runnable if row.advisable] or runnable
    smallest = min(good, key=lambda row: row.weights.total)
    verdict = smallest.verdicts[at]
    bits = 8 * _left(verdict) / report.spec.parameters
    room, tokens = f"{verdict.room / 1e9:.1f} GB", f"{report.workload.context:,} tokens"
    if bits > 0:
        yield (
            f"{device_set.name}: no good format fits with {tokens}. Beside cache and runtime, its {room} hold "
            f"{bits:.1f} bits a weight. The smallest, {smallest.weights.target}, needs {smallest.bits_per_weight:.1f}."
        )
    else:
        yield f"{device_set.name}: nothing fits with {tokens}. Cache and runtime alone need all of its {room}."
    ways = list(_ways(report, at, good))
    if ways:
        yield f"What would fit: {'; '.join(ways)}."


def _left(verdict: Verdict) -> int:
    """Bytes left for the weights, after cache and runtime."""
    return verdict.room - verdict.memory.cache - verdict.count * verdict.memory.working


def _ways(report: PlanReport, at: int, rows: Sequence[Row]) -> Iterator[str]:
    ranked = sorted(rows, key=lambda row: row.rank)
    shorter = next((row for row in ranked if row.verdicts[at].kind == "less context"), None)
    if shorter is not None:
        yield f"{shorter.weights.target} with {shorter.verdicts[at].context:,} tokens of context"
        if report.workload.kv in ("f16", "f32", "bf16"):
            yield "a longer context with a quantized cache (--kv=q8_0; vLLM: fp8)"
    four = min(rows, key=lambda row: abs(row.bits_per_weight - 4.8))
    verdict, name = four.verdicts[at], four.weights.target
    if verdict.needed > verdict.count:
        yield f"{verdict.needed} x {verdict.device.name} for {name}"
    if verdict.kind == "partly outside":
        speed = "" if verdict.speed is None else f", {verdict.speed:.1f} tokens/s at most"
        layers = f"{verdict.outside} of {report.spec.network.layers} layers"
        yield f"{name} with {layers} ({verdict.outside_bytes / 1e9:.1f} GB) in system memory{speed}"
    weights = 8 * _left(verdict) / four.bits_per_weight
    if 2e8 < weights < report.spec.parameters:
        yield f"a model of {weights / 1e9:.2g} B weights in {name}"


def _number_types(row: Row, device: Device) -> Iterator[str]:
    if device.kind == "cpu" or not device.source:
        return
    target = row.weights.target
    if "bf16" not in device.matrix_types and "fp16" in device.matrix_types:
        yield f"{device.title} has no native BF16. For 16 bits, use F16."
    if "fp8" in target and "fp8" not in device.matrix_types:
        yield f"{device.title} does not multiply FP8. The format saves memory here, but computes no faster."
    if "w8a8" in target and "int8" not in device.matrix_types:
        yield f"{device.title} does not multiply INT8. The format saves memory here, but computes no faster."
    if "int4" in target or "w4a16" in target:
        if "int4" not in device.matrix_types:
            yield f"{device.title} does not multiply INT4. 4 bits save memory and bandwidth, but compute no faster."
        else:
            yield f"Runtimes widen the 4-bit weights of {target} to 16 bits. They save memory, but compute no faster."


def _published(report: PlanReport, row: Row) -> Iterator[str]:
    """Published figures of this format, for the model nearest in size. Each names its method, text and source."""
    format, method = _PUBLISHED_AS.get(row.weights.target, (row.weights.target, ""))
    for metric in ("kld", "perplexity"):
        found = [r for r in published.quality(format) if r.metric == metric and r.method.startswith(method)]
        if not found:
            continue
        near = _nearest(found, report)
        against = "" if metric == "kld" else f" against {near.baseline:.4g} at 16 bits"
        what = "mean KLD" if metric == "kld" else metric
        yield (
            f"Published: {near.model} in {near.format} ({near.method}): {what} {near.value:.4g}{against}, {near.text} "
            f"({near.source})."
        )


def _published_task(report: PlanReport) -> str:
    """Published loss at mathematics (GSM8K) with 4 bits, for the model nearest in size."""
    found = [r for r in published.quality("int4-g128") if r.metric == "gsm8k" and r.method == "nearest"]
    if not found:
        return ""
    near = _nearest(found, report)
    source = "".join(near.source.rpartition("https://")[1:])
    figures = f"{near.value:g} % of GSM8K at int4, {near.baseline:g} at 16 bits"
    return f" (published: {near.model} solves {figures}, {source})"


def _nearest(records: Sequence[published.Quality], report: PlanReport) -> published.Quality:
    """The record of the model nearest in size."""
    return min(records, key=lambda record: abs(math.log(record.parameters / report.spec.parameters)))


def _larger_or_smaller(report: PlanReport) -> Iterator[str]:
    """Compares this model at 4 bits with a smaller one at 16 bits that needs about the same memory."""
    spec = report.spec
    if spec.count:
        mine, size = f"{spec.name} at INT4", spec.count / 2
    else:
        mine, size = f"{spec.name} at q4_k_m", float(stored(spec.network, parse_target("q4_k_m")).total)
    smaller, weights = _smaller(spec.network.name if not spec.count else "", size)
    if not weights or 2 * weights < size / 3:
        return
    yield (
        f"{mine} takes {size / 1e9:.3g} GB, {smaller} at 16 bits {2 * weights / 1e9:.3g} GB. If both fit, the larger "
        f"model at 4 bits is usually better{_published_pair()}."
    )


def _smaller(name: str, size: float) -> tuple[str, float]:
    """The largest model whose 16-bit weights take at most `size` bytes.

    Prefers a model of the same series, if one takes at least half of `size`. Else takes the usual sizes.
    Returns its name and number of weights; 0 weights if there is none.
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
    """Published perplexity of LLaMA-13B at 4 bits and of LLaMA-7B at 16 bits."""
    found = {record.model: record for record in published.quality("q4_k_m") if record.metric == "perplexity"}
    small, large = found.get("LLaMA-7B"), found.get("LLaMA-13B")
    if small is None or large is None:
        return ""
    return (
        f" (published: perplexity of LLaMA-13B in q4_k_m {large.value:.3g}, of LLaMA-7B at 16 bits "
        f"{small.baseline:.3g}, {large.source.partition(' ')[0]})"
    )
