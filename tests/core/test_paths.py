"""What rounding inputs costs on the built-in model: bounds that file types keep (bench/paths.py measures all)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.paths import measure
from bitsmith.system.core import core

pytestmark = pytest.mark.skipif(core() is None, reason="no C++ core")


@pytest.mark.parametrize("mix", ["f16", "q8_0", "q4_k_m", "q2_k", "iq4_xs"])
def test_the_int8_kernel_stays_near_the_reference(mix: str, tmp_path: Path) -> None:
    loss = measure(mix, tmp_path, windows=3)
    assert abs(loss.generation) < 1e-6
    assert abs(loss.prompt) < (2e-5 if mix == "f16" else 2e-4)
