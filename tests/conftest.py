"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.tiny import make_folder

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve the other workers
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def bitsmith_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line in process."""
    return Command(monkeypatch, capfd)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small random Llama in a Hugging Face folder."""
    return make_folder(tmp_path / "tiny")
