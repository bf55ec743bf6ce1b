"""A small model whose types are chosen by a budget, in little time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitsmith.pipeline import sensitivities
from tests.tiny import make_folder


@pytest.fixture(scope="module")
def few_windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of costs of our own, and few windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sensitivities, "_WINDOWS", 8)
        patch.setattr(sensitivities, "_MEASURED_ON", 4)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("fit") / "model")
