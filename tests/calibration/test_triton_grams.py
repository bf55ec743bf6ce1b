"""X^T X of rounded inputs in Triton, under its interpreter."""

from __future__ import annotations

import pytest

from tests.interpreted import needs_triton, run


@needs_triton
@pytest.mark.parametrize("case", ["sums", "plain"])
def test_sums(case: str) -> None:
    run("tests.calibration.triton_cases", case)
