"""`bitsmith bench`: what it prints and what it refuses. No figure of time is looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bitsmith.system.core import core
from bitsmith.system.machine import cores
from tests.cli.command import Command

QUICK = ("--prompt", 8, "--gen", 4, "--repeat", 2, "--threads", 1)


def test_in_words(bitsmith_command: Command, tiny: Path) -> None:
    result = bitsmith_command("bench", tiny, *QUICK)
    assert result.code == 0
    assert "tiny, 1 thread\n" in result.out
    for shown in ("prompt", "generation", "tokens/s", "loaded in", "peak memory", "read for a token"):
        assert shown in result.out
    assert "Warning" not in result.err


def test_as_json(bitsmith_command: Command, tiny: Path) -> None:
    found = json.loads(bitsmith_command("bench", tiny, *QUICK, "--json").out)
    assert (found["model"], found["threads"], found["warnings"]) == ("tiny", 1, [])
    for name, tokens in (("prompt", 8), ("generation", 4)):
        assert found[name]["tokens"] == tokens
        assert len(found[name]["seconds"]) == 2
        speed = found[name]["tokens_per_second"]
        assert 0 < speed["min"] <= speed["mean"] <= speed["max"]
    assert found["bytes_per_token"] > 64 * 4096  # the output matrix at least
    assert found["peak_memory_bytes"] > 1 << 20


@pytest.mark.skipif(core() is None, reason="no C++ core")
def test_explained(bitsmith_command: Command, tiny: Path) -> None:
    shown = bitsmith_command("bench", tiny, *QUICK, "--explain").out
    module = core()
    assert module is not None
    for part in ("processor: ", "time of prompt: products ", f"instruction set: {module.isa()}; available: generic"):
        assert part in shown
    assert "matrices: way 0 (default)" in shown
    found = json.loads(bitsmith_command("bench", tiny, *QUICK, "--json").out)
    assert found["choices"]["isa"] == module.isa()
    shares = found["generation"]["shares_of_time"]
    assert set(shares) == {"products", "attention", "rest"}
    assert 0 < sum(shares.values()) <= 1


def test_explained_on_torch(bitsmith_command: Command, tiny: Path) -> None:
    pytest.importorskip("torch")
    shown = bitsmith_command("bench", tiny, *QUICK, "--explain", "--kernel", "torch").out
    assert "nothing was chosen" in shown


@pytest.mark.parametrize("left_out", ["prompt", "gen"])
def test_one_of_them_alone(bitsmith_command: Command, tiny: Path, left_out: str) -> None:
    found = json.loads(bitsmith_command("bench", tiny, *QUICK, f"--{left_out}", 0, "--json").out)
    assert (found["prompt"] is None, found["generation"] is None) == (left_out == "prompt", left_out == "gen")
    assert bitsmith_command("bench", tiny, *QUICK, f"--{left_out}", 0).code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompt", 257], "--prompt 257: expected at most the model's context of 256 tokens"),
        (["--gen", 1000], "--gen 1000"),
        (["--gen", -1], "--gen -1"),
        (["--repeat", 0], "--repeat 0"),
        (["--threads", 0], "--threads 0"),
        (["--prompt", 0, "--gen", 0], "nothing to measure"),
        (["--parallel", "2,0"], "--parallel 0: expected 1 to 256 texts"),
        (["--parallel", "two"], "expected numbers between commas"),
    ],
)
def test_a_wrong_call(bitsmith_command: Command, tiny: Path, words: list[object], expected: str) -> None:
    assert expected in bitsmith_command.fails(2, "bench", tiny, *words)


def test_several_texts_together(bitsmith_command: Command, tiny: Path) -> None:
    words = ["bench", tiny, "--prompt", 0, "--gen", 3, "--repeat", 2, "--parallel", "1,3"]
    found = json.loads(bitsmith_command(*words, "--json").out)["parallel"]
    assert {count: rate["tokens"] for count, rate in found.items()} == {"1": 3, "3": 9}
    assert all(rate["tokens_per_second"]["min"] > 0 for rate in found.values())
    assert "generation of 3 texts" in bitsmith_command(*words).out


def test_the_usual_prompt_is_cut_to_the_context(bitsmith_command: Command, tiny: Path) -> None:
    found = json.loads(bitsmith_command("bench", tiny, "--gen", 0, "--repeat", 1, "--threads", 1, "--json").out)
    assert found["prompt"]["tokens"] == 256


def test_more_threads_than_cores(bitsmith_command: Command, tiny: Path) -> None:
    result = bitsmith_command("bench", tiny, *QUICK, "--threads", cores() + 1)
    assert result.code == 0
    assert f"give --threads {cores()} or fewer" in " ".join(result.err.split())


def test_an_interrupt_says_so(tiny: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import bitsmith.evaluation.speed as speed\n"
        f"speed.measure_speed = lambda *a, **k: os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        f"sys.argv = ['bitsmith', 'bench', {str(tiny)!r}]\n"
        "from bitsmith.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1] == "Interrupted."
    assert "Traceback" not in done.stderr
