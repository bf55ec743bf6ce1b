"""What a plan says `bitsmith run` takes, against what it takes: models that the fit of its constants did not see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import bitsmith
from bench.plan import CHECK, FIT, SHAPES, hollow, measured_peak, shape
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.system.core import core

pytestmark = [
    pytest.mark.skipif(core() is None, reason="no C++ core"),
    pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux"),
]


# two layers as wide as TinyLlama-1.1B's; every head keeps keys of its own, so that the cache is about a tenth
SHORT = shape(2, 2048, 5632, 32, 32, 32000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hollow")


def measured_share(path: Path, context: int) -> float:
    """What the plan says of a GGUF file, as a share of what was measured."""
    report = bitsmith.plan(path, devices=["cpu-ddr5"], memory="24GB", context=context)
    found = report.rows[0].verdicts[0]
    assert found.runtime.name == "bitsmith"
    return found.total / measured_peak(path, context)


def test_the_fit_did_not_see_them() -> None:
    assert not {name for name, _, _ in FIT} & {name for name, _, _ in CHECK}
    assert SHORT not in [SHAPES[name] for name, _, _ in FIT]


@pytest.mark.parametrize(
    ("name", "mix", "context"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case[0] != "reference" else []) for case in CHECK],
)
def test_peak_memory_of_run_is_within_5_percent(name: str, mix: str, context: int, folder: Path) -> None:
    path = folder / f"{name}-{mix}.gguf"
    if not path.exists():
        hollow(open_checkpoint("reference").config if name == "reference" else SHAPES[name], mix, path)
    assert measured_share(path, context) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("mix", "context"), [("q8_0", 512), ("q8_0", 2048), ("q4_k_m", 2048), ("f16", 512)])
def test_peak_memory_of_two_wide_layers_is_close(mix: str, context: int, tmp_path: Path) -> None:
    """Closer than the whole model, whose constants and cache are a smaller share of it.

    Processors that do not multiply bfloat16 keep no rounded inputs of float matrices; the plan counts them.
    """
    bound = 0.04 if mix == "f16" else 0.03
    assert measured_share(hollow(SHORT, mix, tmp_path / "short.gguf"), context) == pytest.approx(1, rel=bound)


@pytest.mark.parametrize("target", ["gptq/int4", "native/nf4", "native/fp8", "native/int8-channel"])
def test_folders_as_the_core_lays_them(target: str, tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to=target, out=tmp_path / "made").out
    report = bitsmith.plan(made, devices=["cpu-ddr5"], memory="24GB", context=500)
    measured = measured_peak(made, 500)
    assert report.rows[0].verdicts[0].total == pytest.approx(measured, rel=0.1)
