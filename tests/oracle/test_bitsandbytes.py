"""bitsandbytes itself gives the same codes, and transformers loads our folders with it, with equal logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.containers.bnb_codecs import ABSMAX, NESTED_ABSMAX, NESTED_MAP, STATE, WEIGHT, FourBitCodec
from bitsmith.containers.patterns import to_patterns
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.quant.formats.fourbit import dynamic_map, fp4, nf4
from bitsmith.quant.formats.nested import Nested, nest
from bitsmith.quant.formats.rowabsmax import RowAbsmax
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.tiny import REFERENCE

bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
functional = bnb.functional

TOKENS = np.random.default_rng(0).integers(2, 4096, (2, 24))


def weights() -> np.ndarray:
    w = np.random.default_rng(5).standard_t(4, (96, 768)).astype(np.float32)
    w[3] = 0
    w[4] *= 1e-39
    w[5, :64] *= 1e3
    return w


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [64, 128, 256])
@pytest.mark.parametrize("table", [nf4, fp4])
def test_codes_and_absmax(table: Any, block: int, dtype: torch.dtype) -> None:
    format = table(block)
    w = torch.from_numpy(weights()).to(dtype)
    packed, state = functional.quantize_4bit(w, blocksize=block, quant_type=format.name[:3])
    codes, params = nearest(w.float().numpy(), format)
    patterns = to_patterns(codes, format).reshape(-1)
    assert np.array_equal(patterns[::2] << 4 | patterns[1::2], packed.numpy().reshape(-1))
    assert np.array_equal(params["scale"].reshape(-1), state.absmax.numpy())
    decoded = functional.dequantize_4bit(packed, state).float().numpy()
    ours = torch.from_numpy(format.grid(params).values(codes)).to(dtype).float().numpy()
    assert np.array_equal(decoded, ours)


def test_the_dynamic_map() -> None:
    assert np.array_equal(dynamic_map(), functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("seed", range(8))
def test_nested_codes(count: int, seed: int) -> None:
    """With the mean that bitsandbytes sums in float32, everything is equal; our own mean is within its rounding."""
    absmax = np.abs(np.random.default_rng(seed).standard_t(3, count)).astype(np.float32)
    mean = torch.from_numpy(absmax).mean()
    codes, state = functional.quantize_blockwise(torch.from_numpy(absmax) - mean, blocksize=256)
    ours = nest(absmax)
    assert float(mean) == pytest.approx(float(ours.mean), rel=1e-6)
    if float(mean) == float(ours.mean):
        assert np.array_equal(ours.codes, codes.numpy())
        assert np.array_equal(ours.ranges, state.absmax.numpy())
        values = functional.dequantize_blockwise(codes, state) + mean
        assert np.array_equal(ours.values(dynamic_map()), values.numpy())
    else:
        assert (ours.codes != codes.numpy()).mean() < 0.01


def test_the_state_that_bitsandbytes_writes() -> None:
    w = weights()
    packed, state = functional.quantize_4bit(torch.from_numpy(w), quant_type="nf4", compress_statistics=True)
    theirs = {f"{WEIGHT}.{name}": value.numpy() for name, value in state.as_dict(packed=True).items()}
    theirs[WEIGHT] = packed.numpy()
    codec = FourBitCodec(Nested(nf4()), (96, 768), precision="f32")
    codes, params = nearest(w, codec.format)
    ours = codec.join([codec.encode(QuantTensor(codec.format, codes, params))])
    assert ours.keys() == theirs.keys()
    for part in (WEIGHT, NESTED_MAP, "weight.quant_map"):
        assert np.array_equal(ours[part], theirs[part]), part
    assert (ours[ABSMAX] != theirs[ABSMAX]).mean() < 0.01
    assert np.allclose(ours[NESTED_ABSMAX], theirs[NESTED_ABSMAX], rtol=1e-6)
    read = functional.QuantState.from_dict(
        {part.removeprefix("weight."): torch.from_numpy(x.copy()) for part, x in ours.items() if part != WEIGHT},
        device=torch.device("cpu"),
    )
    assert read.shape == torch.Size([96, 768])
    assert np.array_equal(
        functional.dequantize_4bit(torch.from_numpy(ours[WEIGHT]), read).numpy(), codec.decode(ours, 768).values()
    )
    assert f"{STATE}nf4" in ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8(dtype: torch.dtype) -> None:
    w = torch.from_numpy(weights()).to(dtype)
    theirs = bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False).to("cpu")
    codes, params = nearest(w.float().numpy(), RowAbsmax())
    assert np.array_equal(codes.astype(np.int16) - 128, theirs.data.numpy())
    assert np.array_equal(params["absmax"][:, 0], theirs.SCB.numpy())


def test_mixed_products() -> None:
    """LLM.int8(): the columns that reach 6 stay, the other inputs become int8."""
    x = np.random.default_rng(2).standard_normal((10, 768)).astype(np.float32)
    x[:, [5, 600]] *= 9
    x[3, 77] = 6.0
    layer = bnb.nn.Linear8bitLt(768, 96, bias=False, has_fp16_weights=False, threshold=6.0)
    w = np.random.default_rng(3).standard_normal((96, 768)).astype(np.float32)
    layer.weight = bnb.nn.Int8Params(torch.from_numpy(w), requires_grad=False, has_fp16_weights=False)
    theirs = layer.to("cpu").eval()(torch.from_numpy(x)).detach().numpy()
    codes, params = nearest(w, RowAbsmax())
    rounding = InputRounding("llm.int8", "token", threshold=6.0)
    ours = rounding.rounded(x) @ RowAbsmax().grid(params).values(codes).T
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    plain = InputRounding("llm.int8", "token").rounded(x) @ RowAbsmax().grid(params).values(codes).T
    assert np.abs(plain - theirs).max() > 1e-3 * np.abs(theirs).max()


def loaded(folder: Path) -> Any:
    """The folder in transformers, computing in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
    return model


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("bnb/nf4", {}),
        ("bnb/fp4", {}),
        ("bnb/nf4", {"double_quant": True}),
        ("bnb/nf4-g128", {}),
        ("bnb/nf4", {"keep": ["down_proj"]}),
    ],
)
def test_transformers_loads_our_folders(tmp_path: Path, to: str, words: dict[str, Any]) -> None:
    out = bitsmith.quantize("reference", to=to, out=tmp_path / "made", **words).out
    model = loaded(out)
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("q_proj")}
    assert kinds == {"Linear4bit"}
    assert type(model.lm_head) is torch.nn.Linear
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    ours = np.asarray(bitsmith.load(out, kernel="torch").logits(TOKENS))
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_transformers_loads_eight_bits(tmp_path: Path) -> None:
    """Inputs are rounded, and each difference in their last bit grows through the layers; but the model is the same."""
    out = bitsmith.quantize("reference", to="bnb/int8", out=tmp_path / "made").out
    model = loaded(out)
    assert isinstance(model.model.layers[0].mlp.up_proj, bnb.nn.Linear8bitLt)
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    ours = np.asarray(bitsmith.load(out, kernel="torch").logits(TOKENS))
    exact = np.asarray(bitsmith.load(out, kernel="torch", inputs="none").logits(TOKENS))
    assert np.square(ours - theirs).mean() < np.square(exact - theirs).mean()
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize("words", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_we_read_what_transformers_saves(tmp_path: Path, words: dict[str, Any]) -> None:
    four = "load_in_4bit" in words
    config = transformers.BitsAndBytesConfig(**words, **({"bnb_4bit_use_double_quant": True} if four else {}))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        REFERENCE, quantization_config=config, dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "saved")
    theirs = SafetensorsSource(tmp_path / "saved")
    to = "bnb/nf4-dq" if four else "bnb/int8"
    ours = SafetensorsSource(bitsmith.quantize("reference", to=to, out=tmp_path / "ours").out)
    name = "model.layers.3.mlp.down_proj.weight"
    assert theirs.tensors[name].layout == ours.tensors[name].layout
    left, right = theirs.codes(name), ours.codes(name)
    assert left is not None
    assert right is not None
    assert np.array_equal(left.codes, right.codes)
    assert np.allclose(left.values(), right.values(), rtol=1e-2, atol=1e-6)
