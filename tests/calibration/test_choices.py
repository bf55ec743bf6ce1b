"""Options that decide whether and how a run calibrates do what the help says, or say that they do nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.calibration import collect as collect_module
from bitsmith.calibration.cost import calibration_cost
from bitsmith.calibration.method import Method
from bitsmith.calibration.run import make_imatrix
from bitsmith.errors import UsageError
from bitsmith.models.arch.block import linear_shapes
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.calibration_record import CalibrationRecord
from tests.cli.command import Command

RECORD = CalibrationRecord("text", "0" * 64, 640, 64, 0)

FEW = {"calibration_tokens": 640, "calibration_context": 64}


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics pass fails if it is called."""

    def run(*words: object, **options: object) -> None:
        raise AssertionError("the statistics pass ran")

    monkeypatch.setattr(collect_module, "collect", run)


@pytest.fixture
def imatrix(tiny: Path, tmp_path: Path) -> Path:
    make_imatrix(tiny, out=tmp_path / "im.gguf", calibration_tokens=640, calibration_context=64)
    return tmp_path / "im.gguf"


def plan(tiny: Path, tmp_path: Path, to: str, **words: Any) -> Quantized:
    return bitsmith.quantize(tiny, to=to, out=tmp_path / "made", dry_run=True, **words)


def test_effort_alone_calibrates(tiny: Path, tmp_path: Path) -> None:
    for effort, method in (("fast", "nearest"), ("normal", "gptq"), ("high", "learned")):
        planned = plan(tiny, tmp_path, "q4_0", effort=effort, **FEW)
        assert planned.calibration is not None
        assert planned.method == method
        assert planned.warnings == plan(tiny, tmp_path, "q4_0").warnings
    assert plan(tiny, tmp_path, "q4_0").calibration is None


@pytest.mark.usefixtures("no_pass")
@pytest.mark.parametrize("to", ["f16", "bf16", "native/f16"])
@pytest.mark.parametrize("words", [{"effort": "high"}, {"calibration": "default"}, {"method": "gptq"}])
def test_floats_are_not_calibrated(tiny: Path, tmp_path: Path, to: str, words: dict[str, str]) -> None:
    made = bitsmith.quantize(tiny, to=to, out=tmp_path / "made", **words)
    assert made.calibration is None
    assert (made.method, made.calibration_memory) == ("nearest", 0)
    said = "rounds no tensor, so there is nothing to calibrate: the calibration is left out"
    assert [warning for warning in made.warnings if said in warning] == [f"{made.target} {said}"]
    plain = bitsmith.quantize(tiny, to=to, out=tmp_path / "plain")
    assert [each.sha256 for each in made.manifest.tensors] == [each.sha256 for each in plain.manifest.tensors]


def test_floats_beside_others(tiny: Path, tmp_path: Path) -> None:
    config = bitsmith.QuantizeConfig(out=tmp_path / "made", effort="fast", **FEW)
    floats, four = bitsmith.quantize_each(tiny, ["f16", "q4_0"], config)
    assert (floats.calibration, four.calibration is None) == (None, False)
    alone = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "alone", effort="fast", **FEW)
    assert [each.sha256 for each in four.manifest.tensors] == [each.sha256 for each in alone.manifest.tensors]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"calibration_tokens": 640}, r"im\.gguf is an importance file, .* leave out calibration_tokens=\."),
        ({"calibration_context": 64, "seed": 3}, r"leave out calibration_context= and seed="),
        ({"memory": "1GB"}, "leave out memory="),
        ({"device": "cpu"}, "leave out device="),
        ({"effort": "high"}, r'effort="high" chooses method="learned" here, which needs a text.* leave out effort='),
        ({"method": "gptq"}, 'method="gptq" needs a text'),
    ],
)
def test_options_that_an_importance_file_cannot_use(
    tiny: Path, tmp_path: Path, imatrix: Path, words: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        plan(tiny, tmp_path, "q4_0", calibration=imatrix, **words)
    if "effort" not in words and "method" not in words:
        with pytest.raises(UsageError, match=named):
            bitsmith.imatrix(tiny, out=tmp_path / "x.dat", calibration=imatrix, **words)


def test_an_effort_that_fits_an_importance_file(tiny: Path, tmp_path: Path, imatrix: Path) -> None:
    assert plan(tiny, tmp_path, "q4_0", calibration=imatrix, effort="fast").method == "nearest"
    assert plan(tiny, tmp_path, "q8_0", calibration=imatrix, effort="normal").method == "nearest"


def test_an_effort_without_effect_is_told(tiny: Path, tmp_path: Path) -> None:
    planned = plan(tiny, tmp_path, "q4_0", method="nearest", effort="high")
    assert 'effort="high" changes nothing with method="nearest"' in planned.warnings


def test_several_sources(tiny: Path, tmp_path: Path, imatrix: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("One two three four five six seven eight. " * 200)
    rows = tmp_path / "b.json"
    rows.write_text(json.dumps([{"text": "Nine ten eleven twelve. " * 200}] * 3))
    planned = plan(tiny, tmp_path, "q4_0", calibration=[text, str(rows)], calibration_context=64)
    assert planned.calibration.source == "a.txt + b.json"
    for alone, what in ((imatrix, "an importance file"), ("self", "the model's own text")):
        with pytest.raises(UsageError, match=f"{what} cannot be joined with others"):
            plan(tiny, tmp_path, "q4_0", calibration=[text, alone])


def test_several_texts_on_the_command_line(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("One two three four five six seven eight. " * 20)
    words = ("--text", text, "--text", "default", "--context", 32, "--max-windows", 3, "--json")
    told = json.loads(bitsmith_command("eval", tiny, *words).out)
    assert told["text"].startswith("a.txt + pydoc_data.topics")
    done = bitsmith_command(
        *("quantize", tiny, "--to", "q4_0", "--out", tmp_path / "x", "--dry-run", "--json"),
        *("--calibration", text, "--calibration", text, "--calibration-context", 32),
    )
    assert json.loads(done.out)["calibration"]["source"] == "a.txt + a.txt"


def test_memory_bounds_what_is_printed(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    few = plan(tiny, tmp_path, "q4_0", effort="normal", memory="1kB", **FEW)
    much = plan(tiny, tmp_path, "q4_0", effort="normal", memory="1GB", **FEW)
    hidden = 2 * 4 * 640 * open_checkpoint(tiny).config.hidden
    assert (few.calibration_disk, much.calibration_disk) == (hidden, 0)
    kept = 2 * 4 * 640 * open_checkpoint(tiny).config.intermediate  # inputs of the MLP's last linear
    assert much.calibration_memory - few.calibration_memory == hidden + kept
    words = ("--calibration-tokens", 640, "--calibration-context", 64, "--memory", "1kB", "--dry-run")
    done = bitsmith_command("quantize", tiny, "--to", "q4_0", "--effort", "normal", "--out", tmp_path / "x", *words)
    assert "of memory beside torch, and 328 kB of disk for temporary files" in done.out


def test_a_table_that_is_the_head_costs_a_pass_more(tiny: Path) -> None:
    config = open_checkpoint(tiny).config

    def products(tied: bool, table: bool) -> float:
        own = replace(config, tied=tied)
        return calibration_cost(own, Method("gptq"), "normal", RECORD, table=table).products

    rounded = products(False, True) - products(False, False)
    passed = products(True, True) - products(True, False) - rounded
    shapes = [linear_shapes(config, layer).values() for layer in range(config.layers)]
    weights = sum(rows * cols for each in shapes for rows, cols in each)
    assert rounded > 0
    assert passed == pytest.approx(RECORD.tokens * (weights + config.hidden**2 / 2))


def test_the_cost_shares_the_memory_among_buffers(tiny: Path) -> None:
    config, size = open_checkpoint(tiny).config, 4 * 640 * 64
    for memory, disk in ((2 * size, 0), (2 * size - 1, 2 * size)):
        assert calibration_cost(config, Method("gptq"), "normal", RECORD, memory=memory).disk == disk
    assert calibration_cost(config, Method("nearest"), "fast", RECORD, memory=size).disk == 0


@pytest.mark.parametrize(
    ("option", "name", "least"), [("--list-devices", "rtx-4090", 30), ("--list-models", "llama", 10)]
)
def test_lists_of_the_planner(bitsmith_command: Command, option: str, name: str, least: int) -> None:
    done = bitsmith_command("plan", option)
    assert done.code == 0, done
    assert name in done.out
    told = json.loads(bitsmith_command("plan", option, "--json").out)
    assert len(told) > least
    assert all(each["name"] in done.out for each in told)
    assert "Missing argument 'MODEL'" in bitsmith_command.fails(2, "plan")


def test_near_names_are_suggested(bitsmith_command: Command) -> None:
    assert "did you mean rtx-4090" in bitsmith_command.fails(2, "plan", "7B", "--device", "rtx-4091")
    assert "llama-3" in bitsmith_command.fails(2, "plan", "lama-3-8b")
