"""The memory of GPTQ on GPUs of known sizes, by hand and by the table of devices."""

from __future__ import annotations

import pytest

from bitsmith.planner.calibrating import KERNELS, calibrating_on
from bitsmith.planner.devices import DEVICES
from bitsmith.planner.model_spec import from_shape
from bitsmith.planner.network import Network
from bitsmith.planner.shapes import known_shapes


def network(name: str) -> Network:
    return from_shape(known_shapes()[name]).network


def test_a_70b_fits_a_card_of_24_gb() -> None:
    found = calibrating_on(network("llama-3-70b"), DEVICES["rtx-4090"].memory)
    assert found is not None
    assert found.fits
    gram, block = 4 * 28672**2, 4 * 855_638_016
    assert (
        found.peak.nbytes == KERNELS + 2 * block + 4 * gram
    )  # Hessian, drift, what is left of it, and what comes next
    assert found.peak.name == "order of columns of ffn_down"
    assert 256 < found.rows <= 16384
    assert f"{found.peak.nbytes / 1e9:.1f} GB" in found.text


@pytest.mark.parametrize(("device", "fits"), [("t4", False), ("rtx-4080", False), ("l4", True), ("a100-80", True)])
def test_cards_that_hold_it(device: str, fits: bool) -> None:
    found = calibrating_on(network("llama-3-70b"), DEVICES[device].memory)
    assert found is not None
    assert found.fits == fits
    assert ("too much" in found.text) != fits


def test_more_room_more_rows_and_the_next_block() -> None:
    small, large = (calibrating_on(network("llama-3-8b"), room << 30) for room in (6, 80))
    assert small is not None
    assert large is not None
    assert small.rows < large.rows
    assert (small.ahead, large.ahead) == (False, True)


def test_experts_count_one_by_one() -> None:
    """All experts of a block in float32, and their Hessians up to 2 GB at a time."""
    found = calibrating_on(network("mixtral-8x7b"), 1 << 40)
    assert found is not None
    block = 4 * (8 * 3 * 4096 * 14336 + 2 * 4096 * 4096 + 2 * 1024 * 4096)
    gram = 4 * 14336**2
    assert found.peak.nbytes > KERNELS + 2 * block + gram
    assert found.peak.nbytes < KERNELS + 2 * block + 6 * gram
