"""The core's own functions, apart from its kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bitsmith.system import core as cpp

core = cpp.core()
pytestmark = pytest.mark.skipif(core is None, reason=str(cpp.missing()))


def test_instruction_sets() -> None:
    assert core is not None
    assert core.isas()[0] == "generic"
    assert core.isa() in core.isas()


def test_an_unknown_instruction_set_is_refused() -> None:
    code = "from bitsmith.system import core as cpp; cpp.core().isa()"
    environment = os.environ | {"BITSMITH_ISA": "z80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "z80" in done.stderr
    assert "generic" in done.stderr


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", [0, 1 << 20, (5 << 20) + 3])
def test_bandwidth(threads: int, size: int) -> None:
    assert core is not None
    assert core.read_bandwidth(threads, size, 3) > 0
