"""The vectors that kernels are written in, on ARM too: cross-compiled and emulated where both tools are installed.

Debian has them as g++-aarch64-linux-gnu and qemu-user. The other tests of this folder run on every instruction set of
the machine at hand.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FLAGS = {"generic": (), "dotprod": ("-march=armv8.2-a+dotprod",)}  # as csrc/compiler.cmake has them


@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="no cross compiler for ARM, or no emulator")
@pytest.mark.parametrize("isa", FLAGS)
def test_vectors_on_arm(isa: str, tmp_path: Path) -> None:
    assert COMPILER is not None
    assert EMULATOR is not None
    (tmp_path / "isas.h").write_text("#define BITSMITH_ISAS(X) X(generic) X(dotprod)\n")
    program = tmp_path / "vectors"
    strict = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-ffp-contract=off", "-static")
    includes = ("-I", str(ROOT / "csrc"), "-I", str(tmp_path))
    sources = (str(ROOT / "tests/native/vectors.cpp"), str(ROOT / "csrc/isa.cpp"))
    command = [COMPILER, *strict, *FLAGS[isa], f"-DBITSMITH_ISA={isa}", *includes, *sources, "-o", str(program)]
    subprocess.run(command, check=True)
    processors = {"max": ["generic", "dotprod"], "cortex-a53": ["generic"]}  # the second has no dot product
    if isa == "dotprod":
        del processors["cortex-a53"]
    for processor, expected in processors.items():
        done = subprocess.run([EMULATOR, "-cpu", processor, str(program)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.split("\n")[:-1]) == (0, expected), done.stdout + done.stderr
