"""Types fitted to the length of a row."""

import pytest

from bitsmith.recipe import FALLBACKS, GGUF_RULE_TYPES, fit_to_row


@pytest.mark.parametrize(
    ("wanted", "at_192"),
    [
        ("q2_k", "q4_0"),
        ("q3_k", "q4_0"),
        ("q4_k", "q5_0"),
        ("q5_k", "q5_1"),
        ("q6_k", "q8_0"),
        ("iq4_xs", "iq4_nl"),
        ("q4_1", "q4_1"),
        ("bf16", "bf16"),
    ],
)
def test_rows_of_192_take_the_type_with_smaller_blocks(wanted: str, at_192: str) -> None:
    assert fit_to_row(wanted, 192) == at_192
    assert fit_to_row(wanted, 768) == wanted


@pytest.mark.parametrize("wanted", sorted(GGUF_RULE_TYPES - {"f32", "bf16"}))
def test_rows_of_80_become_f16(wanted: str) -> None:
    assert fit_to_row(wanted, 80) == "f16"


def test_every_type_with_blocks_of_256_that_we_write_has_a_fallback() -> None:
    assert {t for t in GGUF_RULE_TYPES if t.endswith("_k") or t == "iq4_xs"} <= FALLBACKS.keys()
