"""One tensor in GPTQ's layout, which AutoGPTQ, GPTQModel, transformers and vLLM read.

A weight [out, in] of b-bit codes in groups along its rows becomes (AutoGPTQ, `qlinear`):

- qweight int32 [in * b / 32, out]: the codes of each row, packed downwards, the first in the lowest bits
- qzeros int32 [groups, out * b / 32]: zero points, packed along the outputs
- scales float16 [groups, out]
- g_idx int32 [in]: the group of each input; out of order if columns were quantized in activation order

value = scale * (code - zero). Checkpoint format v1 ("gptq") stores zero - 1, so it cannot store a zero point of 0;
v2 ("gptq_v2") stores zero. Symmetric weights have the zero point 2^(b-1).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.base import RowAxis, cut, join_slabs
from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.container import ModuleContainer, Modules, Scheme
from bitsmith.containers.fused import fused_schemes
from bitsmith.containers.hf_entries import group_size, known_integer, matrix_shape, modules, precision_of
from bitsmith.containers.integers import WORD, checked_scale, layout_name, pack_words, unpack_words, word_count
from bitsmith.containers.name_patterns import first_matches
from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.tensor import QuantTensor, TensorInfo
from bitsmith.version import __version__

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GptqCodec:
    """Codes and parameters of integers in groups <-> GPTQ's parts.

    zero_shift: number subtracted from a stored zero point: 1 in v1 files, 0 in v2
    indexed: whether there is a g_idx
    """

    format: Affine
    zero_shift: int = 1
    indexed: bool = True

    @property
    def name(self) -> str:
        """The layout's name: "gptq/int4-g128", followed by "-v2" and "-noindex" if they apply."""
        version = "" if self.zero_shift else "v2"
        return layout_name("gptq", self.format, "f16", version, "" if self.indexed else "noindex")

    @property
    def row_multiple(self) -> int:
        """Number of rows whose zero points fill whole words, for all bit widths."""
        return 32

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Outputs lie along the second axis of all parts except g_idx."""
        axes: dict[str, RowAxis | None] = {
            "qweight": RowAxis(1),
            "qzeros": RowAxis(1, 32, self.format.bits),
            "scales": RowAxis(1),
        }
        return axes | ({"g_idx": None} if self.indexed else {})

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part of a weight [out, in].

        Raises UnsupportedError if the weight is not a matrix or its codes do not fill words.
        """
        if len(shape) != 2:
            raise UnsupportedError(f"GPTQ's layout holds matrices, not {len(shape)} dimensions; leave it in f16")
        rows, cols = shape
        bits, fill = self.format.bits, 32 if self.format.bits == 3 else 32 // self.format.bits
        if rows % fill or cols % fill or not rows:
            raise UnsupportedError(
                f"GPTQ's layout of {bits} bits needs rows and columns that divide by {fill}; this is "
                f"[{rows}, {cols}]: leave the tensor in f16"
            )
        (_, groups), scale_dtype = self.format.params_layout(rows, cols)["scale"]
        parts = {
            "qweight": ((word_count(cols, bits), rows), WORD),
            "qzeros": ((groups, word_count(rows, bits)), WORD),
            "scales": ((groups, rows), scale_dtype),
        }
        return parts | ({"g_idx": ((cols,), WORD)} if self.indexed else {})

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows; zero points are padded to whole words.

        Raises TensorError for a zero point that the version cannot store.
        """
        codes = as_numpy(tensor.codes)
        scale = as_numpy(tensor.params["scale"])
        zeros = self._zeros(tensor, scale.shape) - self.zero_shift
        if zeros.size and zeros.min() < 0:
            raise TensorError(
                "a zero point of 0 cannot be stored in checkpoint format v1, which stores zero - 1; write v2"
            )
        parts = {
            "qweight": np.ascontiguousarray(pack_words(codes, self.format.bits).T),
            "qzeros": pack_words(zeros.astype(np.uint8).T, self.format.bits),
            "scales": checked_scale(scale.T, self.format.scale_dtype),
        }
        return parts | ({"g_idx": self._in_order(codes.shape[1])} if self.indexed else {})

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows.

        Columns in activation order are returned as groups of one, each with the parameters of its group.
        Raises TensorError for groups that do not exist and for zero points that contradict the configuration.
        """
        scale = np.ascontiguousarray(parts["scales"].T)
        rows, groups = scale.shape
        bits = self.format.bits
        codes = unpack_words(parts["qweight"].T, bits, cols)
        zeros = unpack_words(parts["qzeros"], bits, rows).T.astype(np.int16) + self.zero_shift
        if zeros.size and zeros.max() > 255:
            raise TensorError("a zero point of 256 does not fit 8 bits; the file is damaged: make it again")
        if not self.format.asymmetric and (zeros != 1 << (bits - 1)).any():
            raise TensorError(
                f'the configuration says "sym": true, so zero points should be {1 << (bits - 1)}, but qzeros holds '
                f"{int(zeros[zeros != 1 << (bits - 1)][0])}; correct sym or checkpoint_format in the configuration"
            )
        index = parts.get("g_idx")
        if index is None or np.array_equal(index, self._in_order(cols)):
            params = {"scale": scale}
            return QuantTensor(self.format, codes, self._with_zeros(params, zeros))
        if index.min() < 0 or index.max() >= groups:
            raise TensorError(
                f"g_idx names group {int(index.min() if index.min() < 0 else index.max())}, but there are {groups}; "
                "the file is damaged: download it again"
            )
        single = Affine(bits, 1, self.format.asymmetric, self._precision)
        return QuantTensor(single, codes, self._with_zeros({"scale": scale[:, index]}, zeros[:, index]))

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return join_slabs(self, slabs)

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        zeros = unpack_words(parts["qzeros"], self.format.bits, parts["scales"].shape[1])
        cuts = {name: cut(parts[name], 1, start, stop) for name in ("qweight", "scales")}
        cuts["qzeros"] = pack_words(zeros[:, start:stop], self.format.bits)
        return {name: cuts.get(name, parts[name]) for name in parts}

    @property
    def _precision(self) -> str:
        return self.format.precision or ("bf16" if self.format.group else "f32")

    def _zeros(self, tensor: QuantTensor, shape: tuple[int, ...]) -> np.ndarray:
        if self.format.asymmetric:
            return as_numpy(tensor.params["zero"]).astype(np.int16)
        return np.full(shape, 1 << (self.format.bits - 1), np.int16)

    def _with_zeros(self, params: dict[str, np.ndarray], zeros: np.ndarray) -> dict[str, np.ndarray]:
        if self.format.asymmetric:
            params["zero"] = np.ascontiguousarray(zeros, np.uint8)
        return params

    def _in_order(self, cols: int) -> np.ndarray:
        return (np.arange(cols) // (self.format.group or cols)).astype(WORD)


def gptq_codec(format: Format) -> GptqCodec | None:
    """The codec of integers with float16 scales: v1 for symmetric 4 or 8 bits, else v2. None for other formats."""
    if not isinstance(format, Affine) or format.precision != "f16":
        return None
    return GptqCodec(format, int(not format.asymmetric and format.bits in (4, 8)))


SCHEMES = {f"int{bits}": Scheme("gptq", bits) for bits in (8, 4, 3, 2)}


def _version(schemes: Collection[Scheme]) -> int:
    """1 if checkpoint format v1 can hold every module and its readers support them, else 2."""
    return 1 if all(scheme.bits in (4, 8) and not scheme.asymmetric for scheme in schemes) else 2


def _stored(scheme: Scheme, precision: str, version: int) -> tuple[Format, GptqCodec]:
    format = Affine(scheme.bits, scheme.group or 0, scheme.asymmetric, precision)
    return format, GptqCodec(format, int(version == 1))


def _configuration(modules: Modules) -> dict[str, Any]:
    """`quantization_config` as AutoGPTQ and GPTQModel write it."""
    main, kept, others = modules.main, modules.kept, modules.others
    dynamic: dict[str, Any] = {f"-:^{re.escape(module)}$": {} for module in kept if module != "lm_head"}
    for module, scheme in [*others.items(), *fused_schemes(others).items()]:
        dynamic[f"+:^{re.escape(module)}$"] = {
            "bits": scheme.bits,
            "group_size": scheme.group or -1,
            "sym": not scheme.asymmetric,
        }
    return {
        "bits": main.bits,
        "group_size": main.group or -1,
        "desc_act": False,
        "sym": not main.asymmetric,
        "lm_head": "lm_head" not in kept,
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if modules.version == 1 else "gptq_v2",
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
        "meta": {"quantizer": [f"bitsmith:{__version__}"]},
    }


def _kept(config: Mapping[str, Any]) -> list[str]:
    """The modules that `dynamic` leaves out, and the head."""
    rules = [each[2:] for each in config.get("dynamic", {}) if each.startswith("-:")]
    return [re.sub(r"\\(.)", r"\1", each[1:-1]) for each in rules] + ([] if config["lm_head"] else ["lm_head"])


def _warnings(main: Scheme, version: int) -> list[str]:
    if version == 1:
        return []
    return ["vLLM reads only symmetric gptq of 4 or 8 bits; GPTQModel and transformers read this folder too"]


def _read(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    version = config.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            f"{folder}: checkpoint_format {str(version)[:40]!r} is unknown; known: gptq, gptq_v2. Convert the model "
            "with the tool that made it"
        )
    quantized = modules(entries, ".qweight")
    for module, own in zip(quantized, _overrides(folder, config, quantized), strict=True):
        values = {**config, **own}
        bits = known_integer(folder, values, "bits", BITS)
        group = group_size(folder, values, "group_size")
        indexed = f"{module}.g_idx" in entries
        format = Affine(
            bits, group, values.get("sym", True) is False, precision_of(folder, entries, f"{module}.scales")
        )
        codec = GptqCodec(format, int(version == "gptq"), indexed)
        packed = matrix_shape(folder, entries, f"{module}.qweight")
        info = TensorInfo(f"{module}.weight", (packed[1], packed[0] * 32 // bits), codec.name, 0)
        names = {part: f"{module}.{part}" for part in codec.axes}
        yield fold(folder, codec, info, names, entries, said_by="quantization_config")


def _overrides(folder: Path, config: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """GPTQModel's `dynamic` settings of each module: those of the first pattern that matches its name's beginning."""
    rules = config.get("dynamic")
    chosen = {
        pattern.removeprefix("+:"): values
        for pattern, values in (rules.items() if isinstance(rules, dict) else ())
        if isinstance(values, dict) and not pattern.startswith("-:")
    }
    found = first_matches(list(chosen), names, where=f"{folder}: `dynamic` of quantization_config")
    settings = list(chosen.values())
    return [{} if number is None else settings[number] for number in found]


CONTAINER = ModuleContainer(
    name="gptq",
    codec=gptq_codec,
    runtimes=frozenset({"vllm", "transformers"}),
    schemes=SCHEMES,
    stored=_stored,
    version=_version,
    precision="f16",
    configuration=_configuration,
    further_files=lambda config: {"quantize_config.json": config},
    warnings=_warnings,
    quant_method="gptq",
    marks=(".qweight",),
    old_config="quantize_config.json",
    kept_list=_kept,
    read=_read,
)
