"""The sampling filters against llama.cpp's, through its C interface."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from bitsmith.runtime.sampler import candidates, penalized
from bitsmith.runtime.sampling import PENALTY_WINDOW, Sampling
from tests.oracle.llama import _library


class _TokenData(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float))


class _TokenDataArray(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.POINTER(_TokenData)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


def _theirs(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """Token -> logit, as llama.cpp's chain leaves them."""
    library = _library()
    items = (_TokenData * len(logits))(*(_TokenData(i, float(x), 0.0) for i, x in enumerate(logits)))
    array = _TokenDataArray(items, len(logits), -1, False)
    chain: list[tuple[str, list[Any]]] = [
        ("top_k", [ctypes.c_int32(sampling.top_k)]),
        ("top_p", [ctypes.c_float(sampling.top_p), ctypes.c_size_t(1)]),
        ("min_p", [ctypes.c_float(sampling.min_p), ctypes.c_size_t(1)]),
        ("temp", [ctypes.c_float(sampling.temperature)]),
    ]
    for name, arguments in chain:
        make = library[f"llama_sampler_init_{name}"]
        make.restype = ctypes.c_void_p
        sampler = ctypes.c_void_p(make(*arguments))
        library.llama_sampler_apply(sampler, ctypes.byref(array))
        library.llama_sampler_free(sampler)
    return {array.data[i].id: array.data[i].logit for i in range(array.size)}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
        Sampling(temperature=0.3, top_k=7, top_p=1.0, min_p=0.0),
        Sampling(temperature=2.0, top_k=0, top_p=0.6, min_p=0.0),
        Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.2),
        Sampling(temperature=1.5, top_k=100, top_p=0.9, min_p=0.02),
        Sampling(temperature=1.5, top_k=0, top_p=0.999, min_p=0.001),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [5, 300, 4000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_same_tokens_same_probabilities(sampling: Sampling, size: int, spread: float) -> None:
    logits = (np.random.default_rng(size).standard_normal(size) * spread).astype(np.float32)
    theirs = _theirs(logits, sampling)
    ids, probabilities = candidates(logits.astype(np.float64), sampling)
    assert set(ids.tolist()) == set(theirs)
    weights = np.exp(np.array([theirs[token] for token in ids.tolist()], np.float64) - max(theirs.values()))
    np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("penalty", [1.0, 1.1, 2.0, 0.8])
def test_same_penalty_of_repeated_tokens(penalty: float) -> None:
    random = np.random.default_rng(1)
    logits = (random.standard_normal(50) * 3).astype(np.float32)
    library = _library()
    make = library.llama_sampler_init_penalties
    make.restype = ctypes.c_void_p
    counts = ctypes.c_int32(len(logits)), ctypes.c_int32(PENALTY_WINDOW)
    sampler = ctypes.c_void_p(make(*counts, ctypes.c_float(penalty), ctypes.c_float(0), ctypes.c_float(0)))
    prompt = random.integers(0, 50, 100).tolist()
    for token in prompt:
        library.llama_sampler_accept(sampler, ctypes.c_int32(token))
    items = (_TokenData * len(logits))(*(_TokenData(i, float(x), 0.0) for i, x in enumerate(logits)))
    array = _TokenDataArray(items, len(logits), -1, False)
    library.llama_sampler_apply(sampler, ctypes.byref(array))
    library.llama_sampler_free(sampler)
    theirs = [array.data[i].logit for i in range(array.size)]
    ours = penalized(logits.astype(np.float64), prompt[-PENALTY_WINDOW:], penalty)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert len(set(prompt[-PENALTY_WINDOW:])) < 50  # some tokens are not penalized
