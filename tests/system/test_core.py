"""The C++ core may be missing: that is said once, and nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitsmith.system import core as cpp

WITHOUT = (
    "import sys; sys.modules['bitsmith.system._core'] = None; "  # an import of it then fails as if it were not there
)
CLI = "from bitsmith.cli import main; main()"


def run(code: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {name: value for name, value in os.environ.items() if name != "BITSMITH_CORE"} | environment
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)


def test_a_missing_core_is_noted_once_beside_clean_output(tiny: Path, tmp_path: Path) -> None:
    words = ("quantize", tiny, "--to", "q8_0", "--json", "--force", "--out", tmp_path / "x.gguf")
    done = run(WITHOUT + CLI, *words)
    assert done.returncode == 0
    assert json.loads(done.stdout)["written"]
    (note,) = done.stderr.splitlines()
    assert note.startswith("Note: ")
    assert "C++ core" in note
    assert "pip install" in note
    silent = run(CLI, *words, BITSMITH_CORE="0")
    assert (silent.returncode, silent.stderr) == (0, "")


def test_turned_off() -> None:
    done = run("from bitsmith.system import core as cpp; print(cpp.core(), cpp.missing())", BITSMITH_CORE="0")
    assert done.stdout.startswith("None ")
    assert "BITSMITH_CORE=0" in done.stdout
    done = run("from bitsmith.system import core; print(core.install_hint())", BITSMITH_CORE="0")
    assert "unset" in done.stdout


def test_a_build_named_by_its_path() -> None:
    core = cpp.core()
    if core is None:
        pytest.skip("no C++ core here")
    show = "from bitsmith.system import core as cpp; core = cpp.core(); import bitsmith.system._core; "
    show += "print(core.__file__)"
    assert run(show, BITSMITH_CORE=str(core.__file__)).stdout.strip() == core.__file__


def test_a_path_that_is_no_core(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "core.so"
    path.write_bytes(b"no library")
    done = run(CLI, "quantize", tiny, "--to", "q8_0", "--out", tmp_path / "x.gguf", BITSMITH_CORE=str(path))
    assert done.returncode == 2
    assert "BITSMITH_CORE" in done.stderr
    assert "Traceback" not in done.stderr
