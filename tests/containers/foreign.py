"""Folders as other tools write them, and a check of what we read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bitsmith.containers.safetensors import SafetensorsSource

MODULE = "model.layers.0.mlp.down_proj"


def write_folder(folder: Path, parts: dict[str, np.ndarray], config: dict[str, Any] | None) -> Path:
    """One module of these parts, with `config` as `quantization_config`; None writes no config.json."""
    folder.mkdir()
    save_file({f"{MODULE}.{part}": np.array(x, order="C") for part, x in parts.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    return folder


def check_reads(folder: Path, expected: np.ndarray, layout: str) -> SafetensorsSource:
    """The module is one tensor of that layout; whole and by rows it is `expected`, [out, in]."""
    source = SafetensorsSource(folder)
    name = f"{MODULE}.weight"
    assert {n: (info.shape, info.layout) for n, info in source.tensors.items()} == {name: (expected.shape, layout)}
    whole = source.rows(name)
    assert np.allclose(whole, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    for start, stop in ((0, 1), (3, 5), (7, 40), (32, 64), (5, len(expected)), (9, 9)):
        assert np.array_equal(source.rows(name, start, stop), whole[start:stop]), (start, stop)
    return source
