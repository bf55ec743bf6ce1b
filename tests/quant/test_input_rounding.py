"""Rounding of inputs: one arithmetic on numpy and torch. tests/oracle holds it against compressed-tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.quant.input_rounding import EPSILON, TYPES, InputRounding

X = np.random.default_rng(0).standard_t(3, (2, 5, 64)).astype(np.float32)
SCHEMES = [InputRounding(type, scope) for type in TYPES for scope in ("token", "tensor")]
SCHEMES += [InputRounding(type, "tensor", 0.0123) for type in TYPES]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_numpy_and_torch_round_alike(scheme: InputRounding) -> None:
    found = scheme.rounded(X)
    assert found.dtype == np.float32
    assert np.array_equal(found, scheme.rounded(torch.from_numpy(X)).numpy())
    assert 0 < np.abs(found - X).max() < 0.1 * np.abs(X).max() or scheme.scale is not None


def test_integers_by_hand() -> None:
    scale = np.float32(2.0)
    x = np.array([[1.0, 3.0, -1.0, 5.1, 999.0, -999.0]], np.float32)  # 0.5 and 1.5 go to the even neighbour
    found = InputRounding("int8", "tensor", float(scale)).rounded(x)
    assert found.tolist() == [[0.0, 4.0, 0.0, 6.0, 254.0, -256.0]]
    largest = np.array([[0.1, -255.0]], np.float32)
    assert InputRounding("int8", "token").rounded(largest).tolist() == [[0.0, -256.0]]  # -127.5, to the even -128


def test_floats_by_hand() -> None:
    x = np.array([[1.0625, 1.1875, 449.0, -1e6, 2.0**-10, 2.0**-9]], np.float32)
    found = InputRounding("fp8", "tensor", 1.0).rounded(x)
    assert found.tolist() == [[1.0, 1.25, 448.0, -448.0, 0.0, 2.0**-9]]


@pytest.mark.parametrize("type", [type for type in TYPES if type != "llm.int8"])  # its large columns are not rounded
def test_a_token_has_its_own_scale_and_a_tensor_one(type: str) -> None:
    x = X.copy()
    x[0, 0] *= 1000
    by_token = InputRounding(type, "token").rounded(x)
    assert np.array_equal(by_token[1], InputRounding(type, "token").rounded(X)[1])
    assert not np.array_equal(InputRounding(type, "tensor").rounded(x)[1], InputRounding(type, "tensor").rounded(X)[1])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zero_stays_zero_and_nothing_divides_by_it(scheme: InputRounding) -> None:
    assert not scheme.rounded(np.zeros((3, 8), np.float32)).any()
    assert InputRounding("int8", "token").scale_of(np.zeros(1, np.float32)) == [EPSILON]


def test_words() -> None:
    assert str(InputRounding("int8", "token")) == "int8, per token"
    assert str(InputRounding("fp8", "tensor", 1 / 47)) == "fp8, per tensor, scale 0.02128"
