"""A picture of memory by context: a line for each format, and the devices' memory across."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from bitsmith.errors import FileError, UsageError
from bitsmith.planner.plan import Outlook
from bitsmith.planner.runtimes import memory

_POINTS = 64
_MOST = 131072  # tokens, where the model does not say how many it was made for


def plot(outlook: Outlook, path: Path) -> None:
    """Write a PNG. The runtime is that of the first device.

    Raises UsageError without matplotlib or for a name that is no .png, FileError where it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: expected a name that ends in .png.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'bitsmith[plot]'.") from None
    network, load = outlook.subject.network, outlook.load
    largest = max(network.context or _MOST, load.context)
    contexts = sorted(
        {round(math.exp(math.log(256) + i / _POINTS * math.log(largest / 256))) for i in range(_POINTS + 1)}
    )
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for row in outlook.rows:
        verdict = row.verdicts[0]
        needs = [
            memory(network, row.weights, replace(load, context=context), verdict.runtime, verdict.device).total / 1e9
            for context in contexts
        ]
        axes.plot(contexts, needs, label=row.weights.target)
    for at, place in enumerate(outlook.places):
        room = max(row.verdicts[at].room for row in outlook.rows) / 1e9
        axes.axhline(room, color="black", linestyle="--", linewidth=1)
        axes.annotate(place.name, (contexts[0], room), textcoords="offset points", xytext=(2, 3))
    axes.axvline(load.context, color="gray", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("memory, GB")
    axes.set_ylim(bottom=0)
    batch = "" if load.batch == 1 else f", batch {load.batch}"
    axes.set_title(f"{network.name}: weights, {load.kv} cache and runtime{batch}")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise FileError(f"{path}: the picture cannot be written ({error.strerror or error}).") from error
