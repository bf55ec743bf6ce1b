"""What the types of a model's tensors cost, for budgets: measured once, kept, and scaled to true divergences.

Around the original, one backward pass gives the cost of every type. Rounded matrices also change what others cost.
So the best types of a fixed scale of sizes (`search.anchor`) are anchors: a pass around an anchor gives the true slope
there, and true divergences say which of both is better, and how large the loss really is. A budget takes the anchor
next to it. All of it is kept, so that a second budget near the first only solves. With GPTQ, whose codes depend on each
other, there are no anchors.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.calibration.method import Method, default_method
from bitsmith.calibration.sensitivity.kept import Kept, model_sha256, program_key
from bitsmith.calibration.sources import SELF, CalibrationTokens, Request, read_tokens
from bitsmith.errors import UsageError
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.fitting import as_costs, resources_of
from bitsmith.recipe.allocation.search import anchor, best, smallest
from bitsmith.recipe.allocation.units import Allocatable
from bitsmith.system.progress import Progress, Report

if TYPE_CHECKING:
    from bitsmith.calibration.run import Prepared
    from bitsmith.calibration.sensitivity.measuring import Measuring

_log = logging.getLogger(__name__)

_CONTEXT = 128  # tokens of a window
_WINDOWS, _MEASURED_ON = 64, 32
_LEAST = 4  # windows
_FLOOR = 0.5  # of the plain sum of costs: what an expected loss is at least


class Sensitivities:
    """Costs of the choices of all units, kept in the user's cache folder.

    Matrices whose type is given (`Allocatable.fixed`) are rounded in every measurement, and part of every loss.
    """

    def __init__(self, allocatable: Allocatable, measuring: Callable[[], Measuring], kept: Kept) -> None:
        """measuring: makes what measures; called when something is not kept yet"""
        self.units = allocatable.units
        self._fixed = [0] * len(allocatable.fixed)  # their choices
        self._make, self._kept = measuring, kept

    @cached_property
    def _measuring(self) -> Measuring:
        return self._make()

    @property
    def costs(self) -> list[np.ndarray]:
        """Expected divergence of each choice of each unit alone, nats a token: float64 [choices] each."""
        return self._costs[: len(self.units)]

    @property
    def _costs(self) -> list[np.ndarray]:
        """Those of all units, then of the matrices whose type is given."""
        found = self._kept.get("costs")
        if found is None:
            found = [each.tolist() for each in self._measuring.costs()]
            self._kept.put("costs", found)
        return as_costs(found)

    def around(self, budget: int) -> list[np.ndarray]:
        """The costs that hold for about `budget` bytes of units. They may lack a constant that all choices share."""
        found = self._anchor(budget)
        return as_costs(found["changes"]) if found["better"] else self.costs

    def expected(self, chosen: Sequence[int], budget: int) -> float:
        """The expected true divergence of chosen types, nats a token."""
        found, plain = self._anchor(budget), self.total(chosen)
        if not found["better"]:
            return plain * float(found["scale"])
        return max(float(found["divergence"]) + _total(as_costs(found["changes"]), chosen), _FLOOR * plain)

    def total(self, chosen: Sequence[int]) -> float:
        """The sum of the costs of chosen types: their expected divergence, without what they do to each other."""
        return _total(self._costs, [*chosen, *self._fixed])

    def true(self, chosen: Sequence[int]) -> float:
        """The true divergence of chosen types, nats a token. It is not kept."""
        return float(self._measuring.divergence([*chosen, *self._fixed]))

    def measured(self, chosen: Sequence[int], budget: int) -> float:
        """The true divergence of chosen types that no budget chose, kept; with GPTQ's codes the expected one."""
        if self._anchor(budget)["unknown"]:
            return self.expected(chosen, budget)
        name = "true " + hashlib.sha256(repr(list(chosen)).encode()).hexdigest()[:16]
        found = self._kept.get(name)
        if found is None:
            found = self.true(chosen)
            self._kept.put(name, found)
        return float(found)

    def _anchor(self, budget: int) -> dict[str, Any]:
        """The anchor next to a budget: its types, their true divergence, how it changes, and whether that helps."""
        nbytes = anchor(self.units, budget)
        name = f"anchor {nbytes}"
        found = self._kept.get(name)
        if found is None:
            found = self._new_anchor(nbytes)
            self._kept.put(name, found)
        return dict(found)

    def _new_anchor(self, nbytes: int) -> dict[str, Any]:
        costs, measuring = self.costs, self._measuring
        if not measuring.refines:
            return {"better": False, "scale": 1.0, "unknown": True}
        chosen = best(self.units, costs, max(nbytes, smallest(self.units)))
        true = self.true(chosen)
        changes = measuring.changes([*chosen, *self._fixed], self._costs)[: len(self.units)]
        second = best(self.units, changes, max(nbytes, smallest(self.units)))
        refined = true if second == chosen else self.true(second)
        _log.info("anchor of %d bytes: divergence %.5f, after a second round %.5f", nbytes, true, refined)
        return {
            "better": refined < true,
            "unknown": False,  # whether true divergences of the run's codes are
            "scale": _scale(true, self.total(chosen)),
            "divergence": true,
            "changes": [each.tolist() for each in changes],
        }


def _scale(true: float, plain: float) -> float:
    """What the plain sum of costs is multiplied with. Near zero, true divergences are noise of float32."""
    return max(true / plain, _FLOOR) if plain > 0 else 1.0


def _total(costs: Sequence[np.ndarray], chosen: Sequence[int]) -> float:
    return float(sum(each[at] for each, at in zip(costs, chosen, strict=True)))


def sensitivities_of(
    allocatable: Allocatable,
    config: QuantizeConfig,
    report: Report,
    *,
    prepared: Prepared | None = None,
    options: bool = True,
) -> Sensitivities:
    """The sensitivities of a model. The model is loaded when something is not kept yet.

    prepared: the calibration of the run; None without one
    options: whether the command has --memory and --force, which an error may name
    Raises UsageError without torch, or if the text is too short.
    """
    from bitsmith.calibration.run import require_torch

    require_torch()
    from bitsmith.calibration.sensitivity.calibrated import WeightedRounding, calibrated
    from bitsmith.calibration.sensitivity.footprint import Search, check_search, row_share
    from bitsmith.calibration.sensitivity.measuring import Measuring, Texts
    from bitsmith.calibration.sensitivity.watched import gradients_of
    from bitsmith.runtime.torch.device import choose_device

    device = choose_device(config.device)
    text = _text(allocatable, config, report)
    texts = Texts(*_parted(text.tokens, config.seed))
    resources, checkpoint = resources_of(config, device), allocatable.checkpoint
    rounder = _rounder(allocatable, config, prepared)
    gptq, counts = prepared is not None and rounder != "nearest", (len(texts.calibration), len(texts.measured_on))
    units, item = (*allocatable.units, *allocatable.fixed), gradients_of(device).itemsize
    search = Search(checkpoint.config, units, *counts, text.tokens.shape[1], not gptq, gptq, item)
    key = {
        "program": program_key(),
        "model": model_sha256(checkpoint),
        "merged": dict(checkpoint.merged),
        "text": text.record.to_dict(),
        "units": [[unit.names, [choice.label for choice in unit.choices]] for unit in units],
        "device": device.partition(":")[0],
        "error bytes": item,
        "rows": row_share(item * search.errors, resources.memory),
        "rounder": rounder,
        "calibration": None if prepared is None else prepared.record.to_dict(),
    }

    def measuring() -> Measuring:
        about = "" if config.force else check_search(search, resources, options=options)
        if about:
            _log.info("choosing types: about %s", about)
        report(Progress("sensitivity", 0, counts[0], "windows", about and f"about {about}"))
        rounding = WeightedRounding()
        if prepared is not None:
            seen, ready = replace(text, tokens=texts.calibration), prepared.ready
            rounding = calibrated(checkpoint, seen, importance=ready, gptq=gptq, resources=resources, report=report)
        return Measuring(checkpoint, units, texts, rounding, resources, report)

    return Sensitivities(allocatable, measuring, Kept(key))


def _parted(tokens: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a text that costs are measured on, and the others: int64 [windows, n] each."""
    windows = np.random.default_rng(seed).permutation(len(tokens))
    share = len(windows) * _WINDOWS // (_WINDOWS + _MEASURED_ON)
    return tokens[np.sort(windows[:share])], tokens[np.sort(windows[share:])]


def _rounder(allocatable: Allocatable, config: QuantizeConfig, prepared: Prepared | None) -> str:
    """The rounder that will choose the codes."""
    if config.method is not None:
        return Method.parse(config.method).rounder
    if prepared is None or (prepared.request is None and config.effort is None):
        return "nearest"
    return default_method(allocatable.base.formats, config.effort or "normal").rounder


def _text(allocatable: Allocatable, config: QuantizeConfig, report: Report) -> CalibrationTokens:
    """The calibration text in short windows; the built-in one if it is not a text."""
    from pathlib import Path

    from bitsmith.calibration.imatrix import is_imatrix_name

    checkpoint = allocatable.checkpoint
    sources = [each for each in config.sources if str(each) != SELF and not is_imatrix_name(Path(each))]
    limit = checkpoint.config.context
    context = min(_CONTEXT, limit)
    request = Request.of(
        sources or None, limit=limit, tokens=context * (_WINDOWS + _MEASURED_ON), context=context, seed=config.seed
    )
    found = read_tokens(request, checkpoint.tokenizer(), vocab=checkpoint.config.vocab, report=report)
    if len(found.tokens) < _LEAST:
        raise UsageError(
            f"{found.source} has only {found.tokens.size:,} tokens; to choose types, give at least "
            f"{_LEAST * context:,} with --calibration."
        )
    return found
