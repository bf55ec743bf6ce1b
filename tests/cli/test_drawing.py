"""Numbers as a person reads them."""

import pytest

from bitsmith.cli.drawing import human_bytes, human_seconds


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (5_370_000, "5.37 MB"), (4.9e9, "4.9 GB"), (1.234e12, "1.234 TB")],
)
def test_bytes(count: float, expected: str) -> None:
    assert human_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.44, "0.4 s"), (75.2, "75 s"), (720, "12 min"), (7500, "2 h 05 min")],
)
def test_seconds(seconds: float, expected: str) -> None:
    assert human_seconds(seconds) == expected
