"""`input_activations` of compressed-tensors' configuration: how the inputs of linears are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.quant.input_rounding import InputRounding

Inputs = InputRounding | UnsupportedError | None  # the error says why the decoder cannot run it; None: not rounded

_TYPES = {"int": "int8", "float": "fp8"}


def inputs_of(folder: Path, group: Mapping[str, Any], module: str) -> tuple[Inputs, bool]:
    """How `module`, in a group of `config_groups`, rounds its input, and whether the scale is stored.

    Missing values have compressed-tensors' defaults (`QuantizationArgs`). An unsupported rounding is returned as an
    error, not raised, because the weights can still be read. Raises FileError if `input_activations` is not an object.
    """
    if group.get("output_activations") is not None:
        return _unsupported(folder, module, "rounds its outputs"), False
    args = group.get("input_activations")
    if args is None:
        return None, False
    if not isinstance(args, dict):
        raise FileError(
            f"{folder}: input_activations in quantization_config is not an object; download config.json again"
        )
    dynamic, scope = args.get("dynamic", False), _scope(args)
    type = _TYPES.get(str(args.get("type", "int")).lower())
    known = type is not None and args.get("num_bits", 8) == 8 and args.get("symmetric", True) is True
    if type is None or not known or (dynamic, scope) not in ((True, "token"), (True, "tensor"), (False, "tensor")):
        return _unsupported(folder, module, f"rounds its inputs as {_in_words(args, scope)}"), False
    return InputRounding(type, scope), dynamic is False


def _scope(args: Mapping[str, Any]) -> str:
    if args.get("strategy") is not None:
        return str(args["strategy"]).lower()
    size = args.get("group_size")
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _in_words(args: Mapping[str, Any], scope: str) -> str:
    symmetry = "" if args.get("symmetric", True) is True else "asymmetric "
    type, bits, dynamic = (str(args.get(*key))[:40] for key in (("type", "int"), ("num_bits", 8), ("dynamic", False)))
    return f"{symmetry}{type} of {bits} bits by {scope[:40]}, dynamic: {dynamic.lower()}"


def _unsupported(folder: Path, module: str, does: str) -> UnsupportedError:
    return UnsupportedError(
        f"{folder}: {module} {does}; the decoder supports only symmetric int and float of 8 bits, by token (dynamic) "
        "or by tensor. Run the folder with vLLM, or quantize it to another format with --requantize"
    )
