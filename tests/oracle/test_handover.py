"""The real runtimes, started by `handover --check`: good files pass, and each planted fault is caught by name.

vLLM and mlx-lm live in environments of their own: BITSMITH_VLLM_PYTHON and BITSMITH_MLX_PYTHON name their Pythons.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bitsmith
from bitsmith.handover.checking import check_original, check_runtime
from bitsmith.handover.questions import loaded, our_answers
from bitsmith.handover.runtimes import find_runtime
from bitsmith.handover.subject import open_subject
from tests.tiny import with_tools

PYTHONS = {"vllm": os.environ.get("BITSMITH_VLLM_PYTHON"), "mlx": os.environ.get("BITSMITH_MLX_PYTHON")}
CASES = [
    pytest.param("llama.cpp", "q4_k_m", marks=pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp")),
    pytest.param("transformers", "compressed/w4a16"),
    pytest.param("vllm", "compressed/w4a16", marks=pytest.mark.skipif(not PYTHONS["vllm"], reason="vLLM's Python")),
    pytest.param("mlx", "mlx/4bit", marks=pytest.mark.skipif(not PYTHONS["mlx"], reason="mlx-lm's Python")),
]
KEPT = r"layers\.1\.mlp\.down_proj"


def made(tmp_path: Path, to: str) -> Path:
    if "/" not in to:
        return bitsmith.quantize("reference", to=to, out=tmp_path / "good.gguf").out
    return bitsmith.quantize("reference", to=to, keep=[KEPT], out=tmp_path / "good").out


def with_fault(good: Path, out: Path, fault: str) -> Path:
    """A copy of a folder with one thing wrong."""
    shutil.copytree(good, out)
    if fault == "template":
        template = out / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|user|>", "<|human|>"))
    elif fault == "tensor":
        tensors = load_file(out / "model.safetensors")
        one, other = (f"model.layers.{layer}.mlp.up_proj" for layer in (0, 5))
        for name in [name for name in tensors if name.startswith(f"{one}.")]:
            twin = name.replace(one, other)
            tensors[name], tensors[twin] = tensors[twin], tensors[name]
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((out / "config.json").read_text())
        for key in ("quantization_config", "quantization"):
            listed = config.get(key, {}).get("ignore")
            if listed is not None:
                config[key]["ignore"] = [name.replace("model.layers", "language_model.layers") for name in listed]
        (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(("name", "to"), CASES)
def test_a_good_file_passes_and_faults_are_caught(tmp_path: Path, name: str, to: str) -> None:
    runtime, python = find_runtime(name), PYTHONS.get(name)
    subject = open_subject(made(tmp_path, to))
    ours = our_answers(subject, loaded(subject))
    told, checks = check_runtime(runtime, subject, ours, python=python)
    assert [check.to_dict() for check in checks if check.passed is False] == []
    assert told.versions
    if name == "llama.cpp":
        return
    for fault, caught in (("template", "template"), ("tensor", "log probabilities"), ("list", "lo")):
        if (name, fault) == ("mlx", "list"):
            continue  # mlx-lm has no such list: it goes by the entries
        path = with_fault(subject.path, tmp_path / fault, fault)
        _, checks = check_runtime(runtime, subject, ours, python=python, path=path)
        names = [check.name for check in checks if check.passed is False]
        assert any(each.startswith(caught) for each in names), (fault, names)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.skipif(not PYTHONS[n], reason=n)) for n in PYTHONS])
def test_the_runtimes_parser_finds_a_call(tmp_path: Path, name: str) -> None:
    folder = with_tools(tmp_path / "tools")
    subject = open_subject(folder)
    ours = our_answers(subject, loaded(subject))
    _, checks = check_runtime(find_runtime(name), subject, ours, python=PYTHONS[name])
    assert {check.name: check.passed for check in checks}["tool call"] is True
    assert [check.to_dict() for check in checks if check.passed is False] == []


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp")
@pytest.mark.parametrize("fault", ["template", "tensor"])
def test_faults_in_a_gguf_file_are_caught(tmp_path: Path, fault: str) -> None:
    good, other = tmp_path / "good.gguf", tmp_path / "other"
    bitsmith.quantize("reference", to="q4_k_m", out=good)
    floats = bitsmith.convert("reference", to="bf16", out=tmp_path / "floats").out
    if fault == "template":
        with_fault(floats, other, "template")
    else:
        shutil.copytree(floats, other)
        tensors = load_file(other / "model.safetensors")
        one, twin = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 5))
        tensors[one], tensors[twin] = tensors[twin], tensors[one]
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    bad = bitsmith.quantize(other, to="q4_k_m", out=tmp_path / "bad.gguf").out
    subject = open_subject(good)
    ours = our_answers(subject, loaded(subject))
    _, checks = check_runtime(find_runtime("llama.cpp"), subject, ours, path=bad)
    caught = {"template": "template: one message", "tensor": "log probabilities"}[fault]
    assert caught in [check.name for check in checks if check.passed is False]


def test_a_template_that_was_changed_is_found_without_the_original(tmp_path: Path) -> None:
    good = bitsmith.quantize("reference", to="compressed/w4a16", out=tmp_path / "good").out
    bad = with_fault(good, tmp_path / "bad", "template")
    found = bitsmith.hand_over(bad, runtime="transformers", check=True, out=tmp_path / "out")
    assert [check.name for check in found.failed] == ["file"]
    assert "chat_template.jinja is changed" in found.failed[0].reason


def test_a_file_is_held_against_its_manifest_and_its_original(tmp_path: Path) -> None:
    """The fault is in the file itself: the runtime and bitsmith read the same wrong file."""
    good = bitsmith.quantize("reference", to="compressed/w4a16", out=tmp_path / "good").out
    data = bytearray((good / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (good / "model.safetensors").write_bytes(data)
    found = bitsmith.hand_over(good, runtime="transformers", check=True, out=tmp_path / "out")
    assert found.good is False
    assert next(check.name for check in found.failed) == "file"
    floats = bitsmith.convert("reference", to="bf16", out=tmp_path / "floats").out
    bad = with_fault(floats, tmp_path / "bad", "template")
    subject = open_subject(bad)
    ours = our_answers(subject, loaded(subject))
    checks = {check.name: check.passed for check in check_original(subject, ours, "reference")}
    assert checks.pop("original: template") is False
    assert checks
    assert all(checks.values())
    assert np.isfinite(ours.logs).all()
