"""Bad input: one paragraph on stderr, exit code 1 for bad data and 2 for a wrong call, nothing written."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.command import Command
from tests.tiny import CONFIG, make_folder, weights


def header_of(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite_header(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def nothing_new(folder: Path) -> bool:
    return sorted(path.name for path in folder.iterdir()) == ["tiny"]


@pytest.fixture
def quantize_fails(bitsmith_command: Command, tiny: Path):  # type: ignore[no-untyped-def]
    """Quantize the tiny model, expect failure, see that nothing was left; returns the error."""

    def run(code: int, *words: object, to: str = "q8_0") -> str:
        error = bitsmith_command.fails(code, "quantize", tiny, "--to", to, "--out", tiny.parent / "x.gguf", *words)
        assert nothing_new(tiny.parent)
        return error

    return run


def test_truncated_safetensors(quantize_fails, tiny: Path) -> None:
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors" in quantize_fails(1)


@pytest.mark.parametrize("length", [0, 1, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_lies(quantize_fails, tiny: Path, length: int) -> None:
    path = tiny / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    assert "model.safetensors" in quantize_fails(1)


@pytest.mark.parametrize(("begin", "end"), [(0, 32768), (10**12, 10**12 + 32768), (-8, 8), (8, 0)])
def test_offsets_that_overlap_or_leave_the_file(quantize_fails, tiny: Path, begin: int, end: int) -> None:
    path = tiny / "model.safetensors"
    header, data = header_of(path)
    name = "model.layers.1.mlp.up_proj.weight"
    header[name]["data_offsets"] = [begin, end]
    rewrite_header(path, header, data)
    assert "model.safetensors" in quantize_fails(1)


def test_a_missing_shard_is_named(quantize_fails, tiny: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    (tiny / "model.safetensors").unlink()
    save_file(tensors, tiny / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "model-00002-of-00002.safetensors" in quantize_fails(1)


def test_more_layers_promised_than_there_are(quantize_fails, tiny: Path) -> None:
    (tiny / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 3}))
    assert "model.layers.2." in quantize_fails(1)


def test_an_unknown_architecture_is_an_error_for_gguf_only(
    bitsmith_command: Command, quantize_fails, tiny: Path
) -> None:
    (tiny / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["OddForCausalLM"], "model_type": "odd"}))
    error = quantize_fails(1)
    assert "OddForCausalLM" in error
    assert "docs/sources.md lists the known families" in error
    out = tiny.parent / "odd"
    assert bitsmith_command("quantize", tiny, "--to", "native/int8", "--out", out).code == 0
    assert bitsmith_command("inspect", out, "--verify").code == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(quantize_fails, tiny: Path, value: float) -> None:
    tensors = weights(CONFIG)
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 5] = value
    make_folder(tiny, tensors=tensors)
    error = quantize_fails(1, to="q4_k_m")
    assert "model.layers.1.self_attn.v_proj.weight" in error
    assert "row 3, column 5" in error


def test_bf16_that_overflows_f16(quantize_fails, tiny: Path) -> None:
    tensors = weights(CONFIG)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = ml_dtypes.bfloat16(1e5)
    make_folder(tiny, tensors=tensors)
    assert "model.layers.0.mlp.up_proj.weight" in quantize_fails(1, to="f16")


def test_a_quantized_source_needs_consent(bitsmith_command: Command, tiny: Path) -> None:
    first = tiny.parent / "first.gguf"
    assert bitsmith_command("quantize", tiny, "--to", "q8_0", "--out", first).code == 0
    second = tiny.parent / "second.gguf"
    assert "--requantize" in bitsmith_command.fails(1, "quantize", first, "--to", "q4_0", "--out", second)
    assert not second.exists()
    assert bitsmith_command("quantize", first, "--to", "q4_0", "--out", second, "--requantize").code == 0


def test_pickles_are_refused(bitsmith_command: Command, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02}q\x00.")
    assert "pickle" in bitsmith_command.fails(1, "quantize", path, "--to", "q8_0").lower()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--to", "q4_k_x"], "q4_k_m"),
        (["--to", "native/int5"], "int4"),
        (["--to", "int4-g64"], "did you mean native/int4-g64?"),
        (["--to", "q8_0", "--max-shard-size", "2"], "--max-shard-size"),
        (["--to", "exl2/4bit"], "native"),
        (["--to", "q8_0", "--rule", "ffn_down"], "REGEX=TYPE"),
        (["--to", "q8_0", "--rule", "(=q8_0"], "regular expression"),
        (["--to", "q8_0", "--rule", "ffn_down=q9"], "q8_0"),
        (["--to", "q8_0", "--threads", "0"], "--threads"),
        (["--to", "q8_0", "--max-shard-size", "24 bananas"], "24 bananas"),
        (["--to", "q8_0", "--method", "magic"], "nearest"),
        ([], "--to"),
        (["--to", "q8_0", "--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_call(bitsmith_command: Command, tiny: Path, words: list[str], expected: str) -> None:
    result = bitsmith_command("quantize", tiny, *words)
    assert result.code == 2
    assert expected in " ".join(result.err.split())
    assert nothing_new(tiny.parent)


def test_an_output_that_cannot_be_written(bitsmith_command: Command, tiny: Path) -> None:
    blocked = tiny / "config.json" / "x.gguf"  # its folder is a file
    assert "config.json" in bitsmith_command.fails(1, "quantize", tiny, "--to", "q8_0", "--out", blocked)
    assert "nowhere" in bitsmith_command.fails(1, "quantize", tiny, "--to", "q8_0", "--out", tiny / "nowhere/x.gguf")


def test_an_existing_output_is_not_replaced(bitsmith_command: Command, tiny: Path) -> None:
    out = tiny.parent / "x.gguf"
    out.write_bytes(b"mine")
    refused = bitsmith_command("quantize", tiny, "--to", "q8_0", "--out", out)
    assert (refused.code, refused.out) == (2, "")  # before the plan is printed
    assert "--force" in refused.err
    assert out.read_bytes() == b"mine"
    assert bitsmith_command("quantize", tiny, "--to", "q8_0", "--out", out, "--force").code == 0
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(("model", "code"), [("", 2), ("x" * 300, 1), ("~nobody-of-that-name/x", 1), ("/dev/null", 1)])
def test_a_model_name_that_names_nothing(bitsmith_command: Command, model: str, code: int) -> None:
    assert model in bitsmith_command.fails(code, "inspect", model)


def test_an_output_name_too_long_for_the_disk(bitsmith_command: Command, tiny: Path) -> None:
    out = tiny.parent / f"{'x' * 300}.gguf"
    assert "too long" in bitsmith_command.fails(1, "quantize", tiny, "--to", "q8_0", "--out", out)
    assert nothing_new(tiny.parent)


@pytest.mark.parametrize("model", ["missing", "./missing.gguf", "nobody/nothing-at-all"])
def test_a_model_that_is_not_there(bitsmith_command: Command, model: str) -> None:
    assert model.split("/")[-1] in bitsmith_command.fails(1, "inspect", model)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty"), (b"A few words.", "window"), (b"good \xff\xfe bad" * 3000, "UTF-8")],
)
def test_texts_that_cannot_be_evaluated(
    bitsmith_command: Command, tiny: Path, tmp_path: Path, content: bytes, expected: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    assert expected in bitsmith_command.fails(1, "eval", tiny, "--text", text, "--context", 256)


def test_a_context_beyond_the_models(bitsmith_command: Command, tiny: Path) -> None:
    assert "256" in bitsmith_command.fails(2, "eval", tiny, "--context", 512)


def test_debug_shows_the_traceback(bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsmith.errors import FileError

    with pytest.raises(FileError):
        bitsmith_command("inspect", "missing", "--debug")
