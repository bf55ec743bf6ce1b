"""Plans for several workers, of shapes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bitsmith
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.pipeline import spread, spread_plan
from bitsmith.pipeline.spread_plan import plan_spread
from tests.cli.command import Command


@pytest.fixture(autouse=True)
def _rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 million weights a second."""
    monkeypatch.setattr(spread_plan, "seconds_per_weight", lambda *_, **__: 1e-8)


def test_a_large_model_from_its_shape() -> None:
    found = plan_spread("llama-3-70b", workers=16, threads=1)
    assert found.parameters == 70_553_706_496
    assert found.source == 2 * found.parameters
    assert found.output == pytest.approx(42.5e9, rel=0.01)
    assert found.tasks > found.parameters / spread.PIECE_WEIGHTS
    assert found.alone.seconds > 705  # of rounding
    assert 4 < found.speed_up < 16
    assert found.spread.moved >= found.source + 2 * found.output
    assert found.spread.waiting < found.output


def test_the_graph_is_that_of_the_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pipeline.test_spread import cut_in_pieces

    monkeypatch.setattr(spread, "PIECE_WEIGHTS", 1 << 15)
    planned, real = plan_spread(tiny, workers=2, threads=1), cut_in_pieces(tiny)
    assert abs(planned.tasks - len(real.tasks)) <= 1  # tensors come in another order, so groups differ a little
    file = bitsmith.quantize(tiny, to="q4_k_m", out=tiny.parent / "x.gguf", dry_run=True)
    assert planned.output == sum(each.info.nbytes for each in file.plan.tensors)


def test_config_alone(tiny: Path) -> None:
    whole = plan_spread(tiny, workers=2, threads=1)
    (tiny / "model.safetensors").unlink()
    assert plan_spread(tiny, workers=2, threads=1).output == whole.output


def test_command_line(bitsmith_command: Command) -> None:
    done = bitsmith_command("plan", "kimi-k2", "--quantize", "--workers", 4, "--threads", 2, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["workers"], found["threads"], found["target"]) == (4, 2, "q4_k_m")
    assert found["parameters"] > 1e12
    text = bitsmith_command("plan", "llama-3-8b", "--quantize", "-f", "q8_0").out
    assert "to q8_0, 16 workers" in text


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="workers=0"):
        plan_spread("llama-3-8b", workers=0)
    with pytest.raises(UsageError, match="link"):
        plan_spread("llama-3-8b", link="fast")
    with pytest.raises(UnsupportedError, match="GGUF formats alone"):
        plan_spread("llama-3-8b", to="gptq/int4")
