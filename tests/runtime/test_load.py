"""Which kernel a model runs on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.runtime import kernels
from bitsmith.runtime.core_decoder import CoreDecoder
from bitsmith.runtime.load import choose_kernel
from bitsmith.system import core as cpp
from tests.tiny import make_folder

needs_core = pytest.mark.skipif(cpp.core() is None, reason="no C++ core")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("load") / "tiny")


@needs_core
def test_the_core_is_taken_where_it_can_run_the_model(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert choose_kernel(checkpoint, None, default="int8") == "int8"
    assert choose_kernel(checkpoint, None, default="exact") == "exact"
    assert choose_kernel(checkpoint, "torch", default="int8") == "torch"
    rounded = open_checkpoint(bitsmith.quantize(tiny, to="compressed/w8a8", out=tmp_path / "w8a8").out)
    assert choose_kernel(rounded, None, default="int8") == "torch"
    with pytest.raises(UnsupportedError, match=r'kernel="exact": .* does not round inputs as .*int8, per token'):
        choose_kernel(rounded, "exact", default="int8")
    with pytest.raises(UsageError, match='kernel="fast": unknown; expected int8, int16, exact, torch'):
        choose_kernel(checkpoint, "fast", default="int8")


@needs_core
def test_torch_computes_what_the_core_does_not_know_and_says_so(
    tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("bitsmith.runtime.load.choice"), "propagate", True)
    monkeypatch.setattr(kernels, "core_lacks", lambda config: "a new operation")
    assert choose_kernel(open_checkpoint(tiny), None, default="int16") == "torch"
    assert "does not know a new operation; it is computed with torch" in caplog.text


@needs_core
def test_other_layouts_run_decoded_where_they_fit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bitsmith.quantize(tiny, to="native/fp8", out=tmp_path / "fp8").out
    checkpoint = open_checkpoint(made)
    assert choose_kernel(checkpoint, None, default="int8") == "int8"
    tokens = np.arange(40)[None] + 100
    ours = bitsmith.load(made)
    assert isinstance(ours.decoder, CoreDecoder)
    np.testing.assert_allclose(
        bitsmith.load(made, kernel="exact").logits(tokens),
        bitsmith.load(made, kernel="torch").logits(tokens),
        atol=1e-4,
    )
    monkeypatch.setattr(kernels, "available_memory", lambda: 1000)
    assert choose_kernel(checkpoint, None, default="int8") == "torch"
    with pytest.raises(UnsupportedError, match='takes too much memory; give kernel="torch"'):
        choose_kernel(checkpoint, "int8", default="int8")


def test_without_core_or_torch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint: Any = open_checkpoint(tiny)
    monkeypatch.setattr(kernels, "core", lambda: None)
    monkeypatch.setattr(kernels, "missing", lambda: "this installation has no C++ core")
    assert choose_kernel(checkpoint, None, default="int8") == "torch"
    with pytest.raises(UsageError, match='kernel="int8": this installation has no C'):
        choose_kernel(checkpoint, "int8", default="int8")
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"no C\+\+ core, so running a model needs torch"):
        choose_kernel(checkpoint, None, default="int8")
    with pytest.raises(UsageError, match=r"^running a model needs torch"):
        choose_kernel(checkpoint, "torch", default="int8")


@needs_core
def test_running_and_measuring_import_no_torch(tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to="q4_0", out=tmp_path / "x.gguf").out
    code = (
        "import sys, json, bitsmith\n"
        f"model = bitsmith.load({str(made)!r}, threads=1)\n"
        "text = model.generate('The old', max_tokens=4)\n"
        f"lost = bitsmith.evaluate({str(made)!r}, against='reference', max_windows=1, context=64)\n"
        "print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]), lost.divergence.kld.value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, kld = done.stdout.rsplit(" ", 1)
    assert json.loads(modules) == []
    assert 0 < float(kld) < 0.1


@needs_core
def test_caches_that_are_not_there(tiny: Path) -> None:
    for options, match in (
        ({"cache_type": "q9"}, 'cache_type="q9": unknown; expected f16, q8_0, f32'),
        ({"cache_type": "q8_0", "kernel": "exact"}, 'kernel="exact" always keeps keys and values in float32'),
        ({"cache_type": "q8_0", "kernel": "torch"}, 'kernel="torch" always keeps keys and values in float32'),
    ):
        with pytest.raises(UsageError, match=match):
            bitsmith.load(tiny, **options)
