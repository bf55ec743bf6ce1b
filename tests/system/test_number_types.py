"""Types of numbers by name, without importing ml_dtypes before one of its types is needed."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.safetensors_header import DTYPES
from bitsmith.system.number_types import NARROW, NumberTypes, number_type

OWN = NumberTypes({"half": "<f2", "brain": "bfloat16", "swapped": ">f4"})


@pytest.mark.parametrize("name", NARROW)
def test_narrow_types_are_those_of_ml_dtypes(name: str) -> None:
    found = number_type(name)
    assert found == np.dtype(getattr(ml_dtypes, name))
    assert found.itemsize == NARROW[name]
    assert found.name == name


def test_unknown_names() -> None:
    with pytest.raises(TypeError):
        number_type("float7")
    with pytest.raises(KeyError):
        OWN["third"]


@pytest.mark.parametrize("name", DTYPES)
def test_names_and_widths(name: str) -> None:
    assert DTYPES.name_of(DTYPES[name]) == name
    assert DTYPES.width(name) == DTYPES[name].itemsize


def test_byte_order_counts() -> None:
    assert OWN.name_of(np.dtype(">f4")) == "swapped"
    with pytest.raises(KeyError):
        OWN.name_of(np.dtype("<f4"))


def test_names_do_not_import_ml_dtypes() -> None:
    code = (
        "import sys\n"
        "from bitsmith.containers.safetensors_header import DTYPES\n"
        "assert 'BF16' in DTYPES and DTYPES.width('BF16') == 2 and len(list(DTYPES)) == len(DTYPES)\n"
        "print('ml_dtypes' in sys.modules, DTYPES['BF16'].name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "bfloat16"]
