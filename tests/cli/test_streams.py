"""Odd surroundings: closed or full streams, no such instruction set, little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitsmith.system.core import core
from tests.tiny import make_folder


def run(shell: str, *, encoding: str = "utf-8", **env: str) -> subprocess.CompletedProcess[str]:
    code = "from bitsmith.cli import main; main()"
    command = shell.format(bitsmith=f"{sys.executable} -c '{code}'")
    whole = {**os.environ, **env}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, encoding=encoding, env=whole, input="", timeout=120, check=False
    )


@pytest.mark.parametrize("shell", ["run reference --raw -n 2 <&-", "run reference -n 2 -p a >&-", "chat reference <&-"])
def test_closed_streams(shell: str) -> None:
    done = run(f"{{bitsmith}} {shell}")
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_no_question_of_permissions() -> None:
    done = run("{bitsmith} run reference -n 2 -p a > /dev/full")
    assert done.returncode != 0
    assert "permissions" not in done.stderr


@pytest.mark.skipif(core() is None, reason="no C++ core")
def test_an_instruction_set_that_is_not_there() -> None:
    done = run("{bitsmith} run reference -n 2 -p a", BITSMITH_ISA="nonsense")
    assert done.returncode == 2
    assert "BITSMITH_ISA=nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_chat_without_a_template_says_so_first(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    for path in folder.glob("chat_template*"):
        path.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    done = run(f"{{bitsmith}} chat {folder} < /dev/null")  # nobody says a word
    assert done.returncode == 1
    assert "no chat template" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_the_characters_is_no_error(encoding: str, tmp_path: Path) -> None:
    """File names, model names and texts beyond the encoding of standard output, in every command that prints them."""
    folder = make_folder(tmp_path / "модель-北京")
    script = f"""
        {{bitsmith}} inspect {folder} && {{bitsmith}} plan {folder} --device this &&
        {{bitsmith}} quantize {folder} --to q8_0 --out {folder}.gguf &&
        {{bitsmith}} eval {folder}.gguf --max-windows 1 --context 64 &&
        {{bitsmith}} run {folder}.gguf -p 北京 -n 20 --seed 1 && echo é | {{bitsmith}} chat {folder}.gguf -n 9"""
    done = run(script, encoding=encoding, PYTHONIOENCODING=encoding)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "??" in done.stdout
