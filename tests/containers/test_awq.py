"""AWQ's layout, held against its published formula; files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.containers.awq import AwqCodec
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.tensor import QuantTensor
from tests.containers.foreign import check_reads, write_folder
from tests.containers.published import awq_parts, values
from tests.containers.test_gptq import GROUP, IN, OUT, drawn

FORMAT = Affine(4, GROUP, True, "f16")
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}


def test_bytes_follow_the_published_layout() -> None:
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=True)
    codec = AwqCodec(FORMAT)
    parts = codec.encode(QuantTensor(FORMAT, codes, {"scale": scale, "zero": zero}))
    for part, array in awq_parts(codes, scale, zero).items():
        assert np.array_equal(parts[part], array), part
        assert (parts[part].shape, parts[part].dtype) == codec.layout((OUT, IN))[part]
    back = codec.decode(parts, IN)
    assert np.array_equal(back.codes, codes)
    assert np.allclose(back.values(), values(codes, scale, zero, np.arange(IN) // GROUP), rtol=1e-6, atol=1e-7)


def test_slabs_join_and_windows_cut() -> None:
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=True)
    codec = AwqCodec(FORMAT)

    def slab(start: int, stop: int) -> dict[str, np.ndarray]:
        return codec.encode(
            QuantTensor(FORMAT, codes[start:stop], {"scale": scale[start:stop], "zero": zero[start:stop]})
        )

    joined = codec.join([slab(0, 8), slab(8, 56), slab(56, 64)])
    assert all(np.array_equal(joined[part], x) for part, x in awq_parts(codes, scale, zero).items())
    window = codec.decode(codec.window(joined, 3, 21), IN)
    assert np.array_equal(window.codes, codes[3:21])
    assert np.array_equal(window.params["zero"], zero[3:21])


@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({}, "awq/int4-g32"),
        ({"version": "GEMM", "bits": None, "group_size": None, "w_bit": 4, "q_group_size": 32}, "awq/int4-g32"),
        ({"group_size": -1}, "awq/int4-channel"),
    ],
)
def test_files_of_other_tools(tmp_path: Path, changes: dict[str, Any], layout: str) -> None:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    index = np.arange(IN) // (IN if "channel" in layout else GROUP)
    codes, scale, zero = drawn(4, index[-1] + 1, asymmetric=True)
    folder = write_folder(tmp_path / "m", awq_parts(codes, scale, zero), config)
    check_reads(folder, values(codes, scale, zero, index), layout)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "gemv"}, "AWQ's version 'gemv' is unknown"),
        ({"bits": 8}, "bits 8; known: 4"),
        ({"group_size": 64}, r"qzeros is I32 .4, 8.; awq/int4-g64"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_folder(tmp_path / "m", awq_parts(*drawn(4, IN // GROUP, asymmetric=True)), {**CONFIG, **changes})
    with pytest.raises(BitsmithError, match=message):
        SafetensorsSource(folder)


def test_impossible_shapes() -> None:
    with pytest.raises(UnsupportedError, match="rows divide by 8"):
        AwqCodec(FORMAT).layout((12, 64))
