"""Folders in bitsandbytes' layouts, which transformers writes and loads with `load_in_4bit` and `load_in_8bit`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.bnb_codecs import (
    DTYPES,
    NESTED_ABSMAX,
    STATE,
    TABLES,
    WEIGHT,
    FourBitCodec,
    RowInt8Codec,
)
from bitsmith.containers.bounded_json import parse_json
from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.container import ModuleContainer, Modules, Scheme
from bitsmith.containers.hf_entries import entry_of, matrix_shape, modules
from bitsmith.containers.model_files import open_regular
from bitsmith.containers.module_lists import beginnings_or_ends
from bitsmith.containers.safetensors_header import DTYPES as STORED
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.fourbit import BLOCKS, FourBit
from bitsmith.quant.formats.nested import NESTED_BLOCK, Nested
from bitsmith.quant.formats.rowabsmax import RowAbsmax
from bitsmith.quant.input_rounding import LLM_INT8, THRESHOLD, InputRounding
from bitsmith.quant.tensor import TensorInfo

_READ_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # numbers of weights that bitsandbytes knows
_MOST_STATE = 1 << 12  # bytes of a state; bitsandbytes writes about 200
_FOUR = Scheme("nf4", 4, optional_zeros=False, groups=BLOCKS, known_groups=_READ_BLOCKS)
SCHEMES = {
    "nf4": _FOUR,
    "fp4": replace(_FOUR, kind="fp4"),
    "nf4-dq": replace(_FOUR, kind="nf4-dq"),
    "fp4-dq": replace(_FOUR, kind="fp4-dq"),
    "int8": Scheme("int8", 8, 0, grouped=False, optional_zeros=False, inputs=LLM_INT8),
}
Codec = FourBitCodec | RowInt8Codec


def _stored(scheme: Scheme, precision: str, version: int) -> tuple[Format, Codec]:
    if scheme.kind == "int8":
        return RowAbsmax(), RowInt8Codec()
    plain = TABLES[scheme.kind[:3]](scheme.group or BLOCKS[0])
    format: FourBit | Nested = Nested(plain) if scheme.kind.endswith("-dq") else plain
    return format, FourBitCodec(format, precision=precision)


def bnb_codec(format: Format) -> Codec | None:
    """The codec of NF4, FP4 and row-wise int8; None for other formats."""
    if isinstance(format, RowAbsmax):
        return RowInt8Codec(format)
    return FourBitCodec(format) if isinstance(format, FourBit | Nested) else None


def _configuration(modules: Modules) -> dict[str, Any]:
    """`quantization_config` as transformers' BitsAndBytesConfig writes it."""
    kind = modules.main.kind
    four = kind != "int8"
    return {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kind[:3] if four else "fp4",
        "bnb_4bit_use_double_quant": kind.endswith("-dq"),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(modules.kept),
        "llm_int8_threshold": THRESHOLD,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }


def _read(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    for kind in TABLES:
        for module in modules(entries, f".{STATE}{kind}"):
            yield _four_bits(folder, entries, module, kind)
    rounding = _threshold(folder, config)
    for module in modules(entries, ".SCB"):
        yield _eight_bits(folder, entries, module, rounding)


def _four_bits(folder: Path, entries: Entries, module: str, kind: str) -> CompositeTensor:
    """One weight of 4 bits. Raises FileError if its state contradicts its entries."""
    path, entry = entries[f"{module}.{STATE}{kind}"]
    state = _state(path, entry.name, entry.offset, entry.nbytes)

    def wrong(what: str) -> FileError:
        return FileError(f"{path}: {entry.name}: {what}; the file is damaged: make it again")

    shape, block = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise wrong(f"shape is {str(shape)[:60]}, expected [rows, columns]")
    if type(block) is not int or block not in _READ_BLOCKS:
        raise wrong(f"blocksize is {str(block)[:40]}, known are {', '.join(map(str, _READ_BLOCKS))}")
    if state.get("quant_type") != kind:
        raise wrong(f"quant_type is {str(state.get('quant_type'))[:40]}, but the entry's name says {kind}")
    precision = next((name for name, dtype in DTYPES.items() if dtype == state.get("dtype")), None)
    if precision is None:
        raise wrong(f"dtype is {str(state.get('dtype'))[:40]}, known are {', '.join(DTYPES.values())}")
    weight = entry_of(folder, entries, f"{module}.{WEIGHT}")
    storage = STORED[weight.dtype]
    unit = 2 * storage.itemsize
    if -(-math.prod(shape) // unit) != math.prod(weight.shape):
        raise wrong(
            f"it says the weight is {shape}, {math.prod(shape):,} codes, but {module}.{WEIGHT} holds "
            f"{math.prod(weight.shape) * unit:,}"
        )
    plain = TABLES[kind](block)
    nested = f"{module}.{NESTED_ABSMAX}" in entries
    if nested:
        _check_nested(state, wrong)
    codec = FourBitCodec(
        Nested(plain) if nested else plain, (shape[0], shape[1]), precision, storage, state_bytes=entry.nbytes
    )
    info = TensorInfo(f"{module}.weight", (shape[0], shape[1]), codec.name, 0)
    names = {part: f"{module}.{part}" for part in codec.layout(info.shape)}
    return fold(folder, codec, info, names, entries, said_by=f"{entry.name}")


def _check_nested(state: Mapping[str, Any], wrong: Any) -> None:
    offset = state.get("nested_offset")
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise wrong(f"nested_offset is {str(offset)[:40]}, expected a number")
    if state.get("nested_dtype") != "float32":
        raise wrong(f"nested_dtype is {str(state.get('nested_dtype'))[:40]}, known is float32")
    if state.get("nested_blocksize") != NESTED_BLOCK:
        raise wrong(f"nested_blocksize is {str(state.get('nested_blocksize'))[:40]}, known is {NESTED_BLOCK}")


def _state(path: Path, name: str, offset: int, nbytes: int) -> Mapping[str, Any]:
    """The JSON of a state. Raises FileError if it is too long or no object."""
    if nbytes > _MOST_STATE:
        raise FileError(
            f"{path}: {name} has {nbytes:,} bytes; states have at most {_MOST_STATE:,}: the file is damaged"
        )
    with open(open_regular(path), "rb") as file:
        file.seek(offset)
        found = parse_json(file.read(nbytes), f"{path}: {name}")
    if not isinstance(found, dict):
        raise FileError(f"{path}: {name} is not a JSON object; the file is damaged: make it again")
    return found


def _threshold(folder: Path, config: Mapping[str, Any]) -> InputRounding:
    """How layers of 8 bits round their inputs."""
    value = config.get("llm_int8_threshold", THRESHOLD)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise FileError(f"{folder}: quantization_config has llm_int8_threshold {str(value)[:40]}; expected a number")
    return InputRounding(LLM_INT8, "token", threshold=float(value))


def _eight_bits(folder: Path, entries: Entries, module: str, rounding: InputRounding) -> CompositeTensor:
    shape = matrix_shape(folder, entries, f"{module}.weight")
    dtype = entry_of(folder, entries, f"{module}.weight").dtype
    if STORED[dtype] != np.dtype("i1"):
        raise UnsupportedError(
            f"{folder}: {module}.weight is {dtype} although it has scales in SCB; only I8 is read. Load the model with "
            "bitsandbytes and save it again"
        )
    codec = RowInt8Codec()
    names = {part: f"{module}.{part}" for part in codec.layout(shape)}
    if names["weight_format"] not in entries:
        raise FileError(f"{folder}: entry {names['weight_format']} is missing; the file is damaged: download it again")
    info = TensorInfo(f"{module}.weight", shape, codec.name, 0)
    found = fold(folder, codec, info, names, entries, said_by="its SCB")
    return replace(found, inputs=rounding)


CONTAINER = ModuleContainer(
    name="bnb",
    codec=bnb_codec,
    runtimes=frozenset({"transformers"}),
    schemes=SCHEMES,
    stored=_stored,
    configuration=_configuration,
    quant_method="bitsandbytes",
    marks=(".SCB", *(f".{STATE}{kind}" for kind in TABLES)),
    mixed=False,
    linears_only=True,
    kept_list=lambda config: config["llm_int8_skip_modules"],
    skipped_by=beginnings_or_ends,
    read=_read,
)
