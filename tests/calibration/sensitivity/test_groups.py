"""Costs are checked against true divergences, group by group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitsmith.calibration.resources import Resources
from bitsmith.calibration.sensitivity.groups import groups, types_of_size
from bitsmith.calibration.sensitivity.measuring import Costs, Measuring, Texts
from bitsmith.calibration.sensitivity.rounded import rounded
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.recipe.allocation.units import Allocatable
from bitsmith.recipe.plan import PlannedTensor
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target
from tests.tiny import VOCAB, make_folder


class Nearest:
    gains = None

    def __call__(self, name: str, w: np.ndarray, planned: PlannedTensor) -> np.ndarray:
        return rounded(w, planned, None)


@pytest.fixture(scope="module")
def open_model(tmp_path_factory: pytest.TempPathFactory) -> Allocatable:
    folder: Path = make_folder(tmp_path_factory.mktemp("groups") / "model")
    return Allocatable(open_checkpoint(folder), Target("gguf", "q8_0"), PlanOptions(filename="x.gguf"))


@pytest.fixture(scope="module")
def measuring(open_model: Allocatable) -> Measuring:
    windows = np.random.default_rng(0).integers(3, VOCAB, (16, 32))
    texts = Texts(windows[:12], windows[12:])
    return Measuring(open_model.checkpoint, open_model.units, texts, Nearest(), Resources(None, 1, "cpu"))


def test_units_that_cost_much_are_alone_and_others_by_kind(open_model: Allocatable) -> None:
    costs = [1.0] * len(open_model.units)
    costs[3], costs[5] = 50.0, 0.0
    found = groups(open_model.units, costs)
    assert found[0] == [3]
    assert sorted(at for each in found for at in each) == [at for at in range(len(costs)) if at != 5]
    kinds = [{open_model.units[at].names[0].split(".", 2)[-1] for at in each} for each in found]
    assert all(len(each) == 1 for each in kinds)
    assert any(len(each) == 2 for each in found)  # one of each of two layers


def test_types_of_the_size_of_the_budget(open_model: Allocatable) -> None:
    costs = [np.r_[np.ones(len(unit.choices) - 1), 0.0] for unit in open_model.units]
    for layout in ("q4_0", "q5_0", "q8_0"):
        choices = [next(each for each in unit.choices if each.label == layout) for unit in open_model.units]
        nbytes = sum(each.nbytes for each in choices)
        for unit, at in zip(open_model.units, types_of_size(open_model.units, costs, nbytes), strict=True):
            found, wanted = unit.choices[at], next(each for each in unit.choices if each.label == layout)
            assert found.nbytes == pytest.approx(wanted.nbytes, rel=0.03)
    widest = types_of_size(open_model.units, costs, 1 << 40)
    assert all(at == len(unit.choices) - 2 for unit, at in zip(open_model.units, widest, strict=True))


def test_factors_make_up_for_costs_that_are_too_large(measuring: Measuring) -> None:
    costs, nbytes = measuring.costs(), sum(unit.choices[1].nbytes for unit in measuring._units)
    fair = np.array(measuring.factors(costs, nbytes))
    assert ((fair > 0.4) & (fair < 2.5)).all()
    large = [3.0 * each for each in costs.nearest]
    assert np.array(measuring.factors(Costs(large, large), nbytes)) == pytest.approx(fair / 3, rel=1e-3)


def test_errors_are_those_of_the_run(measuring: Measuring) -> None:
    """With a gain, a true divergence that grows with the square of errors gives the same factors."""
    costs, nbytes = measuring.costs(), sum(unit.choices[0].nbytes for unit in measuring._units)
    fair = np.array(measuring.factors(costs, nbytes))
    gained = Costs(costs.nearest, [0.25 * each for each in costs.run])
    found = np.array(measuring.factors(gained, nbytes))
    seen = found != 1.0  # not so small that it is noise
    assert seen.sum() >= len(seen) / 2
    assert found[seen] == pytest.approx(fair[seen], rel=0.1)
