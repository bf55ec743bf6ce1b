"""Containers: where the bytes go. `codec_for` says which codec puts a format into a container."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bitsmith.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from bitsmith.containers.base import Codec
    from bitsmith.quant.formats.base import Format


def codec_for(container: str, format: Format) -> Codec:
    """The codec of `format` in `container` ("gguf", "native", "gptq", "awq", "compressed").

    Raises UsageError for an unknown container, UnsupportedError where the container cannot hold the format.
    """
    if container not in CONTAINERS:
        raise UsageError(f"{container!r} is no container; known are {', '.join(CONTAINERS)}")
    codec = CONTAINERS[container](format)
    if codec is None:
        from bitsmith.quant.formats import FORMATS

        held = [name for name, other in FORMATS.items() if CONTAINERS[container](other) is not None]
        raise UnsupportedError(
            f"the {container} container cannot hold {format.name}; it holds {', '.join(held)}. Choose one of them, or "
            f"write --to native/{format.name}"
        )
    return codec


def _native(format: Format) -> Codec | None:
    from bitsmith.containers.native import NativeCodec

    return NativeCodec(format)


def _gguf(format: Format) -> Codec | None:
    from bitsmith.containers.gguf.blocks import CODECS

    return CODECS.get(format.name)


def _gptq(format: Format) -> Codec | None:
    from bitsmith.containers.gptq import gptq_codec

    return gptq_codec(format)


def _awq(format: Format) -> Codec | None:
    from bitsmith.containers.awq import awq_codec

    return awq_codec(format)


def _compressed(format: Format) -> Codec | None:
    from bitsmith.containers.compressed import compressed_codec

    return compressed_codec(format)


CONTAINERS: Mapping[str, Callable[[Format], Codec | None]] = {
    "gguf": _gguf,
    "native": _native,
    "gptq": _gptq,
    "awq": _awq,
    "compressed": _compressed,
}
