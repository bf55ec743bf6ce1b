"""The statistics pass sees what the decoder's linears are given, whatever the batches and wherever the states lie."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional

import bitsmith
from bitsmith.calibration import hidden
from bitsmith.calibration.collect import Calibration, Wanted, collect
from bitsmith.calibration.generated import generate_tokens
from bitsmith.calibration.hidden import HiddenStates
from bitsmith.calibration.sources import CalibrationTokens, Request
from bitsmith.errors import FileError, TensorError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.system.progress import Progress
from tests.tiny import CONFIG, HIDDEN, INNER, LAYERS, VOCAB, make_folder, weights

WINDOWS, CONTEXT = 9, 24


def windows() -> CalibrationTokens:
    return CalibrationTokens("random", np.random.default_rng(5).integers(0, VOCAB, (WINDOWS, CONTEXT)), 0)


@pytest.fixture
def calibrated(tiny: Path) -> Calibration:
    return collect(open_checkpoint(tiny), windows(), wanted=Wanted(gram=True, sample=10))


def test_statistics_are_those_of_the_whole_models_inputs(
    tiny: Path, calibrated: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products of an ordinary forward pass are recorded by shape and order, and compared one by one."""
    seen: list[np.ndarray] = []
    plain = DenseKernel.linear

    def linear(self: DenseKernel, x: torch.Tensor, prepared: torch.Tensor) -> torch.Tensor:
        seen.append(x.reshape(-1, x.shape[-1]).double().numpy())
        return plain(self, x, prepared)

    monkeypatch.setattr(DenseKernel, "linear", linear)
    bitsmith.load(tiny, kernel="torch").logits(windows().tokens)
    names = [
        f"blk.{layer}.{name}"
        for layer in range(LAYERS)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    assert [*calibrated.stats] == [*names, "output"]
    for name, x in zip([*names, "output"], seen, strict=True):
        stats = calibrated.stats[name]
        assert stats.count == WINDOWS * CONTEXT == len(x)
        np.testing.assert_allclose(stats.square, (x**2).sum(0), rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(stats.max_abs, np.abs(x).max(0), rtol=1e-4)
        assert stats.gram is not None
        np.testing.assert_allclose(stats.gram, x.T @ x, rtol=1e-3, atol=1e-3 * stats.square.max())
        assert stats.sample.shape == (10, INNER if name.endswith("down") else HIDDEN)


def test_linears_that_share_an_input_share_statistics(calibrated: Calibration) -> None:
    stats = calibrated.stats
    assert stats["blk.1.attn_q"] is stats["blk.1.attn_k"] is stats["blk.1.attn_v"]
    assert stats["blk.1.ffn_gate"] is stats["blk.1.ffn_up"]
    assert len({id(each) for each in stats.values()}) == 4 * LAYERS + 1


def test_batches_and_the_disk_change_nothing(
    tiny: Path, calibrated: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[HiddenStates] = []
    plain = HiddenStates.__init__

    def init(self: HiddenStates, *words: int, **options: int | None) -> None:
        plain(self, *words, **options)
        made.append(self)

    monkeypatch.setattr(HiddenStates, "__init__", init)
    monkeypatch.setattr(hidden, "BATCH_TOKENS", 2 * CONTEXT)
    reports: list[Progress] = []
    other = collect(open_checkpoint(tiny), windows(), wanted=Wanted(sample=10), memory=1000, report=reports.append)
    assert [each.on_disk for each in made] == [True]
    for name, stats in other.stats.items():
        np.testing.assert_allclose(stats.square, calibrated.stats[name].square, rtol=1e-5)
        np.testing.assert_allclose(stats.sample, calibrated.stats[name].sample, rtol=1e-3, atol=1e-5)
    assert [(each.stage, each.done, each.total, each.unit) for each in reports] == [
        ("calibrate", done, LAYERS, "blocks") for done in range(LAYERS + 1)
    ]


def test_the_same_tokens_give_the_same_bytes(tiny: Path) -> None:
    first, second = (collect(open_checkpoint(tiny), windows(), wanted=Wanted(sample=3)) for _ in range(2))
    for name, stats in first.stats.items():
        assert stats.square.tobytes() == second.stats[name].square.tobytes()
        assert stats.sample.tobytes() == second.stats[name].sample.tobytes()


def damaged(folder: Path, name: str, value: float) -> Path:
    tensors = weights(CONFIG)
    tensors[name][0, 0] = ml_dtypes.bfloat16(value)
    return make_folder(folder, tensors=tensors)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_weights_names_the_layer(tmp_path: Path, value: float) -> None:
    folder = damaged(tmp_path / "bad", "model.layers.0.mlp.down_proj.weight", value)
    with pytest.raises(TensorError, match=r"blk\.0\.ffn_down: the weights hold NaN"):
        collect(open_checkpoint(folder), windows())


def test_nan_in_hidden_states_names_the_layer(tmp_path: Path) -> None:
    """Finite weights whose products overflow."""
    tensors = weights(CONFIG)
    tensors["model.layers.0.mlp.down_proj.weight"][:] = 3e38
    tensors["model.layers.0.mlp.up_proj.weight"][:] *= 1e4
    folder = make_folder(tmp_path / "bad", tensors=tensors)
    with pytest.raises(TensorError, match=r"blk\.1\.attn_q: the input holds NaN"):
        collect(open_checkpoint(folder), windows())
    with pytest.raises(TensorError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight: the input"):
        bitsmith.quantize(folder, to="native/int4-g32", method="gptq", rules=["down_proj=f32"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dead_channel_is_no_error(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    tensors["model.layers.0.input_layernorm.weight"][3] = 0
    tensors["model.layers.1.mlp.up_proj.weight"][:] = 0
    stats = collect(open_checkpoint(make_folder(tmp_path / "dead", tensors=tensors)), windows()).stats
    assert stats["blk.0.attn_q"].square[3] == 0
    assert not stats["blk.1.ffn_down"].square.any()


def test_a_gguf_file_gives_what_its_source_gives(tiny: Path, calibrated: Calibration, tmp_path: Path) -> None:
    bitsmith.quantize(tiny, to="bf16", out=tmp_path / "x.gguf")
    other = collect(open_checkpoint(tmp_path / "x.gguf"), windows())
    for name, stats in other.stats.items():
        np.testing.assert_allclose(stats.square, calibrated.stats[name].square, rtol=1e-4)


def test_hidden_states_on_disk_are_read_as_written() -> None:
    states = HiddenStates(5, 3, 4, memory=16)
    values = torch.randn(5, 3, 4)
    states.write(slice(2, 5), values[2:])
    states.write(slice(0, 2), values[:2])
    assert states.on_disk
    assert torch.equal(states.read(slice(1, 4)), values[1:4])
    assert not HiddenStates(5, 3, 4, memory=240).on_disk


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hidden.os, "posix_fallocate", full, raising=False)
    with pytest.raises(FileError, match=r"No space left on device.*TMPDIR"):
        HiddenStates(5, 3, 4, memory=16)


def test_the_models_own_text(tiny: Path) -> None:
    request = Request.of("self", limit=256, tokens=40 * 12, context=12, seed=3)
    model = bitsmith.load(tiny)
    first, second = generate_tokens(request, model), generate_tokens(request, model)
    assert first.tokens.shape == (40, 12)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert len(np.unique(first.tokens)) > 100
    other = generate_tokens(Request.of("self", limit=256, tokens=40 * 12, context=12, seed=4), model)
    assert not np.array_equal(first.tokens, other.tokens)
    likeliest = functional.log_softmax(torch.as_tensor(model.logits(first.tokens)), -1).numpy()
    drawn = np.take_along_axis(likeliest[:, :-1], first.tokens[:, 1:, None], -1)
    assert drawn.mean() > likeliest.mean()


def test_a_model_that_says_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsmith.models.tokenizer import Tokenizer

    model = bitsmith.load(tiny)
    monkeypatch.setattr(Tokenizer, "end_ids", frozenset(range(VOCAB)))
    with pytest.raises(FileError, match='calibration="self": the model ends its texts'):
        generate_tokens(Request.of("self", limit=256, tokens=400, context=40), model)
