"""Runs that are interrupted in one process, again and again, at reports of their progress, and called again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.quantization import quantize_each
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work import pace
from tests.pipeline.test_resume import tree
from tests.tiny import make_folder

TEXT: dict[str, Any] = {"calibration_tokens": 1024, "calibration_context": 64, "threads": 1}
Call = Callable[[Path, Path, Report], object]  # model, output, report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("continued") / "model", num_hidden_layers=3)


@pytest.fixture(autouse=True)
def _keep_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(pace, "SHARE", 1e9)


class Stop:
    """A callback for reports that interrupts at one of them."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, progress: Progress) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


def quantizing(to: str, **words: Any) -> Call:
    return lambda model, out, report: bitsmith.quantize(model, to=to, out=out, report=report, **{**TEXT, **words})


def training(**words: Any) -> Call:
    def call(model: Path, out: Path, report: Report) -> object:
        wanted = {**TEXT, "steps": 6, "batch": 2, "training_tokens": 1024, **words}
        return bitsmith.tune_qat(model, to="q4_0", out=out, report=report, **wanted)

    return call


def several(model: Path, out: Path, report: Report) -> object:
    config = QuantizeConfig(out=out, calibration="default", **TEXT)
    return quantize_each(model, ["q8_0", "q4_0", "native/int8"], config, report=report)


def imatrix(model: Path, out: Path, report: Report) -> object:
    return bitsmith.imatrix(model, out=out.with_suffix(".gguf"), report=report, **TEXT)


CALLS: dict[str, tuple[Call, int]] = {
    "plain": (lambda model, out, report: bitsmith.quantize(model, to="q4_k_m", out=out, report=report), 12),
    "weighted": (quantizing("q4_k_m", calibration="default"), 12),
    "gptq": (quantizing("q4_0", method="gptq"), 16),
    "smoothquant": (quantizing("compressed/w8a8", method="smoothquant"), 20),
    "own text": (quantizing("q4_0", method="gptq", calibration="self"), 20),
    "imatrix": (imatrix, 2),
}
SLOW: dict[str, tuple[Call, int]] = {
    "gptq folder": (quantizing("gptq/int4", method="gptq", group_size=32), 13),
    "learned": (quantizing("q4_0", method="learned", effort="fast"), 29),
    "awq": (quantizing("awq/int4", method="awq+gptq", group_size=32), 12),
    "qat": (training(), 16),
    "qat of codes, adam in 8 bits": (training(train="all", optimizer="adam-8bit"), 20),
    "several": (several, 30),
}


@pytest.mark.parametrize("name", [*CALLS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_bytes_are_those_of_a_run_without_a_break(name: str, model: Path, tmp_path: Path) -> None:
    call, step = {**CALLS, **SLOW}[name]
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    call(model, one / "out", silent)
    for stops in range(1, 100):
        try:
            call(model, many / "out", Stop(stops * step))
        except KeyboardInterrupt:
            continue
        break
    assert stops > 2
    assert tree(many) == tree(one)


def test_a_stopped_run_is_told_of(model: Path, tmp_path: Path) -> None:
    call, _ = CALLS["gptq"]
    with pytest.raises(KeyboardInterrupt):
        call(model, tmp_path / "out", Stop(20))
    told: list[str] = []
    bitsmith.quantize(
        model, to="q4_0", out=tmp_path / "out", method="gptq", **TEXT, on_plan=lambda plan: told.extend(plan.told)
    )
    assert told[0].startswith("continuing an interrupted run after ")
    assert told[0].endswith("; `--fresh` starts again")


def test_a_call_with_fresh_starts_again(model: Path, tmp_path: Path) -> None:
    call, _ = CALLS["plain"]
    with pytest.raises(KeyboardInterrupt):
        call(model, tmp_path / "out", Stop(9))
    told: list[str] = []
    bitsmith.quantize(model, to="q4_k_m", out=tmp_path / "out", fresh=True, on_plan=lambda plan: told.extend(plan.told))
    assert told == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_disk_for_state_is_part_of_the_plan(model: Path) -> None:
    assert bitsmith.quantize(model, to="q8_0", dry_run=True).kept_disk == 0
    plan = bitsmith.quantize(model, to="q4_0", method="gptq", dry_run=True, **TEXT)
    assert plan.kept_disk == 2 * 4 * 1024 * plan.plan.checkpoint.config.hidden
    assert plan.to_dict()["kept_disk_bytes"] == plan.kept_disk
