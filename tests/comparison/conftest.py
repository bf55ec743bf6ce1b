"""A folder of its own for what `compare` keeps, a small model, and a text of paragraphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitsmith.reference.texts import calibration_text, evaluation_text


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """About 2,000 tokens in short paragraphs."""
    path = tmp_path / "prose.txt"
    path.write_text(evaluation_text()[:8000], encoding="utf-8")
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another text, which shares nothing with the first."""
    path = tmp_path / "other.txt"
    path.write_text(calibration_text()[:6000], encoding="utf-8")
    return path
