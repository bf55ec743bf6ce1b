"""How the matrices of a gptq, awq or compressed folder are quantized: names read, options applied, formats made."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bitsmith.containers.awq import AwqCodec
from bitsmith.containers.base import Codec
from bitsmith.containers.compressed import FloatCodec, IntegerCodec, PackedCodec
from bitsmith.containers.gptq import GptqCodec
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import UsageError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.input_rounding import InputRounding

GROUPS = (128, 64, 32)  # tried in this order where nobody chose one


@dataclass(frozen=True)
class Scheme:
    """One way to store a matrix.

    kind: of codec: "gptq", "awq", "packed", "integer", "float"
    group: weights that share a scale; 0: a whole row; None: the largest of 128, 64, 32 that divides every row
    scope: of a float's scale: "channel" or "tensor"
    inputs: of "integer" and "float": "dynamic", a scale a token found as it runs, or "static", one stored a tensor
    """

    kind: str
    bits: int
    group: int | None = None
    asymmetric: bool = False
    scope: str = "channel"
    inputs: str = "dynamic"

    @property
    def input_rounding(self) -> InputRounding | None:
        """How readers round the inputs; a stored scale is not known yet."""
        if self.kind not in ("integer", "float"):
            return None
        return InputRounding(
            "fp8" if self.kind == "float" else "int8", "tensor" if self.inputs == "static" else "token"
        )

    @property
    def legacy(self) -> bool:
        """Whether GPTQ's first checkpoint format can hold it, and readers of that format take it."""
        return self.bits in (4, 8) and not self.asymmetric


_SCHEMES: dict[str, dict[str, Scheme]] = {
    "gptq": {f"int{bits}": Scheme("gptq", bits) for bits in (8, 4, 3, 2)},
    "awq": {"int4": Scheme("awq", 4, asymmetric=True)},
    "compressed": {
        "w4a16": Scheme("packed", 4),
        "w8a16": Scheme("packed", 8),
        "w8a8": Scheme("integer", 8, 0),
        "fp8": Scheme("float", 8, 0),
        "fp8-tensor": Scheme("float", 8, 0, scope="tensor"),
        "w8a8-static": Scheme("integer", 8, 0, inputs="static"),
        "fp8-static": Scheme("float", 8, 0, inputs="static"),
        "fp8-tensor-static": Scheme("float", 8, 0, scope="tensor", inputs="static"),
    },
}
_SUFFIX = re.compile(r"-(g[1-9]\d{0,5}|channel|asym|sym)$")


def names(container: str) -> tuple[str, ...]:
    """The schemes of a container, without suffixes."""
    return tuple(_SCHEMES[container])


def parse(container: str, text: str) -> Scheme:
    """Read "int4", "int4-g64-asym", "w8a16-channel". Raises UsageError for a name that the container has not."""
    base, group, asymmetric = text.strip().lower(), None, None
    while base not in _SCHEMES[container] and (match := _SUFFIX.search(base)):
        base, suffix = base[: match.start()], match[1]
        if suffix in ("asym", "sym") and asymmetric is None:
            asymmetric = suffix == "asym"
        elif group is None and suffix not in ("asym", "sym"):
            group = 0 if suffix == "channel" else int(suffix[1:])
        else:
            base = ""  # the same said twice
    if base not in _SCHEMES[container]:
        raise UsageError(
            f"{text!r} is nothing that {container} holds; it holds {', '.join(names(container))}"
            + (", with -g128, -channel and the like, and -asym where it has groups." if base else ".")
        )
    return adjusted(container, base, _SCHEMES[container][base], group, asymmetric)


def adjusted(container: str, name: str, scheme: Scheme, group: int | None, asymmetric: bool | None) -> Scheme:
    """The scheme with another group size (0: whole rows) or symmetry. Raises UsageError where it has no choice."""
    if group is not None:
        if scheme.kind in ("integer", "float") and group != scheme.group:
            raise UsageError(f"{container}/{name} has one scale a row or a tensor, no groups; leave out --group-size.")
        if scheme.group is not None and scheme.kind not in ("integer", "float") and group != scheme.group:
            raise UsageError(f"{container}/{name} and --group-size contradict each other; say it once.")
        scheme = replace(scheme, group=group)
    if asymmetric is not None and asymmetric != scheme.asymmetric:
        if scheme.kind not in ("gptq", "packed"):
            held = "always has" if scheme.asymmetric else "has no"
            raise UsageError(f"{container}/{name} {held} zero points; leave out {'--a' if asymmetric else '--'}sym.")
        scheme = replace(scheme, asymmetric=asymmetric)
    return scheme


def format_and_codec(scheme: Scheme, precision: str, *, legacy: bool) -> tuple[Format, Codec, str]:
    """Format, codec and layout name of a scheme whose group is known.

    precision: of scales, where the container takes the model's own: "bf16" or "f16"
    legacy: GPTQ's first checkpoint format
    """
    if scheme.kind == "float":
        row = fp8(precision)
        wide = TensorWide(f"{row.name}-tensor", row) if scheme.scope == "tensor" else row
        floating = _with_input(scheme, FloatCodec(wide), precision)
        return wide, floating, floating.name
    fixed = "f16" if scheme.kind in ("gptq", "awq") else precision
    format = Affine(scheme.bits, scheme.group or 0, scheme.asymmetric, fixed)
    codec: GptqCodec | AwqCodec | PackedCodec | IntegerCodec | FloatCodec | StaticInput
    if scheme.kind == "gptq":
        codec = GptqCodec(format, int(legacy))
    elif scheme.kind == "integer":
        codec = _with_input(scheme, IntegerCodec(format), precision)
    else:
        codec = {"awq": AwqCodec, "packed": PackedCodec}[scheme.kind](format)
    return format, codec, codec.name


def _with_input(
    scheme: Scheme, codec: IntegerCodec | FloatCodec, precision: str
) -> IntegerCodec | FloatCodec | StaticInput:
    if scheme.inputs != "static":
        return codec
    assert scheme.input_rounding is not None
    return StaticInput(codec, scheme.input_rounding, precision)
