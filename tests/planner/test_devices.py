"""The table of devices is sane, and its rows are found under the names that people and drivers use."""

import re
from dataclasses import FrozenInstanceError

import pytest

from bitsmith.errors import UsageError
from bitsmith.planner.devices import ALIASES, DEVICES, NUMBER_TYPES, Device, _words, find_device

ROWS = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)


@ROWS
def test_rows_are_sane(device: Device) -> None:
    assert DEVICES[device.name] is device
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", device.name)
    assert device.title
    assert "https://" in device.source
    assert 30e9 <= device.bandwidth <= 10e12
    assert device.matrix_types <= set(NUMBER_TYPES)
    if device.kind == "cpu":
        assert (device.memory, device.matrix_types) == (0, frozenset())
    else:
        assert 5 * 2**30 <= device.memory <= 512 * 2**30
        assert device.memory % 2**20 == 0
        assert device.matrix_types
    assert device.unified == (device.kind == "metal")


@ROWS
def test_every_name_finds_its_row_however_it_is_written(device: Device) -> None:
    for name in (device.name, device.name.upper(), device.name.replace("-", " "), device.name.replace("-", "_")):
        assert find_device(name) is device
    if device.kind in ("cuda", "metal"):
        assert find_device(device.title) is device


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        DEVICES["rtx-4090"].memory = 1  # type: ignore[misc]


def test_names_and_aliases_are_unique() -> None:
    keys = [_words(name) for name in (*DEVICES, *ALIASES)]
    assert len(set(keys)) == len(keys)
    assert () not in keys
    assert set(ALIASES.values()) <= DEVICES.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("4090 24GB", "rtx-4090"),
        (" rtx_3060-12gb ", "rtx-3060"),
        ("gtx 1060 6 GB", "gtx-1060"),
        ("4060", "rtx-4060"),
        ("4060Ti 16GB", "rtx-4060-ti-16"),
        ("RTX 5060 Ti 8 GB", "rtx-5060-ti-8"),
        ("A6000", "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("RTX PRO 6000 Blackwell", "rtx-pro-6000"),
        ("A100-80GB", "a100-80"),
        ("a100 80 gb", "a100-80"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80-pcie"),
        ("a100 40", "a100-40"),
        ("h100", "h100-sxm"),
        ("H100 80GB", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("H200 141GB", "h200"),
        ("B200 180GB", "b200"),
        ("Tesla V100-SXM2-16GB", "v100-16"),
        ("V100 32GB", "v100-32"),
        ("Tesla T4", "t4"),
        ("T4 16GB", "t4"),
        ("A10G", "a10"),
        ("a10g 24gb", "a10"),
        ("L40S 48GB", "l40s"),
        ("Tesla P40 24GB", "p40"),
        ("AMD Instinct MI300X", "mi300x"),
        ("MI300X 192GB", "mi300x"),
        ("7900 XTX", "rx-7900-xtx"),
        ("Radeon RX 7900XTX", "rx-7900-xtx"),
        ("M3 Max 64GB", "m3-max-64"),
        ("Apple M3 Max 64 GB", "m3-max-64"),
        ("m2-16", "m2-16"),
        ("M1 16GB", "m1-16"),
        ("m3 ultra 512", "m3-ultra-512"),
        ("CPU DDR5", "cpu-ddr5"),
    ],
)
def test_spellings(name: str, expected: str) -> None:
    assert find_device(name).name == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a100", ["a100-40", "a100-80", "a100-80-pcie"]),
        ("NVIDIA A100", ["a100-40", "a100-80", "a100-80-pcie"]),
        ("v100", ["v100-16", "v100-32"]),
        ("m3 max", ["m3-max-36", "m3-max-48", "m3-max-64", "m3-max-96", "m3-max-128"]),
        ("Apple M4", ["m4-16", "m4-24", "m4-32"]),
        ("4060 Ti", ["rtx-4060-ti-8", "rtx-4060-ti-16"]),
    ],
)
def test_several_sizes_are_asked_about(name: str, expected: list[str]) -> None:
    with pytest.raises(UsageError, match="several sizes") as caught:
        find_device(name)
    assert str(caught.value).endswith(f"give one of {', '.join(expected)}.")
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("rtx 4091", "rtx-4090"),
        ("NVIDIA GeForce RTX 3070", "rtx-3090"),
        ("rtx 3080 12gb", "rtx-3080"),  # another card: more memory, a wider bus
        ("rtx 4090 laptop", "rtx-4090"),
        ("rtx 4080 super", "rtx-4080"),
        ("rtx 6000", "rtx-6000-ada"),
        ("h100 nvl 94gb", "h100-sxm"),
        ("a100 64gb", "a100-40"),
        ("m3 max 32gb", "m3-max-36"),
        ("mi250", "mi250x"),
        ("cpu", "cpu-ddr4"),
        ("cpu-ddr4 64gb", "cpu-ddr4"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match="did you mean") as caught:
        find_device(name)
    message = str(caught.value)
    assert near in re.findall(r"[a-z0-9-]+", message)
    assert repr(name) in message
    assert 'memory="24GB"' in message


@pytest.mark.parametrize("name", ["", "  ", "rtx", "24GB", "nvidia geforce", "toaster", "²", "m", "-"])
def test_what_resembles_nothing_is_told_of_memory(name: str) -> None:
    with pytest.raises(UsageError, match="is no device") as caught:
        find_device(name)
    assert 'memory="24GB"' in str(caught.value)


def test_memory_is_what_the_driver_reports() -> None:
    for name in ("rtx-3090", "rtx-4090", "rx-7900-xtx"):
        assert 25.7e9 <= DEVICES[name].memory <= 25.8e9
    for name in ("a10", "l4", "p40"):  # the same 24 GB with ECC
        assert 24.1e9 <= DEVICES[name].memory <= 24.2e9
    assert DEVICES["rtx-4090"].memory == 24564 * 2**20
    assert DEVICES["m3-max-64"].memory == 64 * 2**30


def test_a_mac_gives_the_gpu_a_part_of_its_memory() -> None:
    assert DEVICES["m1-max-32"].usable == 32 * 2**30 * 2 // 3
    assert DEVICES["m3-pro-36"].usable == 27 * 2**30
    assert DEVICES["m2-max-64"].usable == 48 * 2**30
    for device in DEVICES.values():
        if device.kind == "metal":
            assert 0.66 < device.usable / device.memory <= 0.75
        else:
            assert device.usable == device.memory


def test_binned_macs_have_their_own_bandwidth() -> None:
    assert {size: DEVICES[f"m3-max-{size}"].bandwidth for size in (36, 48, 64, 96, 128)} == {
        36: 300e9,
        48: 400e9,
        64: 400e9,
        96: 300e9,
        128: 400e9,
    }
    assert DEVICES["m4-max-36"].bandwidth == 410e9
    assert DEVICES["m4-max-128"].bandwidth == 546e9
    assert not any(name.startswith("m4-ultra") for name in DEVICES)


@pytest.mark.parametrize(
    ("names", "types"),
    [
        (["gtx-1060", "p40"], "int8"),
        (["v100-16", "v100-32"], "fp16"),
        (["rtx-2060", "t4"], "fp16 int8 int4"),
        (["rtx-3060", "rtx-3080", "rtx-3090", "rtx-a6000", "a10", "a100-40", "a100-80"], "fp16 bf16 tf32 int8 int4"),
        (["rtx-4060", "rtx-4070", "rtx-4090", "rtx-6000-ada", "l4", "l40s"], "fp16 bf16 tf32 int8 int4 fp8"),
        (["h100-sxm", "h100-pcie", "h200"], "fp16 bf16 tf32 int8 fp8"),
        (["rtx-5060-ti-16", "rtx-5070-ti", "rtx-5090", "rtx-pro-6000", "b200"], "fp16 bf16 tf32 int8 fp8 fp4"),
        (["mi300x"], "fp16 bf16 tf32 int8 fp8"),
        (["mi250x"], "fp16 bf16 int8"),
        (["rx-7900-xtx"], "fp16 bf16 int8 int4"),
        (["m1-8", "m1-ultra-128", "m2-24", "m2-max-96"], "fp16"),
        (["m3-8", "m3-ultra-512", "m4-16", "m4-max-128"], "fp16 bf16"),
    ],
)
def test_number_types(names: list[str], types: str) -> None:
    for name in names:
        assert DEVICES[name].matrix_types == set(types.split())


def test_relations_that_hold_by_construction() -> None:
    assert DEVICES["h100-pcie"].bandwidth < DEVICES["h100-sxm"].bandwidth < DEVICES["h200"].bandwidth
    assert DEVICES["a100-40"].bandwidth < DEVICES["a100-80-pcie"].bandwidth < DEVICES["a100-80"].bandwidth
    assert DEVICES["rtx-4060-ti-8"].bandwidth == DEVICES["rtx-4060-ti-16"].bandwidth
    assert DEVICES["cpu-ddr4"].bandwidth == 2 * 8 * 3200e6
    assert DEVICES["cpu-ddr5"].bandwidth == 2 * 8 * 5600e6
