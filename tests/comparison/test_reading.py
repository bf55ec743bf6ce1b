"""Rows that begin alike are read once, and give the logits of rows that are read alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bitsmith
from bitsmith.comparison.tasks import reading
from bitsmith.comparison.tasks.reading import Row, end_logits
from bitsmith.runtime.base import AnyDecoder
from tests.runtime.small import decoder_of, random_tensors
from tests.runtime.test_delta import CONFIG


def rows(vocab: int) -> list[Row]:
    """Two subjects with examples of their own, three questions each of three or four answers; and rows apart."""
    rng = np.random.default_rng(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocab, count).tolist())

    found = []
    for examples in (some(30), some(25)):
        for _ in range(3):
            question = some(14)
            found += [Row((*examples, *question, *some(length)), length + 1) for length in (1, 5, 3)]
    found += [Row(some(40), 40), Row(some(3), 2), Row(some(1), 1), Row(found[0].tokens[:31], 1)]
    return [found[place] for place in rng.permutation(len(found))]


def check(decoder: AnyDecoder, monkeypatch: pytest.MonkeyPatch, tolerance: float) -> int:
    """Compare with rows alone. Returns the number of tokens that were computed."""
    computed: list[int] = []
    whole = decoder.hidden

    def hidden(*words: object, **named: np.ndarray) -> object:
        computed.append(int(named["counts"].sum()) if "counts" in named else 0)
        return whole(*words, **named)  # type: ignore[arg-type]

    wanted = rows(decoder.config.vocab)
    alone = [decoder.numpy(decoder.forward(np.array([row.tokens])))[0, row.free :] for row in wanted]
    model = SimpleNamespace(decoder=decoder, config=decoder.config)
    monkeypatch.setattr(reading, "_POSITIONS", 700)  # several batches
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "hidden", hidden)
        found = {
            number: each
            for numbers, logits in end_logits(model, wanted)  # type: ignore[arg-type]
            for number, each in zip(numbers, logits, strict=True)
        }
    assert sorted(found) == list(range(len(wanted)))
    for number, logits in enumerate(alone):
        assert found[number].shape == (wanted[number].wanted, decoder.config.vocab)
        assert np.abs(found[number] - logits).max() < tolerance
    return sum(computed)


@pytest.mark.parametrize("kernel", ["exact", "torch"])
def test_shared_beginnings_change_nothing(tiny: Path, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bitsmith.load(tiny, kernel=kernel)
    computed = check(model.decoder, monkeypatch, 2e-3 if kernel == "exact" else 1e-4)
    assert computed < 0.5 * sum(len(row.tokens) for row in rows(model.config.vocab))


def test_states_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose states cannot go back."""
    tensors = random_tensors(CONFIG)
    for name in tensors:
        if name.endswith("ssm_a"):
            tensors[name] = -np.abs(tensors[name])
    check(decoder_of(CONFIG, tensors), monkeypatch, 2e-4)


def test_one_row_and_none(tiny: Path) -> None:
    model = bitsmith.load(tiny, kernel="exact")
    assert list(end_logits(model, [])) == []
    ((numbers, (logits,)),) = end_logits(model, [Row((5, 6, 7), 1)])
    assert numbers == [0]
    assert np.allclose(logits, model.logits(np.array([[5, 6, 7]]), first=2)[0], atol=1e-4)
