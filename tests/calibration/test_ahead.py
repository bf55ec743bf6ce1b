"""Blocks that are read ahead are those that are read when they are asked for."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from bitsmith.calibration.ahead import BlocksAhead, nbytes
from bitsmith.errors import UnsupportedError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import WeightLoader, weight_reader


@pytest.fixture
def loader(tiny) -> WeightLoader:
    checkpoint = open_checkpoint(tiny).laid_out("gguf")
    return WeightLoader(checkpoint.config, weight_reader(checkpoint), DenseKernel(), TorchOps("cpu"), "cpu")


@pytest.mark.parametrize("room", [True, False])
def test_the_same_blocks(loader: WeightLoader, room: bool) -> None:
    asked = []

    def told(size: int) -> bool:
        asked.append((size, threading.current_thread() is threading.main_thread()))
        return room

    ahead = BlocksAhead(loader, ahead=True, room=told)
    for layer in range(loader.config.layers):
        found, expected = ahead.take(layer), loader.block(layer)
        assert found.linears.keys() == expected.linears.keys()
        for name, linear in expected.linears.items():
            assert torch.equal(found.linears[name].prepared, linear.prepared)
        for name, norm in expected.norms.items():
            assert torch.equal(found.norms[name], norm)
    ahead.close()
    assert asked == [(nbytes(loader.block(0)), False)] * (loader.config.layers - 1)


def test_any_block_can_be_asked_for(loader: WeightLoader) -> None:
    ahead = BlocksAhead(loader, ahead=True)
    for layer in (1, 0, 1, 1):
        assert torch.equal(ahead.take(layer).linears["attn_q"].prepared, loader.block(layer).linears["attn_q"].prepared)
    ahead.close()


def test_an_error_of_the_next_block_comes_when_it_is_asked_for(loader: WeightLoader) -> None:
    def read(name: str):
        if name.startswith("blk.1."):
            raise UnsupportedError("the file ends here")
        return loader.read(name)

    ahead = BlocksAhead(replace(loader, read=read), ahead=True)
    ahead.take(0)
    with pytest.raises(UnsupportedError, match="the file ends here"):
        ahead.take(1)
    ahead.close()
