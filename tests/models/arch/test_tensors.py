"""The tensors that a configuration requires, and the check of a file for them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

import pytest

from bitsmith.errors import FileError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import hf_name
from bitsmith.models.arch.tensors import check_tensors, expected_tensors
from bitsmith.quant.tensor import TensorInfo
from tests.runtime.small import TINY

Naming = Literal["hf", "gguf"]


def _file(config: ModelConfig, naming: Naming = "gguf") -> dict[str, TensorInfo]:
    infos = {}
    for ours, shape in expected_tensors(config).items():
        name = ours if naming == "gguf" else str(hf_name(ours))
        infos[name] = TensorInfo(name, shape, "f32", 0)
    return infos


def _with(infos: dict[str, TensorInfo], name: str, shape: tuple[int, ...]) -> dict[str, TensorInfo]:
    return infos | {name: TensorInfo(name, shape, "f32", 0)}


def test_shapes() -> None:
    config = replace(TINY, qkv_bias=True, qk_norm=True, heads=4, kv_heads=2, head_dim=10)
    shapes = expected_tensors(config)
    assert shapes["blk.1.attn_q.weight"] == (40, 32)
    assert shapes["blk.1.attn_k.weight"] == (20, 32)
    assert shapes["blk.1.attn_v.bias"] == (20,)
    assert shapes["blk.1.attn_output.weight"] == (32, 40)
    assert shapes["blk.1.attn_q_norm.weight"] == (10,)
    assert shapes["blk.0.ffn_down.weight"] == (32, 48)
    assert shapes["output.weight"] == (50, 32)
    assert "blk.0.attn_output.bias" not in shapes
    assert "output.weight" not in expected_tensors(replace(config, tied=True))


@pytest.mark.parametrize("naming", ["gguf", "hf"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_sound_file(naming: Naming, tied: bool) -> None:
    """It passes; without any one of its tensors it does not."""
    config = replace(TINY, tied=tied)
    infos = _file(config, naming)
    check_tensors(config, infos, naming=naming)
    for name in infos:
        with pytest.raises(FileError, match=re.escape(name)):
            check_tensors(config, {other: info for other, info in infos.items() if other != name}, naming=naming)


def test_more_layers_promised_than_there_are() -> None:
    with pytest.raises(FileError, match=r"^m\.gguf: 18 of 39 tensors .*4 layers.*first blk\.2\.attn_norm\.weight"):
        check_tensors(replace(TINY, layers=4), _file(TINY), origin="m.gguf")


def test_fewer_layers_promised_than_there_are() -> None:
    with pytest.raises(FileError, match=r"unexpected tensor model\.layers\.1\."):
        check_tensors(replace(TINY, layers=1), _file(TINY, "hf"), naming="hf")


def test_wrong_shape() -> None:
    with pytest.raises(FileError, match=r"blk\.0\.attn_k\.weight has shape \[32, 32\], .*requires \[16, 32\]"):
        check_tensors(TINY, _with(_file(TINY), "blk.0.attn_k.weight", (32, 32)))


def test_what_a_file_may_hold_besides() -> None:
    tied = replace(TINY, tied=True)
    check_tensors(tied, _with(_file(tied), "rope_freqs.weight", (4,)))
    check_tensors(tied, _with(_file(tied, "hf"), "lm_head.weight", (50, 32)), naming="hf")
    check_tensors(tied, _with(_file(tied, "hf"), "model.rotary_emb.inv_freq", (4,)), naming="hf")
    with pytest.raises(FileError, match=r"unexpected tensor output\.weight"):
        check_tensors(tied, _with(_file(tied), "output.weight", (50, 32)))
