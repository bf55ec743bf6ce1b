"""The rounded blocks are given the embedding that the output stores, and its rows are rounded for what reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bitsmith
import bitsmith.reference
from bitsmith.calibration.blockwise import BlockwiseRounding, BlockwiseTask
from bitsmith.calibration.collect import decoder_without_blocks
from bitsmith.calibration.method import Method
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.rounding import gptq_rounder
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stored_embedding import StoredEmbedding
from bitsmith.calibration.tied_head import from_state, head_statistics, to_arrays
from bitsmith.calibration.work import calibrates_embedding
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import WeightLoader, weight_reader
from bitsmith.work.state import State, write_state

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


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """The reference model without its head, so that the embedding serves as one: real inputs, other logits."""
    source = Path(bitsmith.reference.__file__).parent
    folder = shutil.copytree(source, tmp_path / "tied", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    tensors = load_file(source / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return folder


def test_a_table_that_is_the_head_is_rounded_for_the_head(tied: Path, tmp_path: Path) -> None:
    """GPTQ loses less of the logits than weighted nearest codes do, and these less than plain ones."""
    checkpoint = open_checkpoint(tied)
    original = checkpoint.source.rows("model.embed_tokens.weight", 0, checkpoint.config.vocab)
    x = head_inputs(tied)
    lost = {}
    for name, words in (("gptq", WORDS), ("nearest", WORDS), ("plain", {"threads": 1})):
        method = "gptq" if name == "gptq" else "nearest"
        file = tmp_path / f"{name}.gguf"
        bitsmith.quantize(tied, to="q4_0", rules=["token_embd=q4_0"], method=method, out=file, **words)
        table = open_checkpoint(file).source.rows(TABLE, 0, len(original))
        lost[name] = float(np.square(x @ (table - original).T).sum())
    assert lost["gptq"] < 0.8 * lost["nearest"]
    assert lost["nearest"] < 0.98 * lost["plain"]


def head_inputs(model: Path) -> np.ndarray:
    """Inputs of the head on other text than the calibration's, float32 [tokens, hidden], by transformers."""
    transformers = pytest.importorskip("transformers")
    with torch.inference_mode():
        own = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).model
        found: np.ndarray = own(torch.arange(256)[None]).last_hidden_state[0].numpy()
    return found


def test_the_head_s_input_is_that_of_transformers(tied: Path) -> None:
    checkpoint = open_checkpoint(tied)
    tokens = np.arange(256)[None]
    found = head_statistics(checkpoint, tokens, Resources(threads=1))
    x = head_inputs(tied)
    assert found.count == 256
    assert found.gram is not None
    np.testing.assert_allclose(np.asarray(found.gram), x.T @ x, atol=2e-2 * float(np.square(x).sum()) / x.shape[1])


def test_statistics_of_the_head_come_back_from_a_state(tied: Path, tmp_path: Path) -> None:
    found = head_statistics(open_checkpoint(tied), np.arange(64)[None], Resources(threads=1))
    write_state(tmp_path / "head.state", {}, to_arrays(found))
    with State(tmp_path / "head.state") as state:
        again = from_state(state)
    assert again is not None
    assert again.count == found.count
    np.testing.assert_array_equal(np.asarray(again.gram), np.asarray(found.gram))
    np.testing.assert_array_equal(again.square, found.square)


def test_which_embeddings_are_calibrated() -> None:
    found = {
        (name, method): calibrates_embedding(GGML_FORMATS.get(name), Method.parse(method))
        for name in ("q2_k", "q8_0", "")
        for method in ("gptq", "learned", "awq+gptq", "awq", "nearest")
    }
    assert {case for case, said in found.items() if said} == {
        ("q2_k", "gptq"),
        ("q2_k", "learned"),
        ("q2_k", "awq+gptq"),
    }
