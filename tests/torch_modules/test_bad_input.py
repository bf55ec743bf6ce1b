"""What `quantize_module` refuses, and odd but sound input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bitsmith.torch
from bitsmith.errors import FileError, TensorError, UnsupportedError, UsageError


def model(cols: int = 128, rows: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(cols, rows), nn.ReLU(), nn.Linear(rows, rows, bias=False))


def weights(made: nn.Sequential) -> nn.Parameter:
    return made[0].weight  # type: ignore[return-value]


def test_quantized_twice() -> None:
    made = model()
    bitsmith.torch.quantize_module(made, "nf4")
    with pytest.raises(UsageError, match=r"0\.weight is quantized already, to nf4"):
        bitsmith.torch.quantize_module(made, "nf4")


def test_quantized_by_others() -> None:
    made = model()
    made[0].weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UsageError, match=r"0\.weight holds uint8: the model is quantized already"):
        bitsmith.torch.quantize_module(made, "nf4")


def test_no_data() -> None:
    with torch.device("meta"):
        made = model()
    with pytest.raises(UsageError, match=r"0\.weight has no data .*from_pretrained"):
        bitsmith.torch.quantize_module(made, "nf4")


def test_unknown_keep() -> None:
    made = nn.ModuleDict({"down_proj": nn.Linear(64, 64), "up_proj": nn.Linear(64, 64)})
    with pytest.raises(UsageError, match="names no module; did you mean down_proj"):
        bitsmith.torch.quantize_module(made, "nf4", keep=["down_pro"])
    with pytest.raises(UsageError, match="give a list"):
        bitsmith.torch.quantize_module(made, "nf4", keep="down_proj")
    assert isinstance(made["down_proj"].weight, nn.Parameter)


@pytest.mark.parametrize("pattern", ["deep.down_proj", "down_proj", "*down*", "deep"])
def test_keep(pattern: str) -> None:
    deep = nn.ModuleDict({"down_proj": nn.Linear(64, 64)})
    made = nn.ModuleDict({"deep": deep, "up_proj": nn.Linear(64, 64)})
    census = bitsmith.torch.quantize_module(made, "nf4", keep=[pattern])
    assert isinstance(deep["down_proj"].weight, nn.Parameter)
    assert census["deep.down_proj.weight"].reason == f"keep={pattern!r}"
    assert census["deep.down_proj.weight"].expected
    assert census["up_proj.weight"].stored == "nf4"


def test_unknown_format_and_dtype() -> None:
    with pytest.raises(UsageError, match="'nf5' is not a format"):
        bitsmith.torch.quantize_module(model(), "nf5")
    with pytest.raises(UsageError, match="compute_dtype='int3' is unknown"):
        bitsmith.torch.quantize_module(model(), "nf4", compute_dtype="int3")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("format", ["nf4", "int4-g64", "fp8", "int8-tensor"])
def test_not_finite(value: float, format: str) -> None:
    made = model()
    with torch.no_grad():
        weights(made)[3, 5] = value
    with pytest.raises(TensorError, match=r"0\.weight: has weights that are Inf or NaN"):
        bitsmith.torch.quantize_module(made, format)


@pytest.mark.parametrize("format", ["nf4", "int4-g64", "int4-g64-asym", "int8", "fp8"])
def test_zero_blocks(format: str) -> None:
    made = model()
    with torch.no_grad():
        weights(made)[:, :64] = 0
    bitsmith.torch.quantize_module(made, format)
    assert bool((made[0].weight.dense()[:, :64] == 0).all())
    assert bool(made(torch.randn(3, 128)).isfinite().all())


def test_not_contiguous() -> None:
    made, other = model(), model()
    transposed = weights(made).detach().T.contiguous().T
    assert not transposed.is_contiguous()
    made[0].weight = nn.Parameter(transposed)
    bitsmith.torch.quantize_module(made, "nf4")
    bitsmith.torch.quantize_module(other, "nf4")
    assert torch.equal(made[0].weight.dense(), other[0].weight.dense())


def test_rows_that_do_not_divide() -> None:
    made = model(cols=100)
    with pytest.raises(UnsupportedError, match=r"more than most_left=0\.05: 0\.weight: nf4 needs a row length"):
        bitsmith.torch.quantize_module(made, "nf4")
    assert isinstance(weights(made), nn.Parameter)
    census = bitsmith.torch.quantize_module(made, "nf4", most_left=1.0)
    assert [row.name for row in census.unexpected] == ["0.weight"]
    assert census.unexpected_share == pytest.approx(6400 / (6400 + 4096))


def test_unknown_modules_are_named() -> None:
    made = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(64, 64))
    with pytest.raises(UnsupportedError, match=r"0\.weight: of Conv2d, no linear layer and no fused experts"):
        bitsmith.torch.quantize_module(made, "nf4")


def test_a_forward_of_its_own_stays() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(input, self.weight * 2)

    with pytest.raises(UnsupportedError, match=r"0\.weight: of Scaled"):
        bitsmith.torch.quantize_module(nn.Sequential(Scaled(64, 64)), "nf4")


def test_nothing_to_quantize() -> None:
    with pytest.raises(UnsupportedError, match="nothing to quantize"):
        bitsmith.torch.quantize_module(nn.Sequential(nn.LayerNorm(8)), "nf4")


def test_a_layer_alone() -> None:
    with pytest.raises(UsageError, match=r"put it into a module first"):
        bitsmith.torch.quantize_module(nn.Linear(64, 64), "nf4")


def test_shared_weights_stay_shared() -> None:
    made = nn.ModuleDict({"a": nn.Linear(64, 64, bias=False), "b": nn.Linear(64, 64, bias=False)})
    made["b"].weight = made["a"].weight
    census = bitsmith.torch.quantize_module(made, "nf4")
    assert made["a"].weight is made["b"].weight
    assert len(census) == 1
    assert census["b.weight"].shared == ("b.weight",)


def test_a_shared_module_stays_shared() -> None:
    layer = nn.Linear(64, 64)
    made = nn.ModuleDict({"a": layer, "b": layer})
    bitsmith.torch.quantize_module(made, "nf4")
    assert made["a"] is made["b"]
    assert isinstance(made["a"], bitsmith.torch.QuantLinear)


def test_tied_tables_stay() -> None:
    made = nn.ModuleDict({"table": nn.Embedding(64, 64), "head": nn.Linear(64, 64, bias=False), "b": nn.Linear(64, 64)})
    made["head"].weight = made["table"].weight
    census = bitsmith.torch.quantize_module(made, "nf4")
    assert made["head"].weight is made["table"].weight
    assert census["head.weight"].reason == "a table of rows, shared with head"


def test_states_that_do_not_fit() -> None:
    made = model()
    bitsmith.torch.quantize_module(made, "nf4")
    state = made.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight\.codes"):
        made.load_state_dict({key: value for key, value in state.items() if key != "0.weight.codes"})
    with pytest.raises(RuntimeError, match=r"0\.weight\.scale: nf4 stores \(64, 2\)"):
        made.load_state_dict(state | {"0.weight.scale": torch.zeros(64, 4)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.weight\.zero"):
        made.load_state_dict(state | {"0.weight.zero": torch.zeros(64, 2)})


def test_patterns_without_a_value() -> None:
    made = model()
    bitsmith.torch.quantize_module(made, "fp8")
    state = made.state_dict()
    state["0.weight.codes"][2, 3] = 0x7F  # NaN
    with pytest.raises(TensorError, match="no value for the pattern 0x7f"):
        made.load_state_dict(state)


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such folder"):
        bitsmith.torch.from_pretrained(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileError, match=r"no \.safetensors files"):
        bitsmith.torch.from_pretrained(tmp_path)


def test_the_model_itself_is_a_layer() -> None:
    """It is refused before its weights are touched."""
    layer = nn.Linear(64, 64)
    with pytest.raises(UsageError, match=r"the model itself is a Linear.*torch\.nn\.Sequential"):
        bitsmith.torch.quantize_module(layer, "nf4")
    assert layer(torch.ones(1, 64)).shape == (1, 64)


@pytest.mark.parametrize("training", [False, True])
def test_layers_that_torch_reads_without_a_call_stay(training: bool) -> None:
    """Those of nn.MultiheadAttention and, where its fast path runs, of nn.TransformerEncoderLayer."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 1)
    made = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(64, 64)}).train(training)
    with pytest.raises(UnsupportedError, match="would stay as they are"):
        bitsmith.torch.quantize_module(made, "nf4")
    census = bitsmith.torch.quantize_module(made, "nf4", most_left=1.0)
    assert [row.name for row in census.quantized] == ["head.weight"]
    assert "which another module reads" in census["encoder.layers.0.self_attn.out_proj.weight"].reason
    with torch.set_grad_enabled(training):
        assert made["encoder"](torch.randn(2, 5, 64)).isfinite().all()


def test_weights_too_large_for_the_format_s_scales() -> None:
    made = model()
    weights(made).data *= 1e30
    with pytest.raises(TensorError, match=r"0\.weight: its weights are too large for q4_0"):
        bitsmith.torch.quantize_module(made, "q4_0")


def test_inputs_of_another_kind_or_width() -> None:
    made = model()
    bitsmith.torch.quantize_module(made, "nf4")
    with pytest.raises(TypeError, match=r"is torch\.int64; convert it"):
        made(torch.zeros(2, 128, dtype=torch.int64))
    with pytest.raises(ValueError, match="takes 128 features, found 64"):
        made(torch.zeros(2, 64))


@pytest.mark.parametrize("format", ["nf4", "fp8"])
def test_gradients_of_gradients(format: str) -> None:
    """They are those of the decoded layers, not zero."""
    made = model()
    bitsmith.torch.quantize_module(made, format)
    x = torch.randn(3, 128, requires_grad=True)

    def penalty() -> torch.Tensor:
        (grad,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
        return second

    found = penalty()
    bitsmith.torch.dequantize_module(made)
    torch.testing.assert_close(found, penalty(), rtol=1e-4, atol=1e-4)
