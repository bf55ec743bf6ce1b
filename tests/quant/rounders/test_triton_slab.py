"""Triton's kernels of GPTQ: under the interpreter they give the codes of torch's code; compilers for GPUs take them."""

from __future__ import annotations

import pytest

from tests.interpreted import needs_triton, run

pytestmark = needs_triton
CASES = ("published", "swept", "together", "pivots")


@pytest.mark.parametrize("case", CASES)
def test_the_codes_of_torch(case: str) -> None:
    run("tests.quant.rounders.triton_cases", case)


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_kernels_compile_without_spilled_registers(capability: int) -> None:
    """No GPU is needed for it; what spills to local memory would be slow."""
    said = run("tests.quant.rounders.triton_compiled", str(capability), interpret=False)
    assert said.split() == ["compiled", "10"]
