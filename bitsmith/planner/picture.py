"""Draws memory by context: one curve for each format, and one horizontal line for each device's memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from bitsmith.planner.figure import new_figure, save_figure
from bitsmith.planner.report import PlanReport, Row
from bitsmith.planner.runtimes import Memory, cache_in_memory, weights_in_memory, working

_POINTS = 64
_MOST = 131072  # tokens, if the model's context is unknown


def draw(report: PlanReport, path: Path) -> None:
    """Write the picture as a PNG file. The runtime is that of the first device. An older picture is replaced.

    Raises UsageError without matplotlib or if the name does not end in .png, FileError if the file cannot be written.
    """
    figure = new_figure(path)
    network, workload = report.spec.network, report.workload
    largest = max(network.context or _MOST, workload.context)
    first = min(256, workload.context)
    growth = math.log(largest / first) / _POINTS
    contexts = sorted({round(first * math.exp(growth * i)) for i in range(_POINTS + 1)})
    axes = figure.add_subplot()
    shown = [row for row in report.rows if row.verdicts[0].kind != "no runtime"]
    for at, row in enumerate(shown):
        needs = [_gigabytes(report, row, context) for context in contexts]
        style = ("-", "--", ":")[at // 10 % 3]
        axes.plot(contexts, needs, label=row.weights.target, color=f"C{at % 10}", linestyle=style)
    for at, device_set in enumerate(report.device_sets):
        room = device_set.count * device_set.device.usable / 1e9
        axes.axhline(room, color="black", linestyle="--", linewidth=1)
        share = (at + 0.1) / len(report.device_sets)  # of the width, so that labels of similar devices do not overlap
        axes.annotate(
            device_set.name,
            (share, room),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
        )
    axes.axvline(workload.context, color="gray", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("memory, GB")
    axes.set_ylim(bottom=0)
    batch = "" if workload.batch == 1 else f", batch {workload.batch}"
    axes.set_title(f"{report.spec.name}: weights, {workload.kv} cache and runtime{batch}")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    checkpoint = report.spec.checkpoint
    save_figure(figure, path, sources=() if checkpoint is None else checkpoint.files)


def _gigabytes(report: PlanReport, row: Row, context: int) -> float:
    """Memory in GB that a format takes with this context on the first devices."""
    network, verdict, workload = report.spec.network, row.verdicts[0], replace(report.workload, context=context)
    cache = cache_in_memory(network, workload, verdict.runtime)
    beside = working(network, workload, verdict.runtime, verdict.device, count=verdict.count)
    return Memory(weights_in_memory(network, row.weights, verdict.runtime), cache, beside).total(verdict.count) / 1e9
