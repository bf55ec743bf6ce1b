"""The options of `quantize` and `imatrix` as keywords of the library: typed, checked, and refused by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.calibration.config import ImatrixConfig
from bitsmith.cli.chat import ChatOptions
from bitsmith.cli.command import GROUPS
from bitsmith.cli.options import LoadingOptions
from bitsmith.cli.run import RunOptions
from bitsmith.comparison.config import CompareConfig
from bitsmith.errors import UsageError
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.convert_config import ConvertConfig
from bitsmith.runtime.sampling import Sampling
from bitsmith.system.machine import cores
from bitsmith.system.options import options_of

ROOT = Path(bitsmith.__file__).parent.parent


@pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="needs the sources")
def test_the_typed_keywords_are_those_of_the_options(tmp_path: Path) -> None:
    script = ROOT / "bench" / "freeze_words.py"
    subprocess.run([sys.executable, str(script), "--root", str(tmp_path)], check=True)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")]
    assert len(written) == 8
    for path in written:
        assert (ROOT / path).read_text() == (tmp_path / path).read_text(), "run python bench/freeze_words.py"


@pytest.mark.parametrize(
    "config",
    [QuantizeConfig, ConvertConfig, ImatrixConfig, CompareConfig, Sampling, RunOptions, ChatOptions, LoadingOptions],
)
def test_every_field_is_an_option_with_help_and_group(config: type[Any]) -> None:
    options = list(options_of(config))
    assert {option.name for option in options} == {field.name for field in fields(config)}
    assert len(options) == len(fields(config))
    for option in options:
        assert option.help.endswith(".")
        assert option.group in GROUPS


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        QuantizeConfig().seed = 1  # type: ignore[misc]


def test_an_unknown_keyword_is_named() -> None:
    words: dict[str, Any] = {"methd": "gptq"}
    with pytest.raises(TypeError, match=r"quantize\(\) got an unexpected keyword argument 'methd'. Did you mean 'meth"):
        bitsmith.quantize("reference", to="q8_0", **words)
    with pytest.raises(TypeError, match=r"imatrix\(\) got an unexpected keyword argument 'zzz'$"):
        bitsmith.imatrix("reference", out="x.gguf", zzz=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"imatrix\(\) missing 1 required keyword-only argument: 'out'"):
        bitsmith.imatrix("reference")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"method": "magic"}, 'method="magic": unknown; known: nearest, gptq'),
        ({"effort": "big"}, 'effort="big": unknown; known: fast, normal, high, max'),
        ({"threads": 0}, "threads=0: expected 1 to 1024"),
        ({"threads": 1025}, "threads=1025"),
        ({"memory": "much"}, "memory=: 'much' is not a size"),
        ({"max_shard_size": "0GB"}, "max_shard_size=: '0GB': a size must be above zero"),
        ({"calibration_tokens": 0}, "calibration_tokens=0: expected 1 or more"),
        ({"calibration_context": -1}, "calibration_context=-1: expected 1 or more"),
        ({"seed": -1}, "seed=-1: expected 0 or more"),
        ({"rules": "ffn=q4_0"}, "expected a list of strings"),
    ],
)
def test_values_are_checked_when_a_configuration_is_made(words: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        QuantizeConfig(**words)
    assert expected in str(caught.value)


def test_what_follows_from_the_options() -> None:
    assert (QuantizeConfig().worker_threads, QuantizeConfig(threads=3).worker_threads) == (cores(), 3)
    assert (QuantizeConfig().memory_bytes, QuantizeConfig(memory="4GB").memory_bytes) == (None, 4 * 10**9)
    sources = [
        QuantizeConfig(**words).calibration_sources  # type: ignore[arg-type]
        for words in ({}, {"effort": "fast"}, {"effort": "high"}, {"method": "gptq"}, {"calibration": "self"})
    ]
    assert sources == [(), ("default",), ("default",), ("default",), ("self",)]
