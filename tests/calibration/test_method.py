"""Methods and efforts by name."""

from __future__ import annotations

import pytest

from bitsmith.calibration.method import Method, check_effort, default_method, methods
from bitsmith.errors import UsageError
from bitsmith.quant.formats import get_format
from bitsmith.quant.input_rounding import InputRounding


@pytest.mark.parametrize("name", methods())
def test_names_come_back(name: str) -> None:
    assert str(Method.parse(name)) == name


def test_words_may_come_in_any_order_and_case() -> None:
    assert Method.parse(" GPTQ+awq ") == Method("gptq", "awq")
    assert Method.parse("awq+nearest") == Method("nearest", "awq")


@pytest.mark.parametrize("name", ["", "gtpq", "awq+smoothquant", "gptq+learned", "gptq+gptq", "awq,gptq", "+"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r'method=".*known: nearest, gptq, learned, awq, awq\+gptq'):
        Method.parse(name)


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(UsageError, match='effort="much": unknown; known: fast, normal, high, max'):
        check_effort("much")


def test_only_the_nearest_codes_do_without_text() -> None:
    assert [name for name in methods() if not Method.parse(name).needs_text] == ["nearest"]


def test_the_default_follows_bits_and_effort() -> None:
    coarse, fine = [get_format("q4_k"), get_format("q8_0")], [get_format("q8_0")]
    efforts = ("fast", "normal", "high")
    assert [str(default_method(coarse, effort)) for effort in efforts] == ["nearest", "gptq", "learned"]
    assert [str(default_method(fine, effort)) for effort in efforts] == ["nearest", "nearest", "gptq"]
    int8, fp8 = [InputRounding("int8", "token")], [InputRounding("fp8", "token")]
    assert [str(default_method(fine, effort, inputs=int8)) for effort in efforts] == [
        "nearest",
        "smoothquant",
        "smoothquant+gptq",
    ]
    assert str(default_method(fine, "normal", inputs=fp8)) == "nearest"


def test_hidden_states_are_counted() -> None:
    assert [Method("gptq").hidden_state_buffers(effort) for effort in ("fast", "normal", "high")] == [1, 2, 2]
    assert Method("nearest", "awq").hidden_state_buffers("normal") == 1
    assert Method("learned").hidden_state_buffers("fast") == 3
