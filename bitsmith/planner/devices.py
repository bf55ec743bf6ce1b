"""Table of devices: memory, bandwidth, and the number types that their matrix units multiply."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from bitsmith.errors import UsageError

_MIB = 1 << 20
_GIB = 1 << 30

NUMBER_TYPES: tuple[str, ...] = ("fp16", "bf16", "tf32", "int8", "int4", "fp8", "fp4")


@dataclass(frozen=True)
class Device:
    """One device that holds a model.

    name: key of DEVICES, lower case: "rtx-4090", "a100-80", "m3-max-64"
    title: the vendor's name
    memory: bytes that the driver reports; 0 if only the user knows. The box says more: "24 GB" are 24564 MiB on an
        RTX 4090 and 23028 MiB on an A10. For NVIDIA it is nvidia-smi's memory.total, with the factory's ECC setting;
        the driver keeps 1 to 3 % of it. For AMD it is rocm-smi's figure. Apple's GB are GiB
    bandwidth: peak bytes/s between this memory and the chip, as the vendor says
    matrix_types: the NUMBER_TYPES that its matrix units multiply without widening them first
    unified: True if the device shares the system's memory
    source: where the figures are published
    """

    name: str
    title: str
    kind: Literal["cuda", "rocm", "metal", "cpu"]
    memory: int
    bandwidth: float
    matrix_types: frozenset[str]
    unified: bool = False
    source: str = ""

    @property
    def usable(self) -> int:
        """Largest number of bytes that a program can take by default: all of `memory`, except on a Mac.

        macOS gives the GPU 2/3 of a memory below 36 GB, and 3/4 of a larger one. The newest systems give a little
        more. `sudo sysctl iogpu.wired_limit_mb=...` changes the limit. Apple documents the call
        (https://developer.apple.com/documentation/metal/mtldevice/recommendedmaxworkingsetsize), but not the share.
        The share is what users of llama.cpp report: 21845 MiB of 32 GiB (https://github.com/ollama/ollama/issues/434)
        and 49152 of 64 (https://github.com/ggml-org/llama.cpp/issues/1870; the rule is in discussion 2182).
        """
        if not self.unified:
            return self.memory
        return self.memory * 2 // 3 if self.memory < 36 * _GIB else self.memory * 3 // 4


# Inputs of the tensor cores by compute capability: CUDA Programming Guide, "Compute Capabilities",
# https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
_PASCAL = frozenset({"int8"})  # no matrix units; dp4a does four int8 products at once; fp16 has 1/64 of fp32's rate
_VOLTA = frozenset({"fp16"})
_TURING = frozenset({"fp16", "int8", "int4"})
_AMPERE = frozenset({"fp16", "bf16", "tf32", "int8", "int4"})
_ADA = _AMPERE | {"fp8"}
_HOPPER = _ADA - {"int4"}
_BLACKWELL = _HOPPER | {"fp4"}

# AMD, "Data types and precision support", https://rocm.docs.amd.com/en/latest/reference/precision-support.html
# RDNA 3 also multiplies int4: https://gpuopen.com/learn/wmma_on_rdna3/
_CDNA2 = frozenset({"fp16", "bf16", "int8"})
_CDNA3 = frozenset({"fp16", "bf16", "tf32", "int8", "fp8"})  # tf32 is AMD's xf32
_RDNA3 = frozenset({"fp16", "bf16", "int8", "int4"})

# Metal accepts bfloat on all of these chips, but M1 and M2 (families Apple7, Apple8) widen it in software:
# https://github.com/philipturner/metal-flash-attention (GEMMOperandPrecision, supportsFamily(.apple9))
_M1_M2 = frozenset({"fp16"})
_M3_M4 = frozenset({"fp16", "bf16"})

_GEFORCE = "https://www.nvidia.com/en-us/geforce/graphics-cards/compare/ (bus width x data rate)"
_GP106 = "NVIDIA GeForce GTX 1060, https://www.nvidia.com/en-us/geforce/10-series/ (192 bit x 8 Gbit/s)"
_TU106 = "NVIDIA GeForce RTX 2060, https://www.nvidia.com/en-us/geforce/20-series/ (192 bit x 14 Gbit/s)"
_GA102_PAPER = (
    "NVIDIA GA102 white paper, "
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
)
_ADA_PAPER = (
    "NVIDIA Ada white paper, https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
)
_RTX_50_PAPER = (
    "NVIDIA RTX Blackwell white paper, "
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_DATA_CENTER = "https://www.nvidia.com/en-us/data-center/"
_WORKSTATIONS = "https://www.nvidia.com/en-us/products/workstations/"
_P40 = "NVIDIA Tesla P40 product brief, https://images.nvidia.com/content/pdf/tesla/Tesla-P40-Product-Brief.pdf"
_INSTINCT = "https://www.amd.com/en/products/accelerators/instinct/"
_RADEON = "https://www.amd.com/en/products/graphics/desktops/radeon/7000-series/amd-radeon-rx-7900xtx.html"
_JEDEC = "JEDEC, https://www.jedec.org: two channels of 64 bit x the data rate"

_RTX_A6000 = _WORKSTATIONS + "rtx-a6000/"
_RTX_6000_ADA = _WORKSTATIONS + "rtx-6000/"
_RTX_PRO_6000 = _WORKSTATIONS + "professional-desktop-gpus/rtx-pro-6000/"
_A100 = _DATA_CENTER + "a100/"
_H100 = _DATA_CENTER + "h100/"
_V100 = _DATA_CENTER + "v100/"
_MI250X = _INSTINCT + "mi200/mi250x.html"
_MI300X = _INSTINCT + "mi300/mi300x.html"

_CARDS: tuple[Device, ...] = (
    Device("gtx-1060", "NVIDIA GeForce GTX 1060 6GB", "cuda", 6144 * _MIB, 192e9, _PASCAL, source=_GP106),
    Device("rtx-2060", "NVIDIA GeForce RTX 2060 6GB", "cuda", 6144 * _MIB, 336e9, _TURING, source=_TU106),
    Device("rtx-3060", "NVIDIA GeForce RTX 3060 12GB", "cuda", 12288 * _MIB, 360e9, _AMPERE, source=_GEFORCE),
    Device("rtx-3080", "NVIDIA GeForce RTX 3080 10GB", "cuda", 10240 * _MIB, 760e9, _AMPERE, source=_GA102_PAPER),
    Device("rtx-3090", "NVIDIA GeForce RTX 3090", "cuda", 24576 * _MIB, 936e9, _AMPERE, source=_GA102_PAPER),
    Device("rtx-4060", "NVIDIA GeForce RTX 4060", "cuda", 8188 * _MIB, 272e9, _ADA, source=_GEFORCE),
    Device("rtx-4060-ti-8", "NVIDIA GeForce RTX 4060 Ti 8GB", "cuda", 8188 * _MIB, 288e9, _ADA, source=_GEFORCE),
    Device("rtx-4060-ti-16", "NVIDIA GeForce RTX 4060 Ti 16GB", "cuda", 16380 * _MIB, 288e9, _ADA, source=_GEFORCE),
    Device("rtx-4070", "NVIDIA GeForce RTX 4070", "cuda", 12282 * _MIB, 504e9, _ADA, source=_ADA_PAPER),
    Device("rtx-4080", "NVIDIA GeForce RTX 4080", "cuda", 16376 * _MIB, 716.8e9, _ADA, source=_ADA_PAPER),
    Device("rtx-4090", "NVIDIA GeForce RTX 4090", "cuda", 24564 * _MIB, 1008e9, _ADA, source=_ADA_PAPER),
    Device("rtx-5060-ti-8", "NVIDIA GeForce RTX 5060 Ti 8GB", "cuda", 8151 * _MIB, 448e9, _BLACKWELL, source=_GEFORCE),
    Device(
        "rtx-5060-ti-16", "NVIDIA GeForce RTX 5060 Ti 16GB", "cuda", 16311 * _MIB, 448e9, _BLACKWELL, source=_GEFORCE
    ),
    Device("rtx-5070-ti", "NVIDIA GeForce RTX 5070 Ti", "cuda", 16303 * _MIB, 896e9, _BLACKWELL, source=_RTX_50_PAPER),
    Device("rtx-5080", "NVIDIA GeForce RTX 5080", "cuda", 16303 * _MIB, 960e9, _BLACKWELL, source=_RTX_50_PAPER),
    Device("rtx-5090", "NVIDIA GeForce RTX 5090", "cuda", 32607 * _MIB, 1792e9, _BLACKWELL, source=_RTX_50_PAPER),
    Device("rtx-a6000", "NVIDIA RTX A6000", "cuda", 49140 * _MIB, 768e9, _AMPERE, source=_RTX_A6000),
    Device("rtx-6000-ada", "NVIDIA RTX 6000 Ada Generation", "cuda", 49140 * _MIB, 960e9, _ADA, source=_RTX_6000_ADA),
    Device(
        "rtx-pro-6000",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "cuda",
        97887 * _MIB,
        1792e9,
        _BLACKWELL,
        source=_RTX_PRO_6000,
    ),
    Device("p40", "NVIDIA Tesla P40", "cuda", 23040 * _MIB, 346e9, _PASCAL, source=_P40),
    Device("v100-16", "NVIDIA V100 16GB", "cuda", 16384 * _MIB, 900e9, _VOLTA, source=_V100),
    Device("v100-32", "NVIDIA V100 32GB", "cuda", 32768 * _MIB, 900e9, _VOLTA, source=_V100),
    Device("t4", "NVIDIA T4", "cuda", 15360 * _MIB, 320e9, _TURING, source=_ADA_PAPER),
    Device("a10", "NVIDIA A10", "cuda", 23028 * _MIB, 600e9, _AMPERE, source=_DATA_CENTER + "products/a10-gpu/"),
    Device("a100-40", "NVIDIA A100 40GB", "cuda", 40960 * _MIB, 1555e9, _AMPERE, source=_A100),
    Device("a100-80", "NVIDIA A100 80GB SXM", "cuda", 81920 * _MIB, 2039e9, _AMPERE, source=_A100),
    Device("a100-80-pcie", "NVIDIA A100 80GB PCIe", "cuda", 81920 * _MIB, 1935e9, _AMPERE, source=_A100),
    Device("l4", "NVIDIA L4", "cuda", 23034 * _MIB, 300e9, _ADA, source=_DATA_CENTER + "l4/"),
    Device("l40s", "NVIDIA L40S", "cuda", 46068 * _MIB, 864e9, _ADA, source=_DATA_CENTER + "l40s/"),
    Device("h100-sxm", "NVIDIA H100 SXM 80GB", "cuda", 81559 * _MIB, 3.35e12, _HOPPER, source=_H100),
    Device("h100-pcie", "NVIDIA H100 PCIe 80GB", "cuda", 81559 * _MIB, 2.0e12, _HOPPER, source=_H100),
    Device("h200", "NVIDIA H200 SXM 141GB", "cuda", 143771 * _MIB, 4.8e12, _HOPPER, source=_DATA_CENTER + "h200/"),
    # 7680 bit at 8 Gbit/s; the launch announced 8 TB/s for 192 GB
    Device("b200", "NVIDIA B200 180GB", "cuda", 183359 * _MIB, 7.7e12, _BLACKWELL, source=_DATA_CENTER + "hgx/"),
    Device("mi300x", "AMD Instinct MI300X", "rocm", 206141652992, 5.3e12, _CDNA3, source=_MI300X),
    # the driver shows the two dies as two devices, each with half of the card's 128 GB and 3.2768 TB/s
    Device("mi250x", "AMD Instinct MI250X, one die", "rocm", 68702699520, 1.6384e12, _CDNA2, source=_MI250X),
    Device("rx-7900-xtx", "AMD Radeon RX 7900 XTX", "rocm", 25753026560, 960e9, _RDNA3, source=_RADEON),
    # memory 0: the user gives the size with --memory
    Device("cpu-ddr4", "CPU with two channels of DDR4-3200", "cpu", 0, 51.2e9, frozenset(), source=_JEDEC),
    Device("cpu-ddr5", "CPU with two channels of DDR5-5600", "cpu", 0, 89.6e9, frozenset(), source=_JEDEC),
)

_NEWS = "https://www.apple.com/newsroom/"
_SPECS = "https://support.apple.com/en-us/"
_M1_PRO_MAX = _NEWS + "2021/10/introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built/"
_M2_PRO_MAX = _NEWS + "2023/01/apple-unveils-m2-pro-and-m2-max-next-generation-chips-for-next-level-workflows/"

# chip -> bytes/s, sizes of memory in GiB, source. M3 Max and M4 Max with the smaller GPU have fewer memory channels;
# Apple sold them with these sizes only.
_APPLE: tuple[tuple[str, float, tuple[int, ...], str], ...] = (
    ("m1", 68.25e9, (8, 16), _SPECS + "111883 (128 bit of LPDDR4X-4266)"),
    ("m1-pro", 200e9, (16, 32), _M1_PRO_MAX),
    ("m1-max", 400e9, (32, 64), _M1_PRO_MAX),
    ("m1-ultra", 800e9, (64, 128), _SPECS + "111900"),
    ("m2", 100e9, (8, 16, 24), _NEWS + "2022/06/apple-unveils-m2-with-breakthrough-performance-and-capabilities/"),
    ("m2-pro", 200e9, (16, 32), _M2_PRO_MAX),
    ("m2-max", 400e9, (32, 64, 96), _M2_PRO_MAX),
    ("m2-ultra", 800e9, (64, 128, 192), _NEWS + "2023/06/apple-introduces-m2-ultra/"),
    ("m3", 100e9, (8, 16, 24), _SPECS + "117735"),
    ("m3-pro", 150e9, (18, 36), _SPECS + "117737"),
    ("m3-max", 300e9, (36, 96), _SPECS + "117737"),
    ("m3-max", 400e9, (48, 64, 128), _SPECS + "117737"),
    ("m3-ultra", 819e9, (96, 256, 512), _SPECS + "122211"),
    ("m4", 120e9, (16, 24, 32), _SPECS + "121555"),
    ("m4-pro", 273e9, (24, 48, 64), _SPECS + "121555"),
    ("m4-max", 410e9, (36,), _SPECS + "122211"),
    ("m4-max", 546e9, (48, 64, 128), _SPECS + "122211"),
)


def _macs() -> Iterator[Device]:
    for chip, bandwidth, sizes, source in _APPLE:
        types = _M1_M2 if chip.startswith(("m1", "m2")) else _M3_M4
        for size in sizes:
            title = f"Apple {chip.replace('-', ' ').title()} {size}GB"
            yield Device(f"{chip}-{size}", title, "metal", size * _GIB, bandwidth, types, unified=True, source=source)


DEVICES: dict[str, Device] = {device.name: device for device in (*_CARDS, *_macs())}

# Other names of the rows above: similar cards, short names, and the names that nvidia-smi prints.
ALIASES: dict[str, str] = {
    "a10g": "a10",
    "a100-80-sxm": "a100-80",
    "a100-pcie-40": "a100-40",
    "a100-sxm4-40": "a100-40",
    "a100-sxm4-80": "a100-80",
    "h100": "h100-sxm",
    "h100-80-hbm3": "h100-sxm",
    "h200-sxm": "h200",
    "rtx-6000-ada-generation": "rtx-6000-ada",
    "rtx-pro-6000-blackwell": "rtx-pro-6000",
    "rtx-pro-6000-blackwell-workstation-edition": "rtx-pro-6000",
    "v100-pcie-16": "v100-16",
    "v100-pcie-32": "v100-32",
    "v100-sxm2-16": "v100-16",
    "v100-sxm2-32": "v100-32",
}

_UNSAID = {"nvidia", "geforce", "tesla", "amd", "radeon", "instinct", "apple", "rtx", "gtx", "rx", "gb", "gib"}


def find_device(name: str) -> Device:
    """The device with this name: "RTX 4090", "4090", "a100 80 gb", "NVIDIA H100 PCIe", "M3 Max 64GB", "m2-16".

    Case, separators, vendors' words and the device's own size do not matter. Raises UsageError for a name that fits
    several sizes (and lists them), and for an unknown name (and lists the nearest ones).
    """
    index = {_words(known): device for known, device in DEVICES.items()}
    index |= {_words(alias): DEVICES[known] for alias, known in ALIASES.items()}
    words = _words(name)
    if words in index:
        return index[words]
    if words[:-1] in index and _is_size(words[-1], index[words[:-1]]):
        return index[words[:-1]]
    fits = {
        device.name: device.memory
        for known, device in index.items()
        if words and known[: len(words)] == words and _is_size(known[len(words)], device)
    }
    if fits:
        sizes = ", ".join(sorted(fits, key=fits.__getitem__))
        raise UsageError(f"device {name!r} comes in several sizes; give one of {sizes}.")
    names = {"-".join(known): device.name for known, device in index.items()}
    near = dict.fromkeys(names[close] for close in get_close_matches("-".join(words), names, n=3, cutoff=0.5))
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise UsageError(f"{name!r} is no device that bitsmith knows{hint} For another device, give --memory=24GB.")


def _words(name: str) -> tuple[str, ...]:
    """Words and numbers of a name, without optional words: "RTX 4060Ti 16GB" gives ("4060", "ti", "16")."""
    return tuple(word for word in re.findall(r"[a-z]+|[0-9]+", name.lower()) if word not in _UNSAID)


def _is_size(word: str, device: Device) -> bool:
    """Whether the word is the size on the device's box. The driver reports up to a tenth less."""
    return word.isdigit() and abs(int(word) - device.memory / _GIB) <= 0.1 * int(word)
