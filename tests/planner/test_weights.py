"""Sizes by format: what `quantize` writes, to the byte; and the figures that everybody quotes, by arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bitsmith
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.quantization import quantize_each
from bitsmith.planner.files import file_bytes
from bitsmith.planner.model_spec import find_model
from bitsmith.planner.network import Network
from bitsmith.planner.weights import as_it_is, parse_target, rule_of_thumb, stored
from bitsmith.recipe.mixes import MIXES
from tests.tiny import make_folder

TARGETS = [
    *(f"gguf/{mix}" for mix in MIXES),
    *("gptq/int4", "gptq/int3", "gptq/int8", "awq/int4", "compressed/w4a16", "compressed/w8a8", "compressed/fp8"),
    *("native/int4", "native/int8-channel", "native/nf4", "native/nf4-dq", "native/fp8", "native/f16", "native/f32"),
]


def network(name: str) -> Network:
    return find_model(name, scratch=Path()).network


def gigabytes(name: str, target: str) -> float:
    return stored(network(name), parse_target(target)).total / 1e9


@pytest.fixture(scope="module")
def planned() -> dict[str, int]:
    # one by one: a mix that needs importance brings a calibration, which changes other mixes of its run
    found = [quantize_each("reference", [name], QuantizeConfig(dry_run=True))[0] for name in TARGETS]
    return {str(each.target): sum(tensor.info.nbytes for tensor in each.plan.tensors) for each in found}


@pytest.mark.parametrize("target", TARGETS)
def test_tensors_are_those_that_quantize_plans(target: str, planned: dict[str, int]) -> None:
    assert stored(network("reference"), parse_target(target)).total == planned[target]


def test_files_are_those_that_quantize_writes(tmp_path: Path) -> None:
    targets = [parse_target(name) for name in ("q4_k_m", "f16", "q2_k", "gptq/int4", "native/nf4")]
    found = file_bytes(open_checkpoint("reference"), targets)
    for target in targets:
        made = bitsmith.quantize("reference", to=str(target), out=tmp_path / str(target).replace("/", "-"))
        files = [made.out] if made.out.is_file() else [path for path in made.out.rglob("*") if path.is_file()]
        assert found[target] == made.size == sum(path.stat().st_size for path in files)


def test_other_models_to_the_byte(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    for target in ("q8_0", "q4_k_m", "native/int8-channel"):
        (dry,) = quantize_each(folder, [target], QuantizeConfig(dry_run=True))
        assert file_bytes(open_checkpoint(folder), [parse_target(target)])[parse_target(target)] == dry.size


def test_rotary_factors_are_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config["rope_scaling"] = {**scaling, "original_max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (dry,) = quantize_each(folder, ["q8_0"], QuantizeConfig(dry_run=True))
    planned = sum(tensor.info.nbytes for tensor in dry.plan.tensors)
    assert stored(find_model(folder, scratch=Path()).network, parse_target("q8_0")).total == planned


def test_what_cannot_be_made_says_why() -> None:
    checkpoint = open_checkpoint("reference")
    found = file_bytes(checkpoint, [parse_target("compressed/w8a8-static")])
    assert "calibration" in str(found[parse_target("compressed/w8a8-static")])


# GB of 10^9 bytes, as they are repeated everywhere
RULES = {
    ("7B", "fp32"): 28,
    ("7B", "fp16"): 14,
    ("7B", "int8"): 7,
    ("7B", "int4"): 3.5,
    ("13B", "fp16"): 26,
    ("13B", "int8"): 13,
    ("13B", "int4"): 6.5,
    ("70B", "fp32"): 280,
    ("70B", "fp16"): 140,
    ("70B", "int8"): 70,
    ("70B", "int4"): 35,
    ("175B", "fp16"): 350,
    ("175B", "int8"): 175,
    ("175B", "int4"): 87.5,
    ("7B", "int2"): 1.75,
    ("70B", "int2"): 17.5,
    ("70B", "int3"): 26.25,
}


@pytest.mark.parametrize(("name", "format"), RULES)
def test_rules_of_thumb(name: str, format: str) -> None:
    spec = find_model(name, scratch=Path())
    assert spec.count is not None
    weights = rule_of_thumb(spec.network, parse_target(format), spec.count)
    assert weights.total / 1e9 == pytest.approx(RULES[name, format], rel=1e-4)


# published sizes of files on real shapes
SIZES = {
    ("llama-3-8b", "q4_k_m"): 4.92,
    ("llama-3-8b", "q5_k_m"): 5.73,
    ("llama-3-8b", "q8_0"): 8.54,
    ("llama-3-8b", "f16"): 16.07,
    ("llama-3-70b", "q4_k_m"): 42.52,
    ("mixtral-8x7b", "q4_k_m"): 28.45,
    ("deepseek-v3", "q4_k_m"): 404.4,
    ("llama-2-7b", "gptq/int4"): 3.9,
}


@pytest.mark.parametrize(("name", "format"), SIZES)
def test_published_sizes(name: str, format: str) -> None:
    assert gigabytes(name, format) == pytest.approx(SIZES[name, format], rel=0.005)


def test_bytes_a_weight_on_real_shapes() -> None:
    for name in ("llama-3-8b", "llama-3-70b"):
        weights = network(name).parameters / 1e9
        assert 0.6 <= gigabytes(name, "q4_k_m") / weights <= 0.615
        assert 0.43 <= gigabytes(name, "q3_k_s") / weights <= 0.46


def test_mixtures_read_the_experts_they_choose() -> None:
    mixtral = network("mixtral-8x7b")
    weights = stored(mixtral, parse_target("q8_0"))
    experts = 3 * 32 * 8 * 14336 * 4096 * 34 / 32
    embedding = 32000 * 4096 * 34 / 32
    expected = weights.total - experts * 6 / 8 - embedding * (1 - 1 / 32000)
    assert weights.read_bytes(mixtral) == pytest.approx(expected, rel=1e-6)
    assert sum(weights.layer_bytes(mixtral)) == pytest.approx(weights.total - 2 * embedding, rel=0.01)


def test_a_tied_embedding_is_read_whole() -> None:
    small = network("llama-3.2-1b")
    weights = stored(small, parse_target("f16"))
    assert weights.read_bytes(small) == weights.total


def test_a_file_as_it_is(tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to="gptq/int4", out=tmp_path / "made")
    found = as_it_is(find_model(made.out, scratch=Path()).network)
    assert found.total == sum(tensor.info.nbytes for tensor in made.plan.tensors)
    assert {format.name for format in found.formats.values()} == {"int4-g128"}


def test_names_of_formats() -> None:
    assert str(parse_target("FP16")) == "gguf/f16"
    assert str(parse_target("q4_k")) == "gguf/q4_k_m"
    assert str(parse_target("nf4")) == "native/nf4"
    for wrong, match in (("q4_k_x", "q4_k_m"), ("gptq/int5", "int4"), ("native/int9", "int"), ("tar/q4", "container")):
        with pytest.raises(UsageError, match=match):
            parse_target(wrong)


def test_rows_that_nothing_divides() -> None:
    config_sized = network("gpt-oss-20b")  # rows of 2880: no block of 256
    found = stored(config_sized, parse_target("q4_k_m"))
    assert "fallback" in found.notes[0]
    with pytest.raises(UnsupportedError, match="no matrix"):
        odd = find_model("reference", scratch=Path()).network
        stored(_with_rows(odd, 100), parse_target("native/int4-g64"))


def _with_rows(network: Network, cols: int) -> Network:
    from dataclasses import replace

    return replace(
        network, tensors=tuple(replace(t, shape=(*t.shape[:-1], cols)) for t in network.tensors if len(t.shape) > 1)
    )
