"""The ways to read matrices: chosen by measurement, remembered by processor, and without effect on results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.errors import UsageError
from bitsmith.runtime import reading
from bitsmith.runtime.reading import FLOATS, PACKED, best, choices_file, choose_readings
from bitsmith.system.core import core
from bitsmith.system.processor import name_in, processor_name

module = core()
needs_core = pytest.mark.skipif(module is None, reason="no C++ core")


class Matrix:
    """Stands for a matrix of the core."""

    nbytes = reading.LEAST


class Pool:
    threads = 2


class Core:
    """Stands for the core: three ways, the second of which is fastest. Counts how often it was asked."""

    readings = ((1, 2, 1), (3, 4, 1), (0, 0, 1))

    def __init__(self) -> None:
        self.asked: list[int] = []

    def reading_rates(self, matrices: list[Matrix], isa: str, pool: Pool) -> list[float]:
        self.asked.append(len(matrices))
        return [10e9, 20e9, 5e9]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BITSMITH_READING", raising=False)


def choose(known: Core, *, isa: str = "avx2", size: int = reading.LEAST) -> Any:
    matrix = Matrix()
    matrix.nbytes = size
    return choose_readings({(PACKED, "q4_k"): [matrix]}, core=known, isa=isa, pool=Pool())


def test_measured_once_then_remembered() -> None:
    known = Core()
    (first,), (second,) = choose(known), choose(known)
    assert (first.chosen, first.origin, first.layout) == (1, "measured", "q4_k")
    assert (second.chosen, second.origin, second.rates) == (1, "remembered", first.rates)
    assert known.asked == [1]


def test_another_processor_or_instruction_set_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Core()
    choose(known)
    choose(known, isa="avx512")
    monkeypatch.setattr(reading, "processor_name", lambda: "another")
    choose(known)
    assert len(known.asked) == 3
    assert len(json.loads(choices_file().read_text())) == 3


def test_matrices_of_another_size_or_layout_are_measured_anew() -> None:
    known = Core()
    for size in (reading.LEAST, reading.LEAST + 1, 2 * reading.LEAST):
        choose(known, size=size)
    assert len(known.asked) == 2
    choose_readings({(PACKED, "q6_k"): [Matrix()]}, core=known, isa="avx2", pool=Pool())
    assert len(known.asked) == 3


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"a": 1}', "[" * 5000, "null", '{"KEY": {"layout": "q4_k", "rates": [1, "x", 3]}}']
)
def test_a_damaged_file_is_measured_again(damage: str) -> None:
    known = Core()
    choose(known)
    (key,) = json.loads(choices_file().read_text())
    choices_file().write_text(damage.replace("KEY", key))
    assert choose(known)[0].origin == "measured"
    assert choose(known)[0].origin == "remembered"


def test_rates_of_a_core_with_fewer_ways_do_not_count() -> None:
    known = Core()
    choose(known)
    known.readings = known.readings[:2]  # type: ignore[assignment]
    assert choose(known)[0].origin == "measured"


def test_little_is_not_measured() -> None:
    known = Core()
    (choice,) = choose(known, size=reading.LEAST - 1)
    assert (choice.chosen, choice.origin, choice.rates) == (0, "default", ())
    assert known.asked == []
    assert not choices_file().exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert choose(Core())[0].origin == "measured"


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "bitsmith").write_text("")
    assert choose(Core())[0].origin == "measured"


def test_the_user_names_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Core()
    monkeypatch.setenv("BITSMITH_READING", "2")
    assert choose(known)[0].chosen == 2
    for wrong in ("3", "-1", "fast"):
        monkeypatch.setenv("BITSMITH_READING", wrong)
        with pytest.raises(UsageError, match="expected a number from 0 to 2"):
            choose(known)
    assert known.asked == []


def test_the_layout_with_most_bytes_is_measured() -> None:
    known = Core()
    small, large = [Matrix()], [Matrix(), Matrix()]
    found = choose_readings(
        {(PACKED, "q4_k"): small, (PACKED, "q6_k"): large, (FLOATS, "f16"): small}, core=known, isa="avx2", pool=Pool()
    )
    assert [(choice.kind, choice.layout) for choice in found] == [(PACKED, "q6_k"), (FLOATS, "f16")]


def test_scatter_chooses_nothing() -> None:
    assert best((100.0, 104.0, 90.0)) == 0
    assert best((100.0, 106.0, 107.0)) == 2


def test_names_of_processors() -> None:
    text = "processor : 0\nmodel name : Some CPU\ncpu family : 6\nmodel : 5\n\nprocessor : 1\nmodel name : Other\n"
    assert name_in(text) == "Some CPU (cpu family 6, model 5)"
    assert name_in("CPU implementer : 0x41\nCPU part : 0xd40\n") == "CPU implementer 0x41, CPU part 0xd40"
    assert name_in("nothing") == ""
    assert processor_name()


@needs_core
@pytest.mark.parametrize("layout", ["q4_k", "q6_k", "nf4_64", "f16"])
def test_the_core_measures_every_way(layout: str) -> None:
    assert module is not None
    pool = module.Pool(2)
    matrix = module.Matrix(layout, 96, 512)
    matrix.fill(0, 96, np.zeros(matrix.nbytes, np.uint8), pool)
    rates = module.reading_rates([matrix], module.isa(), pool)
    assert len(rates) == len(module.readings)
    assert all(0 < rate < 1e15 for rate in rates)
