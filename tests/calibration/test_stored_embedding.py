"""The rounded blocks are given the embedding that the output stores, and its rows are rounded for what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.calibration.blockwise import BlockwiseRounding, BlockwiseTask
from bitsmith.calibration.collect import decoder_without_blocks
from bitsmith.calibration.method import Method
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.rounding import gptq_rounder
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stored_embedding import StoredEmbedding
from bitsmith.calibration.work import calibrates_embedding
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import WeightLoader, weight_reader
from tests.tiny import make_folder

TABLE = "token_embd.weight"
WORDS = {"calibration": "default", "calibration_tokens": 1024, "calibration_context": 128, "threads": 1}


def loader_of(model: Path | str) -> WeightLoader:
    checkpoint = open_checkpoint(model)
    return WeightLoader(checkpoint.config, weight_reader(checkpoint), DenseKernel(), TorchOps(), "cpu")


def stored_of(loader: WeightLoader, format: Format, effort: str | None) -> StoredEmbedding:
    found = StoredEmbedding.of(
        loader, format, None if effort is None else lambda stats: gptq_rounder(stats, None, EFFORTS[effort])
    )
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["q2_k", "iq3_s", "q4_0"])
@pytest.mark.parametrize("effort", [None, "fast", "normal"])
def test_tokens_get_the_rows_that_are_written(name: str, effort: str | None) -> None:
    loader = loader_of("reference")
    stored = stored_of(loader, GGML_FORMATS[name], effort)
    tokens = np.random.default_rng(1).integers(0, 300, (3, 16))
    rows = next(stored.slabs())
    assert rows.tensor is not None
    assert (rows.name, rows.start, len(rows.weight)) == (TABLE, 0, 2048)
    embedded = stored.within(decoder_without_blocks(loader), tokens).embedded(tokens)
    np.testing.assert_array_equal(embedded.numpy(), rows.tensor.values()[tokens])
    np.testing.assert_array_equal(stored.whole().rows(7, 300), rows.tensor.values()[7:300])
    if effort is None:
        codes, _ = nearest(rows.weight, GGML_FORMATS[name])
        np.testing.assert_array_equal(rows.tensor.codes, codes)


def test_the_first_outputs_lose_less() -> None:
    """Outputs of linears of the first block, computed by the decoder, are nearer than with nearest codes."""
    loader = loader_of("reference")
    decoder, block = decoder_without_blocks(loader), loader.block(0)
    ids = np.arange(512)[None]

    def outputs(effort: str | None) -> torch.Tensor:
        at = stored_of(loader, GGML_FORMATS["q2_k"], effort).within(decoder, ids)
        return read(at.embedded(ids))

    def read(x: torch.Tensor) -> torch.Tensor:
        normed = decoder.ops.rms_norm(x, block.norms["attn_norm"], decoder.config.norm_eps)
        return torch.cat([block.linears[name](normed) for name in ("attn_q", "attn_k", "attn_v")], -1)

    exact = read(decoder.embedded(ids))
    lost = {effort: float((outputs(effort) - exact).square().sum()) for effort in (None, "normal")}
    assert lost["normal"] < 0.6 * lost[None]


@pytest.mark.parametrize(("name", "exact"), [("q2_k", False), ("q8_0", True)])
def test_hidden_states_begin_with_stored_rows(name: str, exact: bool) -> None:
    """Those of the original do not, and an embedding of 8 bits is taken as exact."""
    checkpoint = open_checkpoint("reference")
    tokens = CalibrationTokens("random", np.random.default_rng(5).integers(0, 4096, (2, 12)), 0)
    task = BlockwiseTask({}, Method("gptq"), embedding=GGML_FORMATS[name])
    rounding = BlockwiseRounding(checkpoint, tokens, task, Resources())
    assert rounding.embedding is not None
    original = checkpoint.source.rows("model.embed_tokens.weight", 0, 4096)
    table = original if exact else rounding.embedding.whole().rows(0, 4096)
    states = rounding._states
    assert states.truth is not None
    np.testing.assert_array_equal(states.hidden.read(slice(0, 2)).numpy(), table[tokens.tokens])
    np.testing.assert_array_equal(states.truth.read(slice(0, 2)).numpy(), original[tokens.tokens])


def table_of(file: Path) -> np.ndarray:
    found: np.ndarray = open_checkpoint(file).source.rows(TABLE, 0, 4096)
    return found


def test_a_file_holds_these_rows(tmp_path: Path) -> None:
    loader = loader_of("reference")
    for method, effort in (("gptq", "fast"), ("nearest", None)):
        bitsmith.quantize(
            "reference", to="q2_k", method=method, effort="fast", out=tmp_path / f"{method}.gguf", **WORDS
        )
        rows = stored_of(loader, GGML_FORMATS["q2_k"], effort).whole().rows(0, 4096)
        np.testing.assert_array_equal(table_of(tmp_path / f"{method}.gguf"), rows)


def test_the_embedding_that_is_the_head_keeps_its_nearest_codes(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "tied", tie_word_embeddings=True, num_hidden_layers=1)
    for method in ("gptq", "nearest"):
        bitsmith.quantize(model, to="q4_0", method=method, out=tmp_path / f"{method}.gguf", **WORDS)
    np.testing.assert_array_equal(table_of(tmp_path / "gptq.gguf"), table_of(tmp_path / "nearest.gguf"))


def test_which_embeddings_are_calibrated() -> None:
    config = open_checkpoint("reference").config
    found = {
        (name, method): calibrates_embedding(GGML_FORMATS.get(name), Method.parse(method), config)
        for name in ("q2_k", "q8_0", "")
        for method in ("gptq", "learned", "awq+gptq", "awq", "nearest")
    }
    assert {case for case, said in found.items() if said} == {
        ("q2_k", "gptq"),
        ("q2_k", "learned"),
        ("q2_k", "awq+gptq"),
    }
