"""Error feedback into code books: what it gains, and what it does not depend on."""

import numpy as np
import pytest
import torch

from bitsmith.quant.formats.code_books import CODE_BOOKS, CodeBookFormat
from bitsmith.quant.rounders.gptq import gptq, gptq_rows
from bitsmith.quant.rounders.hessian import prepare
from tests.quant.rounders.problems import error, problem

NAMES = [format.name for format in CODE_BOOKS]


@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_outputs_lose_less_than_with_nearest(format: CodeBookFormat) -> None:
    w, h = problem()
    codes, params = format.nearest(w, np.diagonal(h).copy())
    before = error(w, format.grid(params).values(codes), h).sum()
    losses = []
    for sweeps in (0, 2):
        rounded = gptq(w, format, h, sweeps=sweeps)
        losses.append(error(w, np.asarray(format.grid(rounded.params).values(rounded.codes)), h).sum())
        assert rounded.report.error == pytest.approx(losses[-1], rel=1e-3)
        assert rounded.codes.dtype == np.int32
    assert losses[0] < 0.85 * before
    assert losses[1] < losses[0]


@pytest.mark.parametrize("format", CODE_BOOKS[::3], ids=NAMES[::3])
def test_rows_do_not_depend_on_their_slab(format: CodeBookFormat) -> None:
    w, h = problem(rows=48)
    factor = prepare(h, order="vectors")
    whole = gptq_rows(torch.from_numpy(w), format, factor, sweeps=1)
    part = gptq_rows(torch.from_numpy(w[16:32]), format, factor, sweeps=1)
    assert torch.equal(whole.codes[16:32], part.codes)
    assert all(torch.equal(torch.as_tensor(whole.params[name][16:32]), part.params[name]) for name in part.params)


def test_the_order_keeps_vectors_together() -> None:
    _, h = problem()
    order = prepare(h, order="vectors").order.reshape(-1, 8)
    assert torch.equal(order, order[:, :1] + torch.arange(8))
    assert torch.equal(order[:, 0] % 8, torch.zeros(len(order), dtype=torch.int64))
