"""Rows and batches: packed examples do not see each other, filled ones are not disturbed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from bitsmith.errors import UsageError
from bitsmith.tune.batches import IGNORED, Collator, check_packing, rows_of
from bitsmith.tune.examples import Example
from tests.torch_modules.models import built


def example(count: int, seed: int) -> Example:
    rng = np.random.default_rng(seed)
    return Example(rng.integers(1, 90, count).astype(np.int32), np.arange(count) > 0)


def test_packing_fills_rows() -> None:
    lengths = [30, 5, 20, 40, 12, 8, 33, 10]
    rows = rows_of([example(n, i) for i, n in enumerate(lengths)], context=40, packing=True)
    assert sorted(map(len, rows)) == [38, 40, 40, 40]
    assert sum(map(len, rows)) == sum(lengths)
    assert sum(int((row.positions == 0).sum()) for row in rows) == len(lengths)
    assert all((row.labels[row.positions == 0] == IGNORED).all() for row in rows)


def test_packed_examples_get_the_logits_they_have_alone() -> None:
    model = built("llama").eval()
    model.config.use_cache = False  # as `load_base` has it; with a cache, transformers does not look for packed rows
    alone = [example(n, i) for i, n in enumerate((9, 14, 5))]
    (row,) = rows_of(alone, context=40, packing=True)
    batch = Collator(0, packed=True)([row])
    longer = Collator(0, packed=True)([row, rows_of([example(40, 9)], context=40, packing=True)[0]])
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0]
        filled = model(input_ids=longer["input_ids"], position_ids=longer["position_ids"]).logits[0, : len(row)]
        ids = [torch.from_numpy(each.ids[None].astype(int)) for each in alone]
        separate = torch.cat([model(input_ids=each).logits[0] for each in ids])
    assert torch.allclose(packed, separate, atol=1e-4)
    assert torch.allclose(filled, separate, atol=1e-4)


def test_filled_rows() -> None:
    rows = rows_of([example(4, 0), example(7, 1)], context=40, packing=False)
    batch = Collator(3, packed=False)(rows)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"][0, 4:].tolist() == [3, 3, 3]
    assert batch["labels"][0].tolist() == [IGNORED, *rows[0].ids[1:].tolist(), *[IGNORED] * 3]


def test_layers_with_a_state_are_not_packed() -> None:
    check_packing(SimpleNamespace(layer_types=["full_attention", "sliding_attention"], model_type="gemma3"))
    with pytest.raises(UsageError, match="keep a state"):
        check_packing(SimpleNamespace(layer_types=["linear_attention", "full_attention"], model_type="qwen3_next"))
