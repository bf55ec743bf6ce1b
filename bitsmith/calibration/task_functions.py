"""The function of tasks of `imatrix`: the statistics of some windows of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitsmith.errors import FileError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.for_workers import files_of
from bitsmith.scale.task import Function, Place, Result
from bitsmith.work.state import State


def collect_windows(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """Sums over some windows of the squared inputs of every linear, and what routers did, int64 [experts] a layer.

    arguments: model, files: as `models.for_workers` gives them; start, stop: the windows; every: whether every token
        counts for every expert
    inputs: the windows' tokens, int64 [windows, context]
    """
    from bitsmith.calibration.collect import collect
    from bitsmith.calibration.sources import CalibrationTokens

    checkpoint = open_checkpoint(arguments["model"])
    if files_of(checkpoint) != arguments["files"]:
        raise FileError(f"{arguments['model']} is another model where this worker runs; give it the same files.")
    own = inputs[0].rows("tokens", int(arguments["start"]), int(arguments["stop"]))
    tokens = CalibrationTokens("", own, 0, all_experts=arguments["every"] is True)
    found = collect(checkpoint.laid_out("gguf"), tokens, rounded=True, threads=place.threads)
    numbers: dict[int, int] = {}
    told: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for name, stats in found.stats.items():
        if id(stats) not in numbers:
            numbers[id(stats)] = len(told)
            arrays[f"square.{len(told)}"] = stats.square
            told.append({"names": [], "count": stats.count})
        told[numbers[id(stats)]]["names"].append(name)
    if found.coverage is not None:
        arrays |= {f"routed.{layer}": counts for layer, counts in found.coverage.counts.items()}
    return {"inputs": told, "tied": found.tied}, arrays


TASKS: dict[str, Function] = {"windows": collect_windows}
