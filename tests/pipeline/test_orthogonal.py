"""Formats, rounders and containers are orthogonal: every format through nearest into every container that holds it."""

import numpy as np
import pytest

from bitsmith.containers import CONTAINERS, codec_for
from bitsmith.containers.base import WholeTensorCodec
from bitsmith.containers.bnb_codecs import FourBitCodec
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.quant.formats import FORMATS
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.quant.formats.samples import told

ROWS, COLS = 32, 512
_INTEGERS = {name for name, format in FORMATS.items() if isinstance(format, Affine)}
HELD = {
    "native": set(FORMATS),
    "gguf": set(GGML_FORMATS),
    "gptq": {name for name in _INTEGERS if "-f16" in name},
    "awq": {name for name in _INTEGERS if name.startswith("int4") and name.endswith("-f16-asym")},
    "compressed": _INTEGERS | {"fp8", "fp8-tensor", "mxfp4"},
    "mlx": {"mxfp4", "nvfp4"},
    "modelopt": set(),  # its formats are its own
    "bnb": {f"{kind}{block}" for kind in ("nf4", "fp4") for block in ("", "-g128", "-g256")},
}


def weights() -> np.ndarray:
    w = np.random.default_rng(11).standard_t(5, (ROWS, COLS)).astype(np.float32)
    w[1] = 0
    w[2, :256] *= 1e-3
    return w


def test_every_container_is_listed() -> None:
    assert HELD.keys() == CONTAINERS.keys()


@pytest.mark.parametrize("container", HELD)
@pytest.mark.parametrize("name", FORMATS)
def test_a_container_holds_a_format_exactly_or_says_what_it_holds(name: str, container: str) -> None:
    format = FORMATS[name]
    if name not in HELD[container]:
        with pytest.raises(UnsupportedError, match=f'cannot hold {name}; it holds .*to="native/{name}'):
            codec_for(container, format)
        return
    check_exact(format, container)


def check_exact(format: Format, container: str) -> None:
    w = weights()
    codec = codec_for(container, format)
    if isinstance(codec, FourBitCodec):
        codec = codec.of_shape((ROWS, COLS))
    codes, params = nearest(w, told(format, w))
    tensor = QuantTensor(format, codes, params)
    parts = codec.encode(tensor)
    layout = codec.layout(w.shape)
    assert {part: (x.shape, x.dtype) for part, x in parts.items()} == layout

    back = codec.decode(parts, COLS)
    assert back.format == format
    assert back.codes.dtype == np.uint8
    assert np.array_equal(back.codes, codes)
    assert back.params.keys() == params.keys()
    for part in params:
        assert back.params[part].dtype == params[part].dtype
        assert np.array_equal(back.params[part], params[part])
    assert np.array_equal(back.values().view(np.uint32), tensor.values().view(np.uint32))

    again = codec.encode(back)
    assert all(np.array_equal(again[part], parts[part]) for part in parts)
    cut = (
        codec.window(parts, 1, 3)
        if isinstance(codec, WholeTensorCodec)
        else {part: x[1:3] for part, x in parts.items()}
    )
    some = codec.decode(cut, COLS)
    assert np.array_equal(some.values(), tensor.values()[1:3])


@pytest.mark.parametrize("name", FORMATS)
def test_stored_bits_per_weight_are_near_the_codes(name: str) -> None:
    layout = codec_for("native", FORMATS[name]).layout((64, 4096))
    stored = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values()) * 8 / (64 * 4096)
    bits = FORMATS[name].bits
    assert bits <= stored <= bits + 1.25  # the most: q2_k keeps 4-bit scales and minima as bytes


def test_an_unknown_container() -> None:
    with pytest.raises(UsageError, match="'exl2' is not a container; known: gguf, native, gptq, awq, compressed, bnb"):
        codec_for("exl2", FORMATS["q4_k"])
