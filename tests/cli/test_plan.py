"""`bitsmith plan` on the command line: the table, JSON, the picture, and what it says of wrong calls."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_folder

HEAVY = ("torch", "transformers", "matplotlib", "huggingface_hub", "tokenizers", "jinja2")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\n"
        "from bitsmith.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    print([n for n in {HEAVY} if n in sys.modules], file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def test_a_table_without_heavy_imports() -> None:
    done = run("llama-3-70b", "--device", "rtx-4090", "--device", "2x a100-80", "--training", "all")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    for words in ("llama-3-70b: 70.55 B weights", "80 layers", "needs 2", "q4_k_m", "qlora", "loss", "tokens/s"):
        assert words in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith(("format ", "q4_k_m ", "compressed/"))]
    assert len(table) == 8
    assert max(len(line.rstrip()) for line in table) <= 80


def test_json_says_all_of_it() -> None:
    done = run("mixtral-8x7b", "-d", "rtx-3090", "-c", "4096", "--kv", "q8_0", "--json", "--training", "qlora")
    found = json.loads(done.stdout)
    assert found["model"]["active_parameters"] == pytest.approx(12.9e9, rel=0.01)
    assert found["load"] == {"context": 4096, "batch": 1, "kv": "q8_0"}
    (device,) = found["devices"]
    assert device["memory"] == 24576 * 2**20
    row = next(row for row in found["formats"] if row["format"] == "q4_k_m")
    (verdict,) = row["verdicts"]
    assert verdict["total"] == verdict["weights"] + verdict["cache"] + verdict["working"]  # on one device
    assert found["runtimes"]["llama.cpp"]["bandwidth_share"] == 0.7
    assert verdict["verdict"] == "partly outside"
    assert verdict["devices_needed"] == 2
    assert row["measured_kld"] < 0.01
    assert [each["checkpointing"] for each in found["training"]] == [True, False]
    assert found["advice"]


def test_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "memory.png"
    done = run("reference", "-d", "rtx-3060", "--plot", str(path))
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    for wrong, words in ((tmp_path / "memory.jpg", ".png"), (tmp_path / "no" / "memory.png", "there is no folder")):
        done = run("reference", "-d", "rtx-3060", "--plot", str(wrong))
        assert done.returncode in (1, 2)
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_the_machines_own_card(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\necho 'NVIDIA GeForce RTX 4060 Ti, 16380'\necho 'NVIDIA GeForce RTX 4060 Ti, 16380'\n"
        "echo 'NVIDIA Unheard Of, 8192'\necho 'NVIDIA GB10, [N/A]'\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    done = run("7B", "--device", "this", "--json", env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    devices = json.loads(done.stdout)["devices"]
    assert [device["memory"] for device in devices[:2]] == [16380 * 2**20, 8192 * 2**20]
    assert [device["count"] for device in devices] == [2, 1, 1]
    assert devices[0]["bandwidth"] == 288e9
    assert devices[1]["bandwidth"] is None
    assert devices[2]["name"] == "this"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["llama-3-8b", "--memory", "24 bananas"], 2, "512MiB"),
        (["llama-3-8b", "--memory", "24"], 2, "24GB"),
        (["llama-3-8b", "--device", "rtx-4900"], 2, "rtx-4090"),
        (["llama-3-8b", "--context", "0"], 2, "--context 0"),
        (["llama-3-8b", "--context", "100000"], 2, "8,192"),
        (["lama-3-8b"], 2, "llama-3-8b"),
        (["/no/such/folder/x"], 1, "no such file"),
        (["7B", "--rank", "0", "--training", "lora"], 2, "--rank 0"),
        (["7B", "--optimizer", "lion", "--training", "full"], 2, "adamw-8bit"),
    ],
)
def test_wrong_calls(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_headers_that_lie(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (1 << 60).to_bytes(8, "little") * 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes((1 << 50).to_bytes(8, "little") + b"{}")
    for path in (tmp_path / "x.gguf", folder):
        done = run(str(path))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert path.name in done.stderr


def test_odd_files(tmp_path: Path) -> None:
    fifo = tmp_path / "folder" / "model.safetensors"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    (fifo.parent / "config.json").write_text("{}")
    for path, words in ((fifo.parent, "is not a regular"), (tmp_path / "models" / "x.gguf", "no such file")):
        done = run(str(path))
        assert done.returncode == 1
        assert words in " ".join(done.stderr.split())


def test_names_give_the_terminal_no_orders(tmp_path: Path) -> None:
    folder = tmp_path / "evil\x1b[31m[red]name"
    make_folder(folder)
    done = run(str(folder), "-d", "rtx-3060")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "[red]" in done.stdout
