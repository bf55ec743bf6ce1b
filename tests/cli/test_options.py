"""Options: those of the configuration reach it, the help shows all of them, and wrong ones get one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitsmith.calibration.config import ImatrixConfig
from bitsmith.cli.main import COMMANDS
from bitsmith.pipeline import quantization
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.system.options import options_of
from tests.cli.command import Command

FLAGS = """
--out -o --method --effort --calibration --calibration-tokens --calibration-context --seed --memory --device --pure
--calibration-all-experts --double-quant --rule --keep --group-size --sym/--asym --threads --max-shard-size --pre
 --revision --requantize --dry-run --force --fresh --bits --size --fit --context --kv --tokens-per-second --recipe
 --executor --workers --work
"""


def flags_of(config: type[Any]) -> set[str]:
    return {flag for option in options_of(config) for flag in option.flags}


def test_flags_that_scripts_rely_on() -> None:
    assert flags_of(QuantizeConfig) == set(FLAGS.split())
    shared = (
        "--calibration --calibration-tokens --calibration-context --calibration-all-experts --seed --memory --device"
    )
    shared += " --threads --revision"
    assert flags_of(ImatrixConfig) == {
        *shared.split(),
        *["--out", "-o", "--force", "--fresh", "--executor", "--workers", "--work"],
    }


def configured(bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[Any, ...]:
    """The model, the targets and the configuration that `quantize` takes from the command line."""
    seen: list[tuple[Any, ...]] = []

    def quantize_each(*arguments: Any, **_words: Any) -> list[object]:
        seen.append(arguments)
        return []

    monkeypatch.setattr(quantization, "quantize_each", quantize_each)
    result = bitsmith_command("quantize", *words)
    assert result.code == 0, result
    return seen[0]


def test_without_options_the_configuration_has_its_defaults(
    bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configured(bitsmith_command, monkeypatch, "m", "--to", "q4_0") == ("m", ("q4_0",), QuantizeConfig())


def test_every_option_reaches_the_configuration(bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = """m --to q4_0 --to gptq/int4 -o x --method gptq --effort high --calibration self --calibration-tokens 9
        --calibration-context 8 --seed 7 --memory 4GB --device cpu --pure --rule a=b --rule c=d --keep e --group-size -1
        --asym --threads 3 --max-shard-size 2GB --pre p --revision r --requantize --dry-run --force
        --executor local --workers 2 --work w"""
    expected = QuantizeConfig(
        out=Path("x"),
        method="gptq",
        effort="high",
        calibration=("self",),
        calibration_tokens=9,
        calibration_context=8,
        seed=7,
        memory="4GB",
        device="cpu",
        pure=True,
        rules=("a=b", "c=d"),
        keep=("e",),
        group_size=-1,
        symmetric=False,
        threads=3,
        max_shard_size="2GB",
        pre="p",
        revision="r",
        requantize=True,
        dry_run=True,
        force=True,
        executor="local",
        workers=2,
        work="w",
    )
    unset = {option.name for option in options_of(QuantizeConfig) if getattr(expected, option.name) in (None, ())}
    assert unset == {
        "bits",
        "size",
        "fit",
        "context",
        "kv",
        "tokens_per_second",
        "recipe",
    }  # they choose the types, see test_fitting.py
    found = configured(bitsmith_command, monkeypatch, *words.split())
    assert found == ("m", ("q4_0", "gptq/int4"), expected)
    assert configured(bitsmith_command, monkeypatch, "m", "--to", "q4_0", "--sym")[2].symmetric is True


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_help_shows_every_option_in_80_columns(
    bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = bitsmith_command(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert bitsmith_command(command, "-h").out == result.out
    configs = {"quantize": QuantizeConfig, "imatrix": ImatrixConfig}
    for option in options_of(configs[command]) if command in configs else ():
        assert all(flag in result.out for name in option.flags for flag in name.split("/"))
        assert f"\n{option.group}:\n" in result.out


def test_without_a_command_the_help_names_all(bitsmith_command: Command) -> None:
    result = bitsmith_command()
    assert result.code == 2
    assert all(f"\n  {command} " in result.out for command in COMMANDS)
    assert "..." not in result.out.split("Plan:")[1]  # whole sentences
    assert bitsmith_command("--help").out == result.out


def test_the_version(bitsmith_command: Command) -> None:
    from bitsmith.version import __version__

    assert bitsmith_command("--version").out == f"bitsmith {__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quantze", "x"], "Error: No such command 'quantze'. Did you mean 'quantize'? Try 'bitsmith --help'."),
        (["quantize", "x"], "Error: --to is missing; give for instance --to q4_k_m, or a budget: --bits 4.25."),
        (["quantize", "x", "--to", "q4_0", "--forse"], "--force"),
        (["run"], "Error: Missing argument 'MODEL' (or -m MODEL). Try 'bitsmith run --help'."),
        (["run", "x", "-m", "y"], "Two models are named, x and y; name one."),
        (["chat", "x", "-t", "4"], "-t could mean two things: write --threads N or --temperature X."),
        (["run", "x", "-n", "0"], "-n 0: give 1 or more, or -1 for as many as the context holds."),
        (["run", "x", "--temp", "-1"], "--temperature -1.0: expected 0 or more."),
        (["run", "reference", "-p", "a", "-c", "4096"], "reference was trained for 1 to 1024 tokens"),
        (["run", "reference", "-p", "a", "-c", "0"], "reference was trained for 1 to 1024 tokens"),
        (["run", "reference"], "the prompt is empty"),
        (["run", "reference", "-p", "a", "--raw", "--system", "b"], "--system needs the chat template"),
        (["run", "x", "--top-k", "many"], "'many' is not a valid integer"),
        (["--nonsense"], "--nonsense"),
        (["completion", "tcsh"], "bash"),
        (["quantize", "x", "--to", "q4_0", "--effort", "big"], "--effort big: unknown; known: fast, normal, high,"),
        (["quantize", "x", "--to", "q4_0", "--calibration-tokens", "0"], "--calibration-tokens 0: expected 1 or more."),
        (["quantize", "x", "--to", "q4_0", "--memory", "much"], "--memory: 'much' is not a size"),
        (["imatrix", "x", "-o", "x.gguf", "--seed", "-1"], "--seed -1: expected 0 or more."),
        (
            ["run", "reference", "-p", "a", "--kernel", "native"],
            "--kernel native: unknown; expected int8, int16, exact, torch.",
        ),
    ],
)
def test_a_wrong_call_gets_one_line(bitsmith_command: Command, words: list[str], expected: str) -> None:
    assert expected in bitsmith_command.fails(2, *words)


def test_only_the_command_at_hand_is_imported() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['bitsmith', 'bench', '--help']\n"
        "from bitsmith.cli import main\n"
        "main()\n"
        "print(sorted(name for name in sys.modules if name.startswith('bitsmith.')), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stderr
    assert "'bitsmith.cli.bench'" in modules
    assert not any(f"'bitsmith.cli.{other}'" in modules for other in ("plan", "quantize", "run", "chat", "imatrix"))
    assert "bitsmith.pipeline" not in modules


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(bitsmith_command: Command, shell: str) -> None:
    result = bitsmith_command("completion", shell)
    assert result.code == 0
    assert f"_BITSMITH_COMPLETE={shell}_complete" in result.out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("bitsmith in", "plain,inspect"), ("bitsmith quantize --calibration-t", "plain,--calibration-tokens")],
)
def test_what_is_completed(typed: str, expected: str) -> None:
    asked = {"_BITSMITH_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    command = [sys.executable, "-m", "bitsmith"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked}, check=False)
    assert done.stdout.strip() == expected
