"""Costs of types: gradients by hand, the second order beside true divergences, and errors of some rows only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitsmith.calibration.sensitivity.divergence import Divergence
from bitsmith.calibration.sensitivity.fisher import cost, direction, fisher
from bitsmith.calibration.sensitivity.joining import Cost, joined
from bitsmith.calibration.sensitivity.meter import GradientMeter
from bitsmith.calibration.sensitivity.watched import WatchedModel
from bitsmith.models.checkpoint import open_checkpoint
from tests.tiny import VOCAB, make_folder

NAMES = ("token_embd", "blk.0.attn_q", "blk.1.ffn_down", "output")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WatchedModel:
    return WatchedModel(open_checkpoint(make_folder(tmp_path_factory.mktemp("sensitivity") / "model")))


def tokens(windows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCAB, (windows, 16))


def errors(model: WatchedModel, size: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Two random errors of each matrix of NAMES."""
    random = torch.Generator().manual_seed(0)
    found = {}
    for name in NAMES:
        own = model.matrices[name]
        noise = torch.randn((2, *own.shape), generator=random) * size * torch.tensor([1.0, 2.0])[:, None, None]
        found[name] = noise, torch.arange(len(own))
    return found


def alone(found: Cost) -> np.ndarray:
    """The estimate from one matrix alone."""
    return joined([found], [["small", "large"]], [True])[0]


def test_the_gradient_of_the_divergence_is_its_slope(model: WatchedModel) -> None:
    measure, given = Divergence(model, tokens(4)), errors(model, 0.01)
    base = {name: model.matrices[name] + each[0][0] for name, each in given.items()}
    slopes = measure.gradient(base, given)
    for name in NAMES:
        direction = given[name][0][1]
        ahead, behind = (measure.of({**base, name: base[name] + step * direction}) for step in (0.05, -0.05))
        assert slopes[name][1] == pytest.approx((ahead - behind) / 0.1, rel=0.05, abs=1e-7)


def test_the_original_has_no_divergence(model: WatchedModel) -> None:
    measure = Divergence(model, tokens(2))
    assert measure.of({}) == pytest.approx(0.0, abs=1e-9)
    assert measure.of({name: model.matrices[name].clone() for name in NAMES}) == pytest.approx(0.0, abs=1e-9)


def test_costs_are_near_true_divergences(model: WatchedModel) -> None:
    text, given = tokens(64), errors(model, 0.004)
    seen, measure = fisher(model, given, text).seen, Divergence(model, text)
    costs = [cost(seen[name], each, text.size, whole=each, rows=rows) for name, (each, rows) in given.items()]
    for name, found in zip(
        given, joined(costs, [["small", "large"]] * len(costs), [name[:3] != "blk" for name in given]), strict=True
    ):
        held, _ = given[name]
        true = [measure.of({name: model.matrices[name] + each}) for each in held]
        assert found == pytest.approx(true, rel=0.45)
        assert found[1] > 2 * found[0]


def test_directions_have_the_covariance_of_predictions() -> None:
    """diag(p) - p p^T, so that what is added to all logits alike, which changes no prediction, counts for nothing."""
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0])
    found = direction(logits.expand(200_000, 4), random=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    torch.testing.assert_close(found.T @ found / len(found), torch.diag(p) - torch.outer(p, p), rtol=0, atol=3e-3)
    assert found.sum(-1).abs().max() < 1e-5


def test_what_is_added_to_all_logits_costs_nothing(model: WatchedModel) -> None:
    """A head whose rows share a large part: costs of the matrices before it are those without this part."""
    text, given = tokens(64), {"blk.1.ffn_down": errors(model, 0.004)["blk.1.ffn_down"]}

    def energy() -> float:
        return float(fisher(model, given, text).seen["blk.1.ffn_down"].rows.sum())

    before, head = energy(), model.matrices["output"]
    shared = torch.randn(head.shape[1], generator=torch.Generator().manual_seed(1)) * 10 * head.std()
    model.exchange({"output": head + shared})
    assert energy() == pytest.approx(before, rel=0.05)
    model.exchange({})


def test_what_matrices_and_types_share_is_found_in_noise() -> None:
    """The estimate is nearer to the truth than products, which are noisy, and than the diagonal, which is biased."""
    random, types = np.random.default_rng(0), [f"t{at}" for at in range(10)]
    matrices, shared = random.normal(0, 0.5, 40), random.normal(0, 0.3, 10)
    diagonal = np.exp(random.normal(0, 2, (40, 10)))
    true = diagonal * np.exp(matrices[:, None] + shared)
    direct = true * random.chisquare(64, (40, 10)) / 64
    direct[3, 4] = diagonal[3, 4] = 0.0  # a type that loses nothing
    costs = [Cost(a, b, 64) for a, b in zip(direct, diagonal, strict=True)]
    found = np.array(joined(costs, [types] * 40, [False] * 40))
    assert found[3, 4] == 0.0
    known = diagonal > 0
    off = [np.abs(np.log(each[known] / true[known])).mean() for each in (found, direct, diagonal)]
    assert off[0] < 0.5 * off[1] < off[2]
    head = Cost(
        100 * true[0], diagonal[0], 64
    )  # a head whose types differ in another way changes nothing of the others
    again = joined([*costs, head], [types] * 40 + [types[::-1]], [False] * 40 + [True])
    assert (np.array(again[:40]) == found).all()


def test_a_cost_that_nothing_is_known_of_is_that_of_products() -> None:
    none = Cost(np.zeros(2), np.zeros(2), 4)
    assert (joined([none], [["a", "b"]], [False])[0] == 0).all()
    assert joined([Cost(np.ones(1), np.full(1, 2.0), 1 << 30)], [["a"]], [True])[0] == pytest.approx([1.0])


def test_some_rows_stand_for_all(model: WatchedModel) -> None:
    text, given = tokens(64), errors(model, 0.004)
    every = fisher(model, given, text).seen
    half = {name: (held[:, ::2], rows[::2]) for name, (held, rows) in given.items()}
    some = fisher(model, half, text).seen
    for name in NAMES:
        whole, rows = given[name]
        full = alone(cost(every[name], whole, text.size, whole=whole, rows=rows))
        part = alone(cost(some[name], half[name][0], text.size, whole=whole, rows=half[name][1]))
        assert part == pytest.approx(full, rel=0.5)


def test_a_meter_sums_what_autograd_sums() -> None:
    random = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=random) for shape in ((2, 3, 4), (2, 3, 5)))
    held = torch.randn((2, 5, 4), generator=random)
    meter = GradientMeter({"a": (held, torch.arange(5))}, {"a": 5})
    meter.begin(2)
    meter.product("a", x, gradient)
    full = torch.einsum("wnr,wnc->wrc", gradient, x)
    seen = meter.seen()["a"]
    assert seen.products == pytest.approx(torch.einsum("wrc,erc->we", full, held).numpy(), rel=1e-4)
    assert seen.rows == pytest.approx(full.square().sum((0, 2)).numpy(), rel=1e-4)
    assert seen.columns == pytest.approx(full.square().sum((0, 1)).numpy(), rel=1e-4)


def test_rows_of_an_embedding_add_to_the_products() -> None:
    ids, gradient = torch.tensor([[1, 3, 1]]), torch.ones((1, 3, 2))
    held = torch.arange(8.0).reshape(1, 4, 2)
    meter = GradientMeter({"e": (held, torch.arange(4))}, {"e": 4})
    meter.begin(1)
    meter.rows("e", ids, gradient)
    assert meter.seen()["e"].products[0, 0] == pytest.approx(2 * (2 + 3) + (6 + 7))


def test_exchanged_matrices_do_not_stay(model: WatchedModel, tmp_path: Path) -> None:
    text = tokens(2)
    before = model.hidden(text)
    Divergence(model, text).of({"blk.0.attn_q": torch.zeros_like(model.matrices["blk.0.attn_q"])})
    assert torch.equal(model.hidden(text), before)
