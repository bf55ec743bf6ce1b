"""Runs that are killed and started again: the result has the same bytes as that of a run without a break."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_folder
from tests.work.killing import start


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def continued(words: list[str], each: int) -> tuple[int, str]:
    """Kill a run again and again after `each` states, until one ends. Returns how often, and what the last one said."""
    for kills in range(100):
        done = start(words, at=each)
        if done.returncode == 0:
            return kills, done.stderr
        assert done.returncode == -9, done.stderr
    raise AssertionError("no run came to its end")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose larger tensors are several chunks."""
    return make_folder(
        tmp_path_factory.mktemp("resume") / "model", hidden_size=256, intermediate_size=4096, num_hidden_layers=2
    )


PLAIN = [
    ["quantize", "--to", "q4_k_m", "--threads", "1"],
    ["quantize", "--to", "gptq/int4", "--method", "nearest", "--threads", "2"],
    ["convert", "--to", "gguf/f16"],
]


@pytest.mark.parametrize("words", PLAIN, ids=lambda words: "-".join(words[:3]))
def test_a_plain_run_goes_on_where_it_was_killed(words: list[str], model: Path, tmp_path: Path) -> None:
    command, *options = words
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    whole = start([command, model, *options, "--out", one / "out.gguf"], at=0)
    assert whole.returncode == 0, whole.stderr
    kills, said = continued([command, str(model), *options, "--out", str(many / "out.gguf")], 8)
    assert kills > 1
    assert "continuing an interrupted run after" in said
    assert tree(many) == tree(one)
