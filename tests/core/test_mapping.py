"""A mapped file that another program cuts short: an error with its name, not the end of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import FileError
from bitsmith.system.core import core

module = core()
pytestmark = pytest.mark.skipif(module is None, reason="this installation has no C++ core")
PAGE = os.sysconf("SC_PAGESIZE")


def test_bytes_and_what_is_lost(tmp_path: Path) -> None:
    assert module is not None
    path = tmp_path / "data"
    content = np.random.default_rng(0).integers(1, 256, 4 * PAGE + 100, np.uint8)
    path.write_bytes(content.tobytes())
    with path.open("rb") as file:
        mapping = module.Mapping(file.fileno(), content.size)
    data = mapping.data
    assert np.array_equal(data, content)
    assert not mapping.lost
    os.truncate(path, PAGE + 1)
    assert data[0] == content[0]
    assert not mapping.lost
    assert not data[2 * PAGE :].any()
    assert mapping.lost
    del mapping
    assert data[0] == content[0]  # the array keeps the file mapped


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    assert module is not None
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "empty").open("rb") as file, pytest.raises(RuntimeError, match="cannot be mapped"):
        module.Mapping(file.fileno(), 0)


def test_a_running_model_whose_file_is_cut(tiny: Path) -> None:
    model = bitsmith.load(tiny, threads=2)
    assert model.generate("Once", max_tokens=2)
    weights = tiny / "model.safetensors"
    os.truncate(weights, 2 * PAGE)
    with pytest.raises(FileError, match=r"model\.safetensors lost bytes while the model was running"):
        model.generate("Once upon", max_tokens=2)


def test_a_bus_error_elsewhere_still_ends_the_process(tmp_path: Path) -> None:
    """The handler passes on what is not its own."""
    code = (
        "import mmap, os\n"
        "from bitsmith.system.core import core\n"
        f"path = {str(tmp_path / 'data')!r}\n"
        "open(path, 'wb').write(bytes(1 << 16))\n"
        "file = open(path, 'rb')\n"
        "mapping = core().Mapping(file.fileno(), 1 << 16)\n"
        "other = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "os.truncate(path, 0)\n"
        "print(mapping.data[5000], mapping.lost, flush=True)\n"
        "print(other[5000])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "True"]
    assert done.returncode == -signal.SIGBUS
