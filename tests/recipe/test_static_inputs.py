"""Targets with stored input scales: what the plan wants, what a calibration tells it, what is written and read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration.collect import Calibration
from bitsmith.calibration.config import CalibrationConfig
from bitsmith.calibration.run import prepare
from bitsmith.calibration.stats import StatsMeter
from bitsmith.containers.manifest import Manifest
from bitsmith.containers.reservation import Reservation
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, TensorError, UnsupportedError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.executor import execute
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.hf_containers import assign_hf
from bitsmith.recipe.plan import Assignment, Plan
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.static_inputs import inputs_wanted
from bitsmith.recipe.target import Target
from tests.tiny import CONFIG, make_folder, weights

RECORD = CalibrationRecord("text", "0" * 64, 640, 64, 0)
TARGETS = {
    "w8a8-static": "compressed/int8-channel-static",
    "fp8-static": "compressed/fp8-channel-static",
    "fp8-tensor-static": "compressed/fp8-tensor-static",
}
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def assigned(model: Path, name: str, **options: Any) -> Assignment:
    checkpoint = open_checkpoint(model)
    return assign_hf(checkpoint, Target("compressed", name), PlanOptions(**{"calibration": RECORD, **options}))


def absmax(calibration: Calibration) -> dict[str, float]:
    return {name: float(stats.max_abs.max()) for name, stats in calibration.stats.items()}


def carried_out(plan: Plan, out: Path, *, threads: int = 1) -> Manifest:
    with Reservation([plan.destination(out)]) as reservation:
        return execute(plan, out, reservation, threads=threads).manifest


@pytest.fixture
def calibration(tiny: Path) -> Calibration:
    return prepare(open_checkpoint(tiny), CalibrationConfig(calibration_tokens=640, calibration_context=64)).run()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_planned_is_written_and_read(tiny: Path, tmp_path: Path, calibration: Calibration, name: str) -> None:
    assignment = assigned(tiny, name)
    plan = Plan.of(assignment)
    assert set(inputs_wanted(plan.tensors)) == {f"blk.{layer}.{linear}" for layer in (0, 1) for linear in LINEARS}
    told = Plan.of(assignment, input_absmax=absmax(calibration))
    assert inputs_wanted(told.tensors) == ()
    manifest = carried_out(told, tmp_path / "out", threads=2)
    assert plan.size == told.size == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert bitsmith.inspect(tmp_path / "out", verify=True).problems == ()
    assert len(manifest.tensors) == len(plan.tensors)
    source = SafetensorsSource(tmp_path / "out")
    half = 127.5 if name == "w8a8-static" else 448
    for module, linear in (("mlp.down_proj", "ffn_down"), ("self_attn.q_proj", "attn_q")):
        weight = f"model.layers.1.{module}.weight"
        assert source.tensors[weight].layout == TARGETS[name]
        activations = source.input_rounding(weight)
        assert activations is not None
        largest = float(calibration.stats[f"blk.1.{linear}"].max_abs.max())
        assert activations.scale == pytest.approx(largest / half, rel=2**-8)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    inputs = said["config_groups"]["group_0"]["input_activations"]
    assert (inputs["strategy"], inputs["dynamic"]) == ("tensor", False)
    stored = [name for path in source.files for name in _entries(path) if name.endswith("input_scale")]
    assert len(stored) == 14


def _entries(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert all(entry["shape"] == [1] for name, entry in found.items() if name.endswith("input_scale"))
    assert all(entry["dtype"] == "BF16" for name, entry in found.items() if name.endswith("input_scale"))
    return found


def test_bytes_do_not_depend_on_threads_or_shards(tiny: Path, tmp_path: Path, calibration: Calibration) -> None:
    hashes = []
    for number, (threads, limit) in enumerate([(1, None), (3, 30_000)]):
        assignment = assigned(tiny, "w8a8-static", max_shard_bytes=limit)
        plan = Plan.of(assignment, input_absmax=absmax(calibration))
        manifest = carried_out(plan, tmp_path / str(number), threads=threads)
        hashes.append({record.name: record.sha256 for record in manifest.tensors})
    assert hashes[0] == hashes[1]


def test_rules_and_what_is_kept(tiny: Path) -> None:
    plan = assigned(tiny, "w8a8", rules=(r"mlp\.down=w8a8-static", r"layers\.0\.self_attn\.o=fp8-static"))
    assert set(inputs_wanted(plan.tensors)) == {"blk.0.attn_output", "blk.0.ffn_down", "blk.1.ffn_down"}
    said = json.loads(plan.extras["config.json"])["quantization_config"]["config_groups"]
    assert [group["input_activations"]["dynamic"] for group in said.values()].count(False) == 2
    assert len(inputs_wanted(assigned(tiny, "w8a8-static", keep=("mlp",)).tensors)) == 8
    assert inputs_wanted(assigned(tiny, "w8a8", calibration=None).tensors) == ()


@pytest.mark.parametrize("name", TARGETS)
def test_without_a_calibration_the_plan_fails(tiny: Path, name: str) -> None:
    dynamic = name.removesuffix("-static")
    with pytest.raises(UsageError, match=rf'compressed/{name} stores the range .*calibration="default".*/{dynamic}, '):
        bitsmith.quantize(tiny, to=f"compressed/{name}", dry_run=True)
    with pytest.raises(UsageError, match=r"and 13 more.*x\.gguf is an importance file, without activations"):
        assigned(tiny, name, calibration=replace(RECORD, source="x.gguf", seed=None))


def test_layers_that_no_calibration_sees(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    odd = {**tensors, "model.layers.0.mlp.extra_proj.weight": tensors["lm_head.weight"][:64].copy()}
    folder = make_folder(tmp_path / "odd", tensors=odd)
    with pytest.raises(UnsupportedError, match=r"extra_proj\.weight: the calibration does not measure.*keep="):
        assigned(folder, "fp8-static")
    assert inputs_wanted(assigned(folder, "fp8-static", keep=("extra",)).tensors)


def test_what_the_calibration_lacks_or_cannot_store(tiny: Path, calibration: Calibration) -> None:
    plan = assigned(tiny, "w8a8-static")
    with pytest.raises(UsageError, match=r"layers\.\d\..*weight: the calibration has not seen its input"):
        Plan.of(plan, input_absmax={})
    meter = StatsMeter(64)
    meter.add(np.full((1, 64), 3.4e38, np.float32))
    huge = {**absmax(calibration), "blk.0.attn_q": float(meter.result().max_abs.max())}
    half = make_folder(tiny.parent / "half", tensors={k: w.astype(np.float16) for k, w in weights(CONFIG).items()})
    with pytest.raises(TensorError, match=r"q_proj\.weight: the input reaches 3\.4e\+38, whose scale does not fit f16"):
        Plan.of(assigned(half, "w8a8-static"), input_absmax=huge)


def test_static_files_go_on_to_other_containers(tiny: Path, tmp_path: Path, calibration: Calibration) -> None:
    made = tmp_path / "static"
    carried_out(Plan.of(assigned(tiny, "w8a8-static"), input_absmax=absmax(calibration)), made, threads=1)
    again = bitsmith.quantize(made, to="compressed/w8a8-static", out=tmp_path / "again", requantize=True)
    assert again.manifest is not None  # copied as it is, which needs no calibration
    before, after = SafetensorsSource(made), SafetensorsSource(again.out)
    weight = "model.layers.0.mlp.up_proj.weight"
    assert before.input_rounding(weight) == after.input_rounding(weight)
    gguf = bitsmith.quantize(made, to="q8_0", out=tmp_path / "x.gguf", requantize=True)
    assert np.isfinite(bitsmith.load(gguf.out).logits(np.array([[3, 5, 7]]))).all()
    dynamic = bitsmith.quantize(made, to="compressed/w8a8", out=tmp_path / "dynamic", requantize=True)
    assert "input_scale" not in str(_names(dynamic.out))


def _names(folder: Path) -> list[str]:
    with (folder / "model.safetensors").open("rb") as file:
        return list(json.loads(file.read(int.from_bytes(file.read(8), "little"))))


def test_a_plan_that_was_not_told_is_not_carried_out(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BitsmithError, match="which comes from calibration"):
        carried_out(Plan.of(assigned(tiny, "fp8-static")), tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_a_final_plan_rounds_inputs_by_what_it_stores(tiny: Path) -> None:
    seen = {f"blk.{layer}.{linear}": 2.0 + layer for layer in (0, 1) for linear in LINEARS}
    told = Plan.of(assigned(tiny, "w8a8-static"), input_absmax=seen)
    scales = {t.info.name: t.inputs.scale for t in told.tensors if t.inputs is not None}
    assert scales["model.layers.1.mlp.up_proj.weight"] == pytest.approx(3 / 127.5, rel=2**-8)
    assert len(scales) == 14


@pytest.mark.parametrize(
    ("to", "instead"),
    [
        ("modelopt/nvfp4", "modelopt/nvfp4a16"),
        ("modelopt/fp8", "compressed/fp8"),
        ("modelopt/w4a8", "modelopt/int4"),
        ("compressed/fp8-static", "compressed/fp8"),
    ],
)
def test_the_target_that_is_offered_instead_needs_no_calibration(to: str, instead: str) -> None:
    with pytest.raises(UsageError, match=rf"or write {instead}, which needs none\.$"):
        bitsmith.quantize("reference", to=to, dry_run=True)
    bitsmith.quantize("reference", to=instead, dry_run=True)
