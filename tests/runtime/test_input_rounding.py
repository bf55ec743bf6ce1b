"""Decoders whose linears round their input: against a hand-written reference, and those that do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.errors import UnsupportedError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.model import load_torch_model as load_language_model
from bitsmith.runtime.torch.ondemand import OnDemandKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import Linear, WeightLoader, weight_reader
from tests.runtime.small import TINY, weight_of

TOKENS = np.random.default_rng(0).integers(2, 4096, (8, 6))
X = np.random.default_rng(1).standard_normal((2, 3, 32)).astype(np.float32)


@pytest.mark.parametrize("kernel", [DenseKernel(), OnDemandKernel()])
@pytest.mark.parametrize("scheme", [InputRounding("int8", "token"), InputRounding("fp8", "tensor", 0.01)], ids=str)
def test_a_linear_rounds_its_input(kernel: DenseKernel | OnDemandKernel, scheme: InputRounding) -> None:
    w = np.random.default_rng(2).standard_normal((7, 32)).astype(np.float32)
    weight = replace(weight_of("w", w), input_rounding=scheme)
    linear = WeightLoader(TINY, lambda name: weight, kernel, TorchOps(), "cpu").linear("w", bias=False)
    expected = scheme.rounded(X) @ w.T
    np.testing.assert_allclose(linear(torch.from_numpy(X)).numpy(), expected, atol=1e-5)
    assert np.abs(expected - X @ w.T).max() > 1e-3
    assert np.array_equal(linear.gather(torch.tensor([3])).numpy(), w[[3]])


def by_hand(weight: Weight, x: torch.Tensor) -> torch.Tensor:
    """int8, per token, as a runtime does it: codes, their product, then the input's scale."""
    scale = x.abs().amax(-1, keepdim=True) / 127.5
    codes = (x / scale).round().clamp(-128, 127).double()
    w = torch.from_numpy(weight.rows(0, weight.info.rows)).double()
    return ((codes @ w.T) * scale).float()


def test_a_w8a8_folder_against_a_reference_by_hand(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bitsmith.quantize(tiny, to="compressed/w8a8", out=tmp_path / "out")
    ours = bitsmith.load(made.out)
    assert isinstance(ours, LanguageModel)
    logits = ours.logits(TOKENS)
    weights = weight_reader(open_checkpoint(made.out))
    assert weights("output.weight").input_rounding is None
    assert weights("blk.1.ffn_down.weight").input_rounding == InputRounding("int8", "token")
    stored = {id(prepared): weight for prepared, weight in _stored(ours, weights)}

    def reference(self: Linear, x: torch.Tensor) -> torch.Tensor:
        found = stored.get(id(self.prepared))
        return self.kernel.linear(x, self.prepared) if found is None else by_hand(found, x)

    plain = load_language_model(replace(open_checkpoint(made.out), source=_Float(made.out)))
    unrounded = plain.logits(TOKENS)
    monkeypatch.setattr(Linear, "__call__", reference)
    expected = ours.logits(TOKENS)
    assert _typical(logits, expected) < 0.01 * _typical(unrounded, expected)


def _typical(a: np.ndarray, b: np.ndarray) -> float:
    """Of most tokens: where the last bit flips a rounding, it is carried on to the tokens that follow."""
    return float(np.median(np.abs(a - b).max(axis=-1)))


def _stored(model: LanguageModel, weights: object) -> list[tuple[object, Weight]]:
    return [
        (linear.prepared, weights(f"blk.{layer}.{name}.weight"))  # type: ignore[operator]
        for layer, block in enumerate(model.decoder.weights.blocks)
        for name, linear in block.linears.items()
    ]


class _Float:
    """The same source, saying nothing of inputs."""

    def __init__(self, path: Path) -> None:
        self._source = open_checkpoint(path).source

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def input_rounding(self, name: str) -> None:
        return None


def test_files_without_rounded_inputs_are_what_they_were(tiny: Path, tmp_path: Path) -> None:
    for to in ("q8_0", "compressed/w8a16", "gptq/int8"):
        made = bitsmith.quantize(tiny, to=to, out=tmp_path / to.replace("/", "-"))
        model = bitsmith.load(made.out, kernel="torch")
        assert isinstance(model, LanguageModel)
        assert all(block.linears["ffn_down"].input_rounding is None for block in model.decoder.weights.blocks), to
        for tensor in bitsmith.inspect(made.out).tensors:
            assert tensor.input_rounding == "", to


def test_a_folder_that_cannot_be_run_says_so_and_goes_on_elsewhere(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="compressed/w8a8", out=tmp_path / "out")
    config = json.loads((made.out / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["symmetric"] = False
    (made.out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="rounds its inputs as asymmetric int of 8 bits by token"):
        bitsmith.load(made.out)
    found = bitsmith.inspect(made.out)
    assert found.problems == ()
    assert {tensor.input_rounding for tensor in found.tensors} == {"", "not supported"}
    gguf = bitsmith.quantize(made.out, to="q8_0", out=tmp_path / "x.gguf", requantize=True)
    assert isinstance(bitsmith.load(gguf.out), LanguageModel)


def test_inspect_shows_them(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="compressed/fp8", out=tmp_path / "out")
    found = bitsmith.inspect(made.out)
    rows = {row[0]: row for row in found.rows()}
    assert rows["model.layers.0.mlp.down_proj.weight"][-1] == "fp8, per token"
    assert rows["lm_head.weight"][-1] == ""
    described = {tensor["name"]: tensor for tensor in found.to_dict()["tensors"]}
    assert described["model.layers.0.mlp.down_proj.weight"]["input_rounding"] == "fp8, per token"
