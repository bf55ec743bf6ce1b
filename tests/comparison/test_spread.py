"""Comparisons on several workers: every figure is that of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.comparison import spread
from bitsmith.errors import UsageError
from bitsmith.scale.results import results
from bitsmith.scale.task import Graph
from bitsmith.system.folders import cache_folder
from tests.comparison.test_compare import compare


@pytest.fixture
def files(tiny: Path, tmp_path: Path) -> list[Path]:
    found = [tmp_path / "a-Q4_0.gguf", tmp_path / "b-Q8_0.gguf"]
    for path, to in zip(found, ("q4_0", "q8_0"), strict=True):
        bitsmith.quantize(tiny, to=to, out=path, threads=1)
    return found


@pytest.mark.parametrize("words", [{}, {"workers": 2}], ids=["here", "processes"])
def test_figures_are_the_same(
    tiny: Path, files: list[Path], prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any]
) -> None:
    alone = compare(tiny, *files, text=prose, context=256, threads=1, ledger=tmp_path / "one")
    monkeypatch.setattr(spread, "TASK_WINDOWS", 1)
    monkeypatch.setattr(spread, "batch_of", lambda context, vocab: 1)
    ran: list[int] = []

    def counted(graph: Graph, *rest: Any) -> Any:
        ran.append(len(graph.tasks))
        return results(graph, *rest)

    monkeypatch.setattr(spread, "results", counted)
    found = compare(
        tiny, *files, text=prose, context=256, threads=1, ledger=tmp_path / "two", executor="local", **words
    )
    assert ran[0] > 2
    assert found.original.summary == alone.original.summary
    assert [row.summary for row in found.rows] == [row.summary for row in alone.rows]
    assert not any(path.is_file() for path in (cache_folder() / "compare" / "tasks").rglob("*"))
    again = compare(tiny, *files, text=prose, context=256, threads=1, ledger=tmp_path / "two", executor="local")
    assert len(ran) == 1  # all was known
    assert again.rows[0].summary == alone.rows[0].summary


def test_scripts_cannot_measure(tiny: Path, files: list[Path]) -> None:
    with pytest.raises(UsageError, match="makes files, and measures none"):
        compare(tiny, *files, executor="slurm", workers=2)
