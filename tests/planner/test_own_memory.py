"""What a plan says `bitsmith run` takes, against what it takes: models that the fit of its constants did not see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import bitsmith
from bench.plan import CHECK, FIT, SHAPES, hollow, measured_peak
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.system.core import core

pytestmark = [
    pytest.mark.skipif(core() is None, reason="no C++ core"),
    pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hollow")


def test_the_fit_did_not_see_them() -> None:
    assert not {name for name, _, _ in FIT} & {name for name, _, _ in CHECK}


@pytest.mark.parametrize(("name", "mix", "context"), CHECK)
def test_peak_memory_of_run_is_within_5_percent(name: str, mix: str, context: int, folder: Path) -> None:
    path = folder / f"{name}-{mix}.gguf"
    if not path.exists():
        hollow(open_checkpoint("reference").config if name == "reference" else SHAPES[name], mix, path)
    report = bitsmith.plan(path, devices=["cpu-ddr5"], memory="24GB", context=context)
    found = report.rows[0].verdicts[0]
    assert found.runtime.name == "bitsmith"
    assert found.total == pytest.approx(measured_peak(path, context), rel=0.05)


@pytest.mark.parametrize("target", ["gptq/int4", "native/nf4", "native/fp8", "native/int8-channel"])
def test_folders_as_the_core_lays_them(target: str, tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to=target, out=tmp_path / "made").out
    report = bitsmith.plan(made, devices=["cpu-ddr5"], memory="24GB", context=500)
    measured = measured_peak(made, 500)
    assert report.rows[0].verdicts[0].total == pytest.approx(measured, rel=0.1)
