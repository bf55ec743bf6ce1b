"""Containers: where the bytes go. One visible table.

A new container is one file with a `Container` or a `ModuleContainer` called CONTAINER, and one row here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bitsmith.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from bitsmith.containers.base import Codec
    from bitsmith.containers.container import Container, ModuleContainer
    from bitsmith.quant.formats.base import Format

CONTAINERS: dict[str, str] = {  # name -> its module, imported when first used
    "gguf": "bitsmith.containers.gguf.blocks",
    "native": "bitsmith.containers.native",
    "gptq": "bitsmith.containers.gptq",
    "awq": "bitsmith.containers.awq",
    "compressed": "bitsmith.containers.compressed",
    "bnb": "bitsmith.containers.bnb",
    "mlx": "bitsmith.containers.mlx",
    "modelopt": "bitsmith.containers.modelopt",
}


def find_container(name: str) -> Container:
    """The container of that name. Raises UsageError if the name is unknown."""
    if name not in CONTAINERS:
        raise UsageError(f"{name!r} is not a container; known: {', '.join(CONTAINERS)}")
    found: Container = vars(import_module(CONTAINERS[name]))["CONTAINER"]
    return found


def module_containers() -> dict[str, ModuleContainer]:
    """The containers that store linear layers in schemes, by name."""
    from bitsmith.containers.container import ModuleContainer

    found = {name: find_container(name) for name in CONTAINERS}
    return {name: each for name, each in found.items() if isinstance(each, ModuleContainer)}


def codec_for(container: str, format: Format) -> Codec:
    """The codec of `format` in `container`.

    Raises UsageError for an unknown container, UnsupportedError if the container cannot hold the format.
    """
    row = find_container(container)
    codec = row.codec(format)
    if codec is None:
        from bitsmith.quant.formats import FORMATS

        held = [name for name, other in FORMATS.items() if row.codec(other) is not None]
        raise UnsupportedError(
            f"the {container} container cannot hold {format.name}; it holds {', '.join(held)}. Choose one of them, or "
            f"write --to=native/{format.name}"
        )
    return codec
