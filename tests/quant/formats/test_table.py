"""Formats by name."""

import pytest

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.quant.formats import FORMATS, get_format, resolve


def test_every_format_is_found_under_its_name() -> None:
    for name, format in FORMATS.items():
        assert format.name == name
        assert get_format(name) is format
        assert get_format(name.upper()) is format
        assert 1 <= format.bits <= 8
    wanted = {"int8-channel", "int2-g32-asym", "int3-tensor", "nf4", "fp4-dq", "fp8", "fp8-tensor", "q4_k", "iq4_xs"}
    assert wanted <= FORMATS.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int4", "int4-g128"),
        ("int8-asym", "int8-g128-asym"),
        ("int3-asym-g64", "int3-g64-asym"),
        ("int3-g64-asym", "int3-g64-asym"),
        ("int2-asym-channel", "int2-channel-asym"),
        (" Int4-Tensor ", "int4-tensor"),
    ],
)
def test_integer_suffixes(name: str, expected: str) -> None:
    assert get_format(name).name == expected


@pytest.mark.parametrize(
    ("name", "cols", "expected"),
    [
        ("int4", 256, "int4-g128"),
        ("int4", 192, "int4-g64"),
        ("int4-asym", 96, "int4-g32-asym"),
        ("int4-channel", 7, "int4-channel"),
        ("fp8", 7, "fp8"),
        ("nf4", 64, "nf4"),
        ("q4_k", 512, "q4_k"),
    ],
)
def test_resolve(name: str, cols: int, expected: str) -> None:
    assert resolve(name, cols).name == expected


@pytest.mark.parametrize(
    ("name", "cols", "message"),
    [
        ("int4", 100, "int4 needs a row length that divides by 32; these rows have 100 weights: choose int4-channel"),
        ("int4-asym", 8, "choose int4-channel-asym"),
        ("int4-g128", 192, "int4-g128 needs a row length that divides by 128"),
        ("nf4", 32, "nf4 needs a row length that divides by 64"),
        ("fp8", 0, "these rows have 0 weights"),
    ],
)
def test_resolve_says_what_is_impossible(name: str, cols: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        resolve(name, cols)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("nf5", "did you mean nf4"),
        ("q4k", "q4_k"),
        ("int5", "int8"),
        ("int4-g64-g32", "int4-g64"),
        ("int4-asym-asym", "int4-g128-asym"),
        ("int4-", "int4-g128"),
        ("", "not a format. Known: int8, int4"),
    ],
)
def test_unknown_names_list_the_nearest(name: str, near: str) -> None:
    for find in (get_format, lambda name: resolve(name, 256)):
        with pytest.raises(UsageError, match=near):
            find(name)
