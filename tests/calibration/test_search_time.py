"""Expected time of GPTQ's searches in code books and of K types."""

from __future__ import annotations

from pathlib import Path

import pytest

import bitsmith
from bitsmith.calibration.method import Method
from bitsmith.calibration.search_time import search_seconds
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.recipe.plan import PlannedTensor


def tensors(to: str, folder: Path) -> tuple[PlannedTensor, ...]:
    planned = bitsmith.quantize(
        "reference", to=to, out=folder / to.replace("/", "-"), dry_run=True, calibration="default"
    )
    return tuple(planned.plan.tensors)


def test_nothing_to_search(tmp_path: Path) -> None:
    assert search_seconds(tensors("native/int4", tmp_path), Method("gptq"), "normal", 1) == 0
    assert search_seconds(tensors("iq2_xs", tmp_path), Method("nearest"), "fast", 1) == 0


def test_it_grows_with_weights_and_sweeps_and_falls_with_threads(tmp_path: Path) -> None:
    books, k_types = tensors("iq2_xs", tmp_path), tensors("q2_k", tmp_path)
    normal = search_seconds(books, Method("gptq"), "normal", 1)
    assert search_seconds(books, Method("gptq"), "normal", 4) == pytest.approx(normal / 4)
    assert search_seconds((*books, *books), Method("learned"), "normal", 1) == pytest.approx(2 * normal)
    per_sweep = [search_seconds(books, Method("gptq"), name, 1) for name in ("fast", "normal", "high")]
    steps = [EFFORTS[name].sweeps for name in ("fast", "normal", "high")]
    assert (per_sweep[1] - per_sweep[0]) * steps[2] == pytest.approx((per_sweep[2] - per_sweep[0]) * steps[1])
    assert 0 < search_seconds(k_types, Method("gptq"), "normal", 1) < normal
