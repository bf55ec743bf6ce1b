"""What adding a thing costs: one file and one row, after which every command knows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitsmith.calibration.rounders import ROUNDERS
from bitsmith.calibration.transforms import TRANSFORMS
from bitsmith.containers import CONTAINERS
from bitsmith.models.arch.families import FAMILIES
from bitsmith.quant.formats import FORMATS
from bitsmith.runtime.kernels import KERNELS
from tests.cli.command import Command
from tests.tiny import CONFIG, make_folder, weights
from tests.toys import family, kernel, rounder, transform
from tests.toys.format import ToyTernary

FEW = ("--calibration", "default", "--calibration-tokens", "512", "--calibration-context", "64", "--device", "cpu")


def kld(command: Command, model: Path, original: Path, *words: str) -> float:
    done = command("eval", model, "--against", original, "--context", "64", "--max-windows", "4", "--json", *words)
    assert done.code == 0, done.err
    found: float = json.loads(done.out)["divergence"]["kld"]["value"]
    return found


def test_a_format(tiny: Path, tmp_path: Path, bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy-ternary", ToyTernary())
    done = bitsmith_command("quantize", tiny, "--to", "native/toy-ternary", "--out", tmp_path / "made", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["bits_per_weight"] < 16
    assert bitsmith_command("inspect", tmp_path / "made", "--verify").code == 0
    assert 0 < kld(bitsmith_command, tmp_path / "made", tiny) < 20
    words = ("--to", "native/toy-ternary", "--method", "gptq", *FEW, "--out", tmp_path / "gptq")
    assert bitsmith_command("quantize", tiny, *words).code == 0
    assert bitsmith_command("inspect", tmp_path / "gptq", "--verify").code == 0


def test_a_container(tiny: Path, tmp_path: Path, bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTAINERS, "toy", "tests.toys.container")
    done = bitsmith_command("quantize", tiny, "--to", "toy/int8", "--out", tmp_path / "made")
    assert done.code == 0, done.err
    said = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert said == {"quant_method": "toy", "ignore": ["lm_head"]}
    shown = bitsmith_command("inspect", tmp_path / "made", "--verify")
    assert shown.code == 0
    assert "toy/int8" in shown.out
    assert 0 < kld(bitsmith_command, tmp_path / "made", tiny) < 0.01
    words = ("--to", "q8_0", "--requantize", "--out", tmp_path / "again.gguf")
    assert bitsmith_command("quantize", tmp_path / "made", *words).code == 0


def test_a_rounder(tiny: Path, tmp_path: Path, bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    error = bitsmith_command.fails(2, "quantize", tiny, "--to", "q4_0", "--method", "toy")
    assert "--method toy: unknown; known: nearest, gptq, learned" in error
    monkeypatch.setitem(ROUNDERS, "toy", rounder.ROW)
    done = bitsmith_command("quantize", tiny, "--to", "gptq/int4", "--method", "awq+toy", *FEW, "--out", tmp_path / "a")
    assert done.code == 0, done.err
    assert "method: awq+toy" in done.out
    plain = bitsmith_command("quantize", tiny, "--to", "q8_0", "--method", "toy", *FEW, "--out", tmp_path / "b.gguf")
    assert plain.code == 0, plain.err
    assert 0 < kld(bitsmith_command, tmp_path / "b.gguf", tiny) < 0.01


def test_a_transform(tiny: Path, tmp_path: Path, bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS, "doubling", transform.ROW)
    words = ("--to", "gptq/int8", "--method", "doubling+gptq", *FEW, "--out", tmp_path / "made")
    done = bitsmith_command("quantize", tiny, *words)
    assert done.code == 0, done.err
    assert "8 of 8 inputs rescaled" in done.out
    assert 0 < kld(bitsmith_command, tmp_path / "made", tiny) < 0.01


def test_a_kernel(tiny: Path, bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected int8, int16, exact, torch" in bitsmith_command.fails(2, "eval", tiny, "--kernel", "toy")
    monkeypatch.setitem(KERNELS, "toy", kernel.ROW)
    before = kernel.products
    assert abs(kld(bitsmith_command, tiny, tiny, "--kernel", "toy")) < 1e-6
    assert kernel.products > before


def test_a_family(tmp_path: Path, bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row: read, planned, quantized with and without calibration, written in all containers, measured and run."""
    own = {"model_type": "toy", "architectures": ["ToyForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"}
    config = {**CONFIG, **own, "toy_divisor": 3.0, "tie_word_embeddings": True}
    config.pop("hidden_act")
    renamed = {
        name.replace("post_attention_layernorm", "post_feedforward_layernorm").replace(
            "input_layernorm", "post_attention_layernorm"
        ): values
        for name, values in weights(config).items()
    }
    folder = make_folder(tmp_path / "toy", tensors=renamed)
    (folder / "config.json").write_text(json.dumps(config))
    assert "ToyForCausalLM" in bitsmith_command.fails(1, "eval", folder)
    monkeypatch.setitem(FAMILIES, "toy", family.ROW)  # type: ignore[arg-type]
    for to in ("q8_0", "gptq/int8", "native/int8"):
        for words in ((), ("--method", "awq+gptq", *FEW)):
            out = tmp_path / f"{to.replace('/', '-')}-{len(words)}{'' if '/' in to else '.gguf'}"
            done = bitsmith_command("quantize", folder, "--to", to, *words, "--out", out)
            assert done.code == 0, done.err
            assert 0 < kld(bitsmith_command, out, folder) < 0.01
    assert bitsmith_command("plan", folder).code == 0
    shown = bitsmith_command("run", folder, "--prompt", "a", "--raw", "--max-tokens", "2")
    assert shown.code == 0
    assert "computed with torch" not in shown.err  # the core knows all of it
