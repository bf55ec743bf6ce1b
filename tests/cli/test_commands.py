"""The commands as a user meets them: what they print, in words and as JSON."""

from __future__ import annotations

import io
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bitsmith
from tests.cli.command import Command
from tests.tiny import make_folder


@pytest.fixture
def made(bitsmith_command: Command, tiny: Path) -> Path:
    """The tiny model in Q8_0."""
    out = tiny.parent / "tiny-Q8_0.gguf"
    assert bitsmith_command("quantize", tiny, "--to", "q8_0", "--out", out).code == 0
    return out


def test_quantize_prints_plan_and_summary(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    result = bitsmith_command("quantize", tiny, "--to", "q4_k_m", "--out", tmp_path / "x.gguf")
    assert result.code == 0
    assert "blk.*.ffn_down.weight" in result.out
    assert "for reading back and verifying" in result.out
    assert "peak memory" in result.out
    assert "largest relative squared errors" in result.out
    assert "fallback" in result.err  # rows of 64 do not divide by 256: a warning says so


def test_quantize_as_json(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    planned = json.loads(bitsmith_command("quantize", tiny, "--to", "q4_0", "--out", out, "--json", "--dry-run").out)
    made = json.loads(bitsmith_command("quantize", tiny, "--to", "q4_0", "--out", out, "--json").out)
    assert (planned["written"], made["written"]) == (False, True)
    assert planned["bytes"] == made["bytes"] == out.stat().st_size
    assert made["seconds"] > 0
    assert made["peak_memory_bytes"] > 1 << 20
    assert {"name", "shape", "from", "to", "bytes", "why", "sha256", "relative_squared_error"} == set(
        made["tensors"][0]
    )


def test_without_out_the_file_is_named_in_the_current_folder(
    bitsmith_command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bitsmith_command("quantize", tiny, "--to", "q3_k").code == 0
    assert (tmp_path / "tiny-Q3_K.gguf").is_file()
    assert bitsmith_command("quantize", tiny, "--to", "native/nf4").code == 0
    assert (tmp_path / "tiny-native-nf4" / "model.safetensors").is_file()


def test_eval_as_json(bitsmith_command: Command, tiny: Path, made: Path) -> None:
    words = ["eval", made, "--against", tiny, "--context", 64, "--max-windows", 4, "--json"]
    result = json.loads(bitsmith_command(*words).out)
    assert result["windows"] == 4
    assert result["tokens"] == 4 * 31
    assert 0 < result["divergence"]["kld"]["value"] < 0.01
    assert result["divergence"]["top1"]["value"] > 0.8
    assert json.loads(bitsmith_command(*words).out) == result


def test_eval_in_words(bitsmith_command: Command, tiny: Path) -> None:
    result = bitsmith_command("eval", tiny, "--against", tiny, "--context", 64, "--max-windows", 2)
    assert result.code == 0
    assert "perplexity" in result.out
    assert "mean KLD         0.000000" in result.out
    assert "100.000" in result.out


def test_run_is_repeatable_by_seed(bitsmith_command: Command, made: Path) -> None:
    words = ["run", made, "--raw", "--prompt", "Once upon a time", "-n", 12]
    first = bitsmith_command(*words, "--seed", 5)
    assert first.code == 0
    assert first.out.strip()
    assert bitsmith_command(*words, "--seed", 5).out == first.out
    assert bitsmith_command(*words, "--seed", 6).out != first.out
    greedy = bitsmith_command(*words, "--temperature", 0)
    assert bitsmith_command(*words, "--temperature", 0).out == greedy.out


def test_run_reads_standard_input(bitsmith_command: Command, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = bitsmith_command("run", made, "--prompt", "Once\nupon", "-n", 6, "--temp", 0)
    for words, text in (
        ((), "Once\nupon\n"),
        (("-p", "-"), "Once\nupon"),
        (("-p", "Once"), "upon"),
        (("-f", "-"), "Once\nupon"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert bitsmith_command("run", made, *words, "-n", 6, "--temperature", 0).out == spoken.out


def test_run_joins_prompt_file_and_standard_input(
    bitsmith_command: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xef\xbb\xbfin the\r\nfile\n")
    words = ["-n", 6, "--temp", 0]
    expected = bitsmith_command("run", made, "-p", "say\nin the\nfile\npiped", *words).out
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped\n"))
    assert bitsmith_command("run", "-m", made, "-p", "say", "-f", file, *words).out == expected
    assert f"{file}: byte 0 is not UTF-8" in _of_bytes(bitsmith_command, made, file, b"\xff\xfe")
    assert "No such file" in bitsmith_command.fails(1, "run", made, "-f", tmp_path / "none.txt")
    assert "--prompt: byte 3 is not UTF-8" in bitsmith_command.fails(1, "run", made, "-p", "caf\udce9")


def _of_bytes(bitsmith_command: Command, made: Path, file: Path, data: bytes) -> str:
    file.write_bytes(data)
    return bitsmith_command.fails(1, "run", made, "-f", file)


def test_run_applies_the_chat_template_and_says_so(bitsmith_command: Command, made: Path, tiny: Path) -> None:
    words = ["-n", 6, "--temp", 0]
    told = bitsmith_command("run", made, "-p", "Hello", "--system", "Be brief.", *words)
    assert "chat template is applied; --raw" in told.err
    assert "tokens/s" in told.err.splitlines()[-1]
    model = bitsmith.load(made)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert told.out == model.chat(messages, max_tokens=6, temperature=0) + "\n"
    raw = bitsmith_command("run", made, "-p", "Hello", "--raw", *words)
    assert raw.out == model.generate("Hello", max_tokens=6, temperature=0) + "\n"
    assert raw.out != told.out
    assert "continued as it stands" in raw.err
    quiet = bitsmith_command("run", made, "-p", "Hello", "--system", "Be brief.", "--quiet", *words)
    assert (quiet.out, quiet.err) == (told.out, "")
    (tiny / "chat_template.jinja").unlink()
    plain = bitsmith_command("run", tiny, "-p", "Hello", *words)
    assert "no chat template" in plain.err


def test_run_as_json(bitsmith_command: Command, made: Path) -> None:
    result = bitsmith_command("run", made, "-p", "Hello", "-n", 6, "--temp", 0, "--json", "--quiet")
    found = json.loads(result.out)
    assert found["text"] == bitsmith.load(made).chat("Hello", max_tokens=6, temperature=0)
    assert (found["generated_tokens"], found["reason"], found["model"]) == (6, "length", "tiny-Q8_0")
    assert found["prompt_tokens"] > 1
    assert {"prompt_seconds", "generation_seconds", "prompt_rate", "generation_rate"} < set(found)


def test_context_limits_prompt_and_text(bitsmith_command: Command, made: Path) -> None:
    words = ["run", made, "--raw", "-p", "Once upon a time", "--temp", 0, "-c", 16]
    result = bitsmith_command(*words, "-n", -1, "--json")
    found = json.loads(result.out)
    assert (found["prompt_tokens"] + found["generated_tokens"], found["reason"]) == (17, "context")
    assert "the context is full" in result.err
    assert bitsmith.load(made, context=16).config.context == 16
    assert "the prompt has 5 tokens, but the context holds 2" in bitsmith_command.fails(2, *words[:-1], 2)


def test_inspect_and_run_say_where_no_text_ends(bitsmith_command: Command, tiny: Path) -> None:
    assert "no end token" not in bitsmith_command("inspect", tiny).err
    for name in ("generation_config.json", "tokenizer_config.json"):
        path = tiny / name
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if "eos" not in k}))
    path = tiny / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("<|endoftext|>", "<|start|>"), "utf-8")
    assert "names no end token" in bitsmith_command("inspect", tiny).err
    assert "names no end token" in bitsmith_command("run", tiny, "-p", "a", "-n", 2).err
    assert len(json.loads(bitsmith_command("inspect", tiny, "--json").out)["notes"]) == 1


def test_chat_answers_line_by_line(bitsmith_command: Command, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?\n/reset\n/what\nAnd now?\n/exit\nnever said\n"))
    result = bitsmith_command("chat", made, "-n", 5, "--seed", 1)
    assert result.code == 0
    assert len(result.out.splitlines()) >= 2
    assert "forgotten" in result.err
    assert "unknown command /what" in result.err


def test_a_line_of_chat_may_be_long_and_not_utf8(
    bitsmith_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, saved = make_folder(tmp_path / "tiny", max_position_embeddings=8192), tmp_path / "talk.json"
    line = b"caf\xe9" + b" the" * 1500
    stdin = io.TextIOWrapper(io.BytesIO(line + b"\r\n/save " + bytes(saved)), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert bitsmith_command("chat", folder, "-n", 2).code == 0
    assert json.loads(saved.read_text())[0]["content"] == "caf\ufffd" + " the" * 1500


def test_chat_forgets_aloud(bitsmith_command: Command, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(["tell me a story " * 8] * 6)
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    result = bitsmith_command("chat", made, "-n", 16, "--seed", 1)
    assert result.code == 0
    assert "context full: forgot the oldest" in result.err


def test_inspect_in_words_and_as_json(bitsmith_command: Command, made: Path) -> None:
    words = bitsmith_command("inspect", made, "--verify")
    assert words.code == 0
    assert "general.architecture = llama" in words.out
    assert "blk.*.attn_q.weight (2)" in words.out
    assert "blk.0.attn_q.weight" in bitsmith_command("inspect", made, "--tensors").out
    found = json.loads(bitsmith_command("inspect", made, "--json").out)
    assert found["parameters"] == sum(t["shape"][0] * (t["shape"] + [1])[1] for t in found["tensors"])
    assert {t["layout"] for t in found["tensors"]} == {"f32", "q8_0"}


def test_inspect_finds_a_flipped_bit(bitsmith_command: Command, made: Path) -> None:
    content = bytearray(made.read_bytes())
    content[-100] ^= 1
    made.write_bytes(content)
    result = bitsmith_command("inspect", made, "--verify")
    assert result.code == 1
    assert "output.weight" in result.err
    assert bitsmith_command("inspect", made).code == 0


def test_native_folders_evaluate_and_run(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "native"
    assert bitsmith_command("quantize", tiny, "--to", "native/int8", "--out", out).code == 0
    words = ["eval", out, "--against", tiny, "--context", 64, "--max-windows", 2, "--json"]
    assert json.loads(bitsmith_command(*words).out)["divergence"]["kld"]["value"] < 0.01
    assert bitsmith_command("run", out, "--prompt", "Once", "-n", 3, "--seed", 1).code == 0


def test_a_reader_that_leaves_is_no_error(tiny: Path) -> None:
    words = [sys.executable, "-m", "bitsmith", "quantize", str(tiny), "--to", "q8_0", "--dry-run", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() in (0, 1)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_so_and_leaves_nothing(signal_: signal.Signals, tiny: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs inherit it ignored
        "import bitsmith.pipeline.making as making\n"
        f"making._Making._round_nearest = lambda *a, **k: os.kill(os.getpid(), {int(signal_)})\n"
        f"sys.argv = ['bitsmith', 'quantize', {str(tiny)!r}, '--to', 'q8_0', '--out', {str(tmp_path / 'x.gguf')!r}]\n"
        "from bitsmith.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1] == "Interrupted; no half-written file was left."
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("command", ["quantize", "eval", "run", "chat", "bench", "inspect"])
def test_help_needs_no_torch(command: str) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['bitsmith', {command!r}, '--help']\n"
        "from bitsmith.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    if leaving.code:\n        raise\n"
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "usage" in done.stdout.lower()
    assert done.stdout.splitlines()[-1] == "[]"


def test_inspect_tells_how_a_file_was_made(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--rule", "down_proj=int8-g64", "--pure", "--requantize"]
    assert bitsmith_command("quantize", tiny, "--to", "native/nf4", *options, "--out", first).code == 0
    assert bitsmith_command("convert", first, "--shard-size", "300kB", "--out", second).code == 0
    lines = bitsmith_command("inspect", second, "--recipe").out.splitlines()
    assert lines[:2] == [
        "bitsmith quantize tiny --to native/nf4 --pure --requantize --rule down_proj=int8-g64",
        "bitsmith convert first --max-shard-size 300000",
    ]
    assert json.loads("\n".join(lines[2:]))["source_recipe"]["to"] == "native/nf4"
    found = json.loads(bitsmith_command("inspect", first, "--recipe", "--json").out)
    assert found["commands"] == lines[:1]
    error = bitsmith_command.fails(1, "inspect", tiny, "--recipe")
    assert "has no manifest" in error


def test_the_recipes_command_makes_the_same_bytes(
    bitsmith_command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--calibration", "default", "--calibration-tokens", 256, "--calibration-context", 64, "--seed", 3]
    made = tmp_path / "first.gguf"
    assert bitsmith_command("quantize", tiny, "--to", "q4_0", "--effort", "fast", *words, "--out", made).code == 0
    command = shlex.split(bitsmith_command("inspect", made, "--recipe").out.splitlines()[0])
    assert command[:3] == ["bitsmith", "quantize", "tiny"]
    assert bitsmith_command(*command[1:], "--out", tmp_path / "again.gguf").code == 0
    assert (tmp_path / "again.gguf").read_bytes() == made.read_bytes()


def test_convert_in_words_and_as_json(bitsmith_command: Command, made: Path, tmp_path: Path) -> None:
    words = bitsmith_command("convert", made, "--to", "bf16", "--out", tmp_path / "floats")
    assert words.code == 0, words
    assert "wrote" in words.out
    assert "Warning" not in words.err
    assert bitsmith_command("run", tmp_path / "floats", "--prompt", "Once", "-n", 3, "--seed", 1).code == 0
    plan = json.loads(bitsmith_command("convert", made, "--name", "N", "--dry-run", "--json").out)
    assert (plan["written"], plan["to"]) == (False, "gguf/same")
    assert "--force" in bitsmith_command.fails(2, "convert", made, "--to", "bf16", "--out", tmp_path / "floats")
    assert "bitsmith quantize" in bitsmith_command.fails(2, "convert", made, "--to", "q4_0")
