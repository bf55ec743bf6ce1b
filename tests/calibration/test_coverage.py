"""What experts saw of a calibration text: counted, told in results and manifests, and made up for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.calibration.imatrix import read_imatrix
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import UsageError
from bitsmith.recipe.coverage import STARVED, Coverage, manifest_text
from tests.families import folder_of, model_of

pytest.importorskip("transformers")
TOKENS = 512
FEW: dict[str, Any] = {"calibration": "default", "calibration_tokens": TOKENS, "device": "cpu"}
FEW["calibration_context"] = 64
LAYERS, EXPERTS, USED = 4, 4, 2


@pytest.fixture(scope="module")
def starving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose routers never choose two of their four experts."""
    folder, model = folder_of("gpt_oss", tmp_path_factory.mktemp("coverage") / "m")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.router.bias[2:] -= 1e4
    model.save_pretrained(folder)
    return folder


def test_coverage_in_numbers() -> None:
    seen = Coverage({0: np.array([0, 40]), 1: np.array([31, 700])}, 771, fallback="they got the nearest codes")
    assert seen.summary == {"experts": 4, "least": 0, "median": 40, "most": 700, "starved": 2, "unused": 1}
    assert seen.starved == ((0, 0, 0), (1, 0, 31))
    assert seen.tokens_needed == 771 * STARVED
    assert Coverage({0: np.array([8, 40])}, 100).tokens_needed == 400
    note = seen.note()
    assert "0 to 700, median 40; 2 of 4 experts saw fewer than 32" in note
    assert "expert 0 of block 0: 0, expert 0 of block 1: 31" in note
    assert note.endswith("they got the nearest codes")
    assert len(manifest_text(seen)) == len(manifest_text(None))
    assert json.loads(manifest_text(seen)) == seen.summary


def test_starved_experts_are_an_error_that_says_what_helps(starving: Path, tmp_path: Path) -> None:
    fewer = "experts saw fewer than 32 tokens"
    said = rf"2 of the first 4 {fewer}\. Give about calibration_tokens=\d+.*calibration_all_experts=True"
    for method in ("gptq", "awq"):
        with pytest.raises(UsageError, match=said if method == "gptq" else f"8 of the first 16 {fewer}"):
            bitsmith.quantize(starving, to="q8_0", method=method, out=tmp_path / "a.gguf", **FEW)
    assert not (tmp_path / "a.gguf").exists()


def test_all_experts_make_up_for_it(starving: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(
        starving, to="q4_0", method="gptq", calibration_all_experts=True, out=tmp_path / "a.gguf", **FEW
    )
    found = made.to_dict()
    told = found["experts"]
    assert (told["experts"], told["starved"], told["unused"], told["all_experts"]) == (LAYERS * EXPERTS, 8, 8, True)
    assert all(sum(counts) == USED * TOKENS for counts in told["tokens_by_layer"].values())
    note = next(note for note in made.notes if "8 of 16 experts saw fewer than 32" in note)
    assert "all tokens for every expert" in note
    assert found["calibration"]["all_experts"] is True
    recipe = bitsmith.inspect(made.out).recipe
    assert recipe is not None
    assert recipe["experts"] == {key: told[key] for key in recipe["experts"]}
    assert made.out.stat().st_size == made.size
    rounded = [note for note in made.notes if "error of the linears' outputs" in note]
    assert rounded, "GPTQ rounded them"


def test_nearest_codes_say_what_was_not_weighted(starving: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(starving, to="q4_0", method="nearest", out=tmp_path / "a.gguf", **FEW)
    note = next(note for note in made.notes if "8 of 16 experts saw fewer than 32" in note)
    assert "not at all where they saw nothing" in note
    assert made.coverage is not None
    assert made.coverage.summary["unused"] == 8


def test_imatrix_counts_are_those_of_each_expert(starving: Path, tmp_path: Path) -> None:
    """As llama-imatrix counts: the tokens of each expert, and zeros for one that saw none."""
    routed = bitsmith.imatrix(starving, out=tmp_path / "a.gguf", **FEW)
    assert any("8 of 16 experts" in note for note in routed.warnings)
    every = bitsmith.imatrix(starving, out=tmp_path / "b.gguf", calibration_all_experts=True, **FEW)
    name = "blk.1.ffn_gate_exps.weight"
    own, whole = read_imatrix(tmp_path / "a.gguf").entries[name], read_imatrix(tmp_path / "b.gguf").entries[name]
    assert own.counts.tolist()[2:] == [0, 0]
    assert int(own.counts.sum()) == USED * TOKENS
    assert own.sums[2:].max() == 0
    assert whole.counts.tolist() == [TOKENS] * EXPERTS
    np.testing.assert_allclose(whole.sums, np.broadcast_to(whole.sums[:1], whole.sums.shape))
    with GgufSource(tmp_path / "a.gguf") as source:
        assert source.tensors[f"{name}.counts"].shape == (EXPERTS, 1)
        assert source.tensors[f"{name}.in_sum2"].shape == (EXPERTS, 64)
    noted = bitsmith.quantize(starving, to="q4_0", calibration=tmp_path / "a.gguf", out=tmp_path / "q.gguf")
    assert any("24 matrices of experts that saw no token" in warning for warning in noted.warnings)
    assert every.record.all_experts


def test_the_option_needs_a_text_and_experts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calibration_all_experts=True say how to calibrate"):
        bitsmith.quantize("reference", to="q4_0", calibration_all_experts=True, out=tmp_path / "a.gguf")
    few = FEW | {"calibration_tokens": 64}
    made = bitsmith.quantize("reference", to="q8_0", calibration_all_experts=True, out=tmp_path / "a.gguf", **few)
    assert any("changes nothing: the model has no experts" in warning for warning in made.warnings)
    assert made.coverage is None


def test_every_expert_changes_no_output() -> None:
    """Statistics of all tokens, but the block's output is what the router chose."""
    from bitsmith.models.arch.block import linear_groups, with_shared_inputs
    from bitsmith.models.arch.hf_config import config_from_hf

    config = config_from_hf(model_of("qwen3_moe").config.to_dict() | {"architectures": ["Qwen3MoeForCausalLM"]})
    groups = with_shared_inputs(linear_groups(config))
    shared = next(group for group in groups if group.name == "expert_in")
    assert len(shared.linears) == 2 * EXPERTS
    assert not shared.routed
    assert sum(group.routed for group in groups) == EXPERTS


def test_the_expectation_counts_all_experts() -> None:
    """128 experts of Qwen3's shape: one Hessian each of what the router sends, or one for all."""
    from dataclasses import replace

    from bitsmith.calibration.cost import calibration_cost
    from bitsmith.calibration.method import Method
    from bitsmith.calibration.stats import MOST_GRAMS
    from bitsmith.models.arch.hf_config import config_from_hf
    from bitsmith.recipe.calibration_record import CalibrationRecord

    shape = {"hidden_size": 2048, "intermediate_size": 768, "moe_intermediate_size": 768, "num_hidden_layers": 1}
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "num_attention_heads": 32, "vocab_size": 16}
    config = config_from_hf({"architectures": ["Qwen3MoeForCausalLM"], **shape, **experts})
    record = CalibrationRecord("text", "0" * 64, 65536, 512, 0)
    routed = calibration_cost(config, Method("gptq"), "normal", record, memory=1 << 40)
    every = calibration_cost(config, Method("gptq"), "normal", replace(record, all_experts=True), memory=1 << 40)
    assert every.seconds > 1.2 * routed.seconds
    assert routed.memory - every.memory == MOST_GRAMS - 4 * 128 * 768**2


def test_statistics_in_portions_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the Hessians of a layer's experts need too much memory, they are summed in several passes."""
    folder, _ = folder_of("qwen3_moe", tmp_path / "m")
    few = FEW | {"calibration_all_experts": True}
    made = [bitsmith.quantize(folder, to="q4_0", method="gptq", out=tmp_path / "a.gguf", **few).out.read_bytes()]
    monkeypatch.setattr("bitsmith.calibration.inputs.MOST_GRAMS", 4 * 64**2 + 1)
    made.append(bitsmith.quantize(folder, to="q4_0", method="gptq", out=tmp_path / "b.gguf", **few).out.read_bytes())
    assert made[0] == made[1]
