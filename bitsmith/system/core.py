"""The C++ core, if this installation has it.

The environment variable BITSMITH_CORE can be 0 to turn the core off, or the path of another build of it (such as the
build of `make sanitize`).
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from bitsmith.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType


@cache
def core() -> ModuleType | None:
    """The extension module; None if it was not built, cannot be loaded, or is turned off by BITSMITH_CORE=0.

    Raises UsageError if BITSMITH_CORE names a build that cannot be loaded, or BITSMITH_ISA an instruction set that
    this processor lacks.
    """
    return _loaded()[0]


def missing() -> str | None:
    """Why there is no core, for a note to the user; None if there is one."""
    return _loaded()[1]


def install_hint() -> str:
    """What the user does to have a core that is missing, for the same note."""
    if os.environ.get("BITSMITH_CORE") == "0":
        return "to have it, unset BITSMITH_CORE."
    if sys.platform == "win32":
        return "to have it, use bitsmith on Linux, WSL or macOS."
    # csrc/compiler.cmake and pyproject.toml name the same compilers; pip's -v shows why a build fails
    return (
        "to have it, install GCC 9, Clang 11 or newer, then run in bitsmith's source folder: "
        "pip install -v --force-reinstall --no-deps --no-cache-dir ."
    )


@cache
def _loaded() -> tuple[ModuleType | None, str | None]:
    wanted = os.environ.get("BITSMITH_CORE", "")
    if wanted == "0":
        return None, "the C++ core is turned off (BITSMITH_CORE=0)"
    if wanted not in ("", "1"):
        return _checked(_load(wanted)), None
    try:
        return _checked(import_module("bitsmith.system._core")), None
    except ModuleNotFoundError:
        return None, "this installation has no C++ core"
    except ImportError as error:
        return None, f"the C++ core cannot be loaded ({error})"


def _checked(module: ModuleType) -> ModuleType:
    """Return the core. Raises UsageError if BITSMITH_ISA names an instruction set that this processor lacks."""
    try:
        module.isa()
    except ValueError as error:
        raise UsageError(f"BITSMITH_ISA={os.environ.get('BITSMITH_ISA')}: {error}") from None
    return module


def _load(path: str) -> ModuleType:
    """Load the build of the core at `path` as the module `bitsmith.system._core`."""
    from importlib.machinery import ExtensionFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    name = "bitsmith.system._core"
    spec = spec_from_file_location(name, path, loader=ExtensionFileLoader(name, path))
    assert spec is not None
    assert spec.loader is not None
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UsageError(f"BITSMITH_CORE={path}: expected 0, or a build of bitsmith's core; {error}.") from error
    sys.modules[name] = module
    return module
