"""The state of the statistics pass after some blocks, kept so that another start goes on behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.base import Rescaling
from bitsmith.models.arch.block import linear_groups
from bitsmith.models.arch.config import ModelConfig
from bitsmith.work.folder import WorkFolder
from bitsmith.work.state import State, Streamed

_VALUES = ("square", "mean_abs", "max_abs", "sample")


@dataclass
class PassSoFar:
    """What the pass found so far.

    layer: number of blocks that are done; one more than the model has when the head is done too
    stats, rescalings: as in `Calibration`
    routed: tokens that each expert got, int64 [experts], by layer
    """

    layer: int = 0
    stats: dict[str, Stats] = field(default_factory=dict)
    rescalings: tuple[dict[int, tuple[Rescaling, ...]], ...] = ()
    routed: Mapping[int, np.ndarray] = field(default_factory=dict)


class KeptPass:
    """Keeps the state of one pass in a work folder. work: None keeps nothing"""

    def __init__(self, work: WorkFolder | None, name: str, config: ModelConfig) -> None:
        """name: of the state"""
        self._work, self._name, self._config = work, name, config
        self._state: State | None = None

    def read(self) -> PassSoFar | None:
        """What an earlier start has found; None if there is nothing. `restore` gives its hidden states."""
        state = None if self._work is None else self._work.read(self._name)
        if state is None:
            return None
        self._state = state
        return _read(state, self._config)

    def restore(self, hidden: WindowStates) -> None:
        """Give hidden states the values that they had when what `read` has found was kept, if blocks were left then."""
        if self._state is None:
            return
        with self._state as state:
            if state.values["layer"] <= self._config.layers:
                hidden.restore(state, "hidden")
        self._state = None

    def keep(self, so_far: PassSoFar, hidden: WindowStates | None) -> None:
        """Keep the state, if it is time for it. hidden: hidden states behind the last block; None when all is done"""
        if self._work is None:
            return
        pace = self._work.pace
        if not (pace.due if hidden is not None else pace.due_cheaply):
            return
        with pace.keeping():
            arrays = {} if hidden is None else hidden.kept("hidden")
            values, further = _written(so_far)
            if self._work.write(self._name, values, {**arrays, **further}):
                layers = self._config.layers
                blocks = f"the statistics of block {so_far.layer} of {layers}"
                self._work.add([{"said": blocks if hidden is not None else "the statistics of the text"}])


def _written(so_far: PassSoFar) -> tuple[dict[str, Any], dict[str, np.ndarray | Streamed]]:
    """Plain values and arrays of a state."""
    arrays: dict[str, np.ndarray | Streamed] = {}
    shared: dict[int, dict[str, Any]] = {}
    for name, stats in so_far.stats.items():
        if id(stats) not in shared:
            at = len(shared)
            shared[id(stats)] = {"names": [], "count": stats.count}
            arrays |= {f"stats.{at}.{part}": getattr(stats, part) for part in _VALUES}
            if stats.gram is not None:
                arrays[f"stats.{at}.gram"] = stats.gram
        shared[id(stats)]["names"].append(name)
    searches = []
    for at, found in enumerate(so_far.rescalings):
        layers = {}
        for layer, rescalings in found.items():
            layers[str(layer)] = [[each.loss_before, each.loss_after, each.reason] for each in rescalings]
            arrays |= {f"scale.{at}.{layer}.{n}": each.scale for n, each in enumerate(rescalings)}
        searches.append(layers)
    arrays |= {f"routed.{layer}": np.asarray(counts, np.int64) for layer, counts in so_far.routed.items()}
    return {"layer": so_far.layer, "stats": list(shared.values()), "searches": searches}, arrays


def _read(state: State, config: ModelConfig) -> PassSoFar:
    stats: dict[str, Stats] = {}
    for at, told in enumerate(state.values["stats"]):
        square, mean_abs, max_abs, sample = (state.array(f"stats.{at}.{part}") for part in _VALUES)
        gram = state.array(f"stats.{at}.gram") if f"stats.{at}.gram" in state else None
        stats |= dict.fromkeys(told["names"], Stats(told["count"], square, mean_abs, max_abs, gram, sample))
    rescalings = []
    for at, layers in enumerate(state.values["searches"]):
        found = {}
        for layer, told in layers.items():
            groups = linear_groups(config, int(layer))
            found[int(layer)] = tuple(
                Rescaling(group, state.array(f"scale.{at}.{layer}.{n}"), *each)
                for n, (group, each) in enumerate(zip(groups, told, strict=True))
            )
        rescalings.append(found)
    routed = {int(name.partition(".")[2]): state.array(name) for name in state.names if name.startswith("routed.")}
    return PassSoFar(state.values["layer"], stats, tuple(rescalings), routed)


def started(searches: Sequence[object]) -> PassSoFar:
    """Nothing found yet, for so many searches."""
    return PassSoFar(rescalings=tuple({} for _ in searches))
